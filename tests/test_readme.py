"""The documents keep their promises: their tables are those of the results files, their commands and files exist."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, configuration
from modeling_qca.hub_card.cli import app
from modeling_qca.hub_card.readme import render
from modeling_qca.training.recipe import make_recipe
from modeling_qca.training.scenes import write_scenes
from modeling_qca.training.train import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_tables_are_rendered_from_the_results_files():
    documents = [ROOT / name for name in re.findall(r"^DOCUMENTS = (.*)$", MAKEFILE, re.MULTILINE)[0].split()]
    assert len(documents) == 3
    for text in (document.read_text() for document in documents):
        assert "<!-- results:" in text and render(text, ROOT) == text
    assert render(README.replace("| majority |", "| minority |"), ROOT) == README


def test_commands_exist_with_their_options():
    commands = get_command(app).commands
    mentioned = set(re.findall(r"^qca ([a-z-]+)", README, re.MULTILINE))
    assert mentioned and mentioned <= commands.keys()
    lines = re.findall(r"^qca (?!train)([a-z-]+ .*)$", README, re.MULTILINE)
    assert lines
    for line in lines:
        known = {option for parameter in commands[line.split()[0]].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z_-]+", line)) <= known, line


def test_files_it_names_exist():
    for path in re.findall(r"!\[.*?\]\((\S+?)\)", README) + re.findall(r"configuration/recipes/\S+\.yaml", README):
        assert (ROOT / path).exists(), path


def _without_numbers(text: str) -> str:
    """Photos may be called anything: `train12` becomes `photo-bc`."""
    return re.sub(r"train(\d+)", lambda name: "photo-" + "".join("abcdefghij"[int(digit)] for digit in name[1]), text)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the README names: a demo just begun, photos of one's own, encoders as if downloaded."""
    desk = tmp_path_factory.mktemp("desk")
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
    shutil.copy(scenes / "images" / "train0.jpg", desk / "photo.jpg")
    model = QCAForVisualQuestionAnswering.from_pretrained(desk / "runs/demo/checkpoint")
    processor = QCAProcessor.from_pretrained(desk / "runs/demo/checkpoint")
    model.base_model.vision_encoder.backbone.save_pretrained(desk / "facebook/dinov2-small")
    processor.image_processor.save_pretrained(desk / "facebook/dinov2-small")
    model.base_model.text_encoder.save_pretrained(desk / "sentence-transformers/all-MiniLM-L6-v2")
    processor.tokenizer.save_pretrained(desk / "sentence-transformers/all-MiniLM-L6-v2")
    return desk


def test_its_commands_and_its_python_run(desk, monkeypatch):
    pytest.importorskip("transformers.exporters", reason="qca export needs transformers 5.23")
    monkeypatch.chdir(desk)
    small = "--vision_feature_layers '[1, 2]' --hidden_size 64 --num_train_epochs 1 --bf16 false --disable_tqdm true"
    ran, names, measured = set(), {}, None
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL):
        if language == "python" and "BitsAndBytes" not in block:
            exec(block, names)
        for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
            command = shlex.split(line, comments=True)
            if command[:1] != ["qca"] or command[1] == "app":  # `qca app` has a test of its own
                continue
            command += shlex.split(small) if command[1] == "train" else []
            result = CliRunner().invoke(app, command[1:])
            assert result.exit_code == 0, (line, result.output, result.exception)
            ran.add(command[1])
            if command[1:3] == ["evaluate", "runs/rooms"]:
                trained, measured = (
                    json.loads(Path("runs", run, "results.json").read_text()) for run in ("rooms", "evaluate")
                )
                assert measured["data"]["fingerprint"] == trained["data"]["fingerprint"]
                assert measured["metrics"] == pytest.approx(trained["metrics"])
    assert measured, "the README no longer measures what it trains"
    assert ran == {"ask", "train", "push", "explain", "faithfulness", "evaluate", "export"}
    with Image.open("look.png") as last, Image.open("look-1.png") as first, Image.open("photo.jpg") as photo:
        assert last.size[0] == photo.size[0] and first.size[0] == photo.size[0]
    assert Path("report.html").stat().st_size > 10_000 and Path("exported/model.onnx").exists()
