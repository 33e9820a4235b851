"""What is installed: one import package, with the data it reads."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
MAPPED = {"configuration", "hub_card", "training"}


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"modeling_qca"}
    for folder in MAPPED:
        for marker in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("modeling_qca", *marker.parent.relative_to(ROOT).parts)))
    assert set(settings["packages"]) == found


@pytest.mark.slow
def test_the_wheel_installs_one_package_with_its_data(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"modeling_qca"}
    for data in (
        "configuration/qca-tiny/config.json",
        "configuration/accelerate/fsdp.yaml",
        "configuration/recipes/rooms.yaml",
        "hub_card/template.md",
        "hub_card/space/requirements.txt",
        "training/metrics/attention_quality/attention_quality.py",
        "training/metrics/attention_quality/README.md",
        "py.typed",
    ):
        assert f"modeling_qca/{data}" in names
