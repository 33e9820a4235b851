"""Tests of the README: its length and its language, its tables, its commands and its Python."""

import contextlib
import io
from pathlib import Path

import pytest
from check_language import problems
from helpers.documents import ROOT, blocks, check_printed, prepare_desk, run_commands
from PIL import Image

README = (ROOT / "README.md").read_text()
SMALL = "--vision_feature_layers '[1, 2]' --hidden_size 64 --num_train_epochs 1 --bf16 false --disable_tqdm true"


def test_is_short_and_plain():
    assert not list(problems(README))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return prepare_desk(tmp_path_factory.mktemp("desk"))


def test_commands_and_python_run(desk, monkeypatch):
    """Answers of a model that was trained for one step differ from those printed, so only their form is compared."""
    pytest.importorskip("transformers.exporters", reason="qca export needs transformers 5.23")
    monkeypatch.chdir(desk)
    names: dict = {}
    for block in blocks(README, "python"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(block, names)
        check_printed(block, printed.getvalue(), exactly=False)
    assert run_commands(README, SMALL) == {"train", "push", "export"}
    with Image.open("look.png") as overlay, Image.open(names["scene"]) as scene:
        assert overlay.size[0] == scene.size[0]
    assert Path("exported/model.onnx").exists()


@pytest.mark.slow
def test_printed_answers_are_those_of_the_demo(tmp_path, monkeypatch):
    """`make demo` for real: a minute or two on idle cores."""
    monkeypatch.chdir(tmp_path)
    run_commands("```bash\nqca demo\n```", "")
    names: dict = {}
    for block in blocks(README, "python"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(block, names)
        check_printed(block, printed.getvalue(), exactly=True)
