"""The steps of "Write your own scorer" in docs/model.md, from the edits to a checkpoint that carries its code."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from modeling_qca.training.supervision.scenes import write_scenes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "model.md").read_text().split("## Write your own scorer")[1]
RECIPE = """
data: scenes
model: qca-tiny
max_steps: 1
per_device_train_batch_size: 16
eval_strategy: "no"
save_strategy: "no"
"""
LOAD = """
import sys
from transformers import AutoModelForVisualQuestionAnswering
model = AutoModelForVisualQuestionAnswering.from_pretrained("runs/cosine", trust_remote_code=True)
assert "modeling_qca" not in sys.modules
print(type(model.qca.hops.layers[0].attention.scorer).__name__)
"""


def indented_blocks(language: str) -> list[str]:
    found = re.findall(rf"^ +```{language}\n(.*?)^ +```", PAGE, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def install_copy(site: Path) -> None:
    """The packages as a wheel lays them out, so that the copy can be edited."""
    ignored = shutil.ignore_patterns("__pycache__")
    for source, place in {
        "modeling_qca": "modeling_qca",
        "configuration": "modeling_qca/configuration",
        "training": "modeling_qca/training",
        "hub_card": "modeling_qca/hub_card",
        "hub_card/commands": "qca_cli",
    }.items():
        shutil.copytree(ROOT / source, site / place, ignore=ignored)


def follow_edits(package: Path) -> None:
    """The three edits of the page: the class, its registration, and its name in the config."""
    scorer, registration, field = indented_blocks("python")
    attention, configuration = package / "attention_qca.py", package / "configuration_qca.py"
    text, count = re.subn(
        r"^SCORERS = \{.*?\}\n", lambda _: f"{scorer}\n\n{registration}", attention.read_text(), flags=re.M | re.S
    )
    assert count == 1
    attention.write_text(text)
    text, count = re.subn(
        r"^ +relevance_scorer: Literal\[.*\n",
        lambda _: textwrap.indent(field, "    "),
        configuration.read_text(),
        flags=re.M,
    )
    assert count == 1
    configuration.write_text(text)


@pytest.mark.slow
def test_own_scorer_trains_pushes_and_loads_without_the_edit(tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    install_copy(site)
    follow_edits(site / "modeling_qca")
    work.mkdir()
    write_scenes(work / "scenes", {"train": 8, "validation": 2}, seed=0)
    (work / "configuration" / "recipes").mkdir(parents=True)
    (work / "configuration" / "recipes" / "demo.yaml").write_text(RECIPE)
    edited = {**os.environ, "PYTHONPATH": str(site)}
    lines = [line for block in indented_blocks("text") for line in block.splitlines()]
    assert [line.split()[:2] for line in lines] == [["qca", "train"], ["qca", "push"]]
    for line in lines:
        program = "from qca_cli.main import main; main()"
        run(sys.executable, "-c", program, *line.split()[1:], folder=work, environment=edited)
    assert "class CosineScorer" in (work / "runs" / "cosine" / "attention_qca.py").read_text()
    loaded = run(sys.executable, "-c", LOAD, folder=work, environment=dict(os.environ))
    assert loaded.strip().splitlines()[-1] == "CosineScorer"


def run(*command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
