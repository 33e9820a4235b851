"""What is installed: one import package, with the data it reads."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from modeling_qca import __version__

ROOT = Path(__file__).parents[2]
tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
MAPPED = {"configuration", "hub_card", "training"}


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"modeling_qca"}
    for folder in MAPPED:
        for marker in (ROOT / folder).rglob("__init__.py"):
            package = ".".join(("modeling_qca", *marker.parent.relative_to(ROOT).parts))
            found.add("qca_cli" if package == "modeling_qca.hub_card.commands" else package)
    assert set(settings["packages"]) == found


@pytest.mark.slow
def test_what_is_released_is_whole_and_builds_from_its_own_source(tmp_path):
    """`python -m build` makes the wheel from the source distribution; it needs a package registry."""
    pytest.importorskip("build", reason="pip install build")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs"))
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name = f"modeling_qca-{__version__}"
    assert {path.name for path in (tmp_path / "dist").iterdir()} == {f"{name}.tar.gz", f"{name}-py3-none-any.whl"}
    with tarfile.open(tmp_path / "dist" / f"{name}.tar.gz") as archive:
        released = {path.removeprefix(f"{name}/") for path in archive.getnames()}
    made = {"modeling_qca.egg-info", "build"}
    kept = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert {str(path) for path in kept if not made & set(path.parts)} <= released
    wheel = set(zipfile.ZipFile(tmp_path / "dist" / f"{name}-py3-none-any.whl").namelist())
    assert {name.split("/")[0].partition("-")[0] for name in wheel} == {"modeling_qca", "qca_cli"}
    for folder in MAPPED | {"modeling_qca"}:
        inside = "modeling_qca" if folder == "modeling_qca" else f"modeling_qca/{folder}"
        for path in (source / folder).rglob("*"):
            if path.is_file():
                file = f"{inside}/{path.relative_to(source / folder)}"
                assert file.replace("modeling_qca/hub_card/commands", "qca_cli") in wheel, path


def test_the_version_stands_in_one_place_and_the_changelog_tells_of_it():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_ci_runs_and_the_transformers_that_are_promised():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert "bash .ci/run" in commands
    lowest, highest = workflow["jobs"]["transformers"]["strategy"]["matrix"]["version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = next(requirement for requirement in project["dependencies"] if requirement.startswith("transformers"))
    assert promised == f"transformers>={lowest.removesuffix('.0')}"
    tried = " ".join((ROOT / "README.md").read_text().partition("run on transformers ")[2].split())
    assert f"on {lowest.removesuffix('.0')}, the lowest" in tried and f"on {highest.removesuffix('.0')} " in tried
