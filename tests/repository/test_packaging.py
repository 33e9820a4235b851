"""The packages, the wheel and the workflow."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modeling_qca import __version__

ROOT = Path(__file__).parents[2]
tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
MAPPED = {"configuration", "hub_card", "training"}
INSTALLED_AS = {"modeling_qca.hub_card.commands": "qca_cli", "modeling_qca.hub_card.serving": "qca_cli.serving"}


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"modeling_qca"}
    for folder in MAPPED:
        for marker in (ROOT / folder).rglob("__init__.py"):
            package = ".".join(("modeling_qca", *marker.parent.relative_to(ROOT).parts))
            found.add(INSTALLED_AS.get(package, package))
    assert set(settings["packages"]) == found


@pytest.mark.slow
def test_wheel_is_complete_and_builds_from_the_source_distribution(tmp_path):
    """`python -m build` makes the wheel from the source distribution; it needs a package index."""
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
                for package, name in INSTALLED_AS.items():
                    file = file.replace(package.replace(".", "/"), name.replace(".", "/"))
                assert file in wheel, path


def test_every_dependency_has_a_version_in_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {canonicalize_name(Requirement(text).name) for text in declared} <= {*map(canonicalize_name, pinned)}


def test_version_is_dynamic_and_has_a_section_in_the_changelog():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_workflow_runs_ci_and_the_supported_versions():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    lowest, highest = workflow["jobs"]["transformers"]["strategy"]["matrix"]["version"]
    requirements = (ROOT / "pyproject.toml").read_text()
    assert f'"transformers>={lowest.removesuffix(".0")}",' in requirements
    assert f"tried up to {highest.removesuffix('.0')}" in requirements
    assert f"transformers-{lowest.removesuffix('.0')}" in (ROOT / "README.md").read_text()
