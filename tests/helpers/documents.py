"""What documents contain, and a folder in which their commands and their Python run."""

import re
import shlex
import shutil
from pathlib import Path

from qca_cli.main import app
from typer.testing import CliRunner

from helpers.encoders import save_encoders
from modeling_qca import configuration
from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes

ROOT = Path(__file__).parents[2]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words of every `qca` command in the bash blocks."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["qca"]]


def run_commands(text: str, train_options: str, skip: tuple[str, ...] = ()) -> set[str]:
    """Run every `qca` command but those of `skip`; `qca train` gets `train_options`. Returns what ran."""
    ran = set()
    for command in commands(text):
        if command[0] in skip:
            continue
        command += shlex.split(train_options) if command[0] == "train" else []
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.output, result.exception)
        ran.add(command[0])
    return ran


def check_printed(block: str, printed: str, exactly: bool) -> None:
    """Compare what a block printed with the comments behind its calls of `print`.

    Without `exactly`, quoted text may differ.
    """
    expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert len(expected) == block.count("print("), "a call of print without its output"
    lines = printed.splitlines()
    if not exactly:
        expected, lines = ([re.sub(r"'.*?'", "''", line) for line in found] for found in (expected, lines))
        expected, lines = ([re.sub(r"^\w+$", "word", line) for line in found] for found in (expected, lines))
    assert lines == expected, f"printed {lines}, but the document shows {expected}"


def prepare_desk(desk: Path) -> Path:
    """Fill a folder with what documents name: a demo just begun, photos of one's own, encoders as if downloaded."""
    scenes = desk / "runs" / "demo" / "scenes"
    write_scenes(scenes, {"train": 30, "validation": 4}, seed=0)
    few = {"data": str(scenes), "model": "qca-tiny", "max_steps": 1, "output_dir": str(desk / "runs/demo/checkpoint")}
    train(make_recipe(few | {"per_device_train_batch_size": 16, "disable_tqdm": True}, "demo"))
    shutil.copytree(Path(configuration.__file__).parent, desk / "configuration")
    (desk / "my_rooms").mkdir()
    shutil.copy(scenes / "train_relevance.npz", desk / "my_rooms")
    (desk / "my_rooms" / "train.csv").write_text(_without_numbers((scenes / "train.csv").read_text()))
    (desk / "my_photos").mkdir()
    for scene in (scenes / "images").glob("train*.jpg"):
        shutil.copy(scene, desk / "my_photos" / _without_numbers(scene.name))
    save_encoders(desk)
    return desk


def _without_numbers(text: str) -> str:
    """Photos may have any name: `train12` becomes `photo-bc`."""
    return re.sub(r"train(\d+)", lambda name: "photo-" + "".join("abcdefghij"[int(digit)] for digit in name[1]), text)
