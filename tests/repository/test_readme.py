"""The documents keep their promises: their tables are those of the results files, their commands and files exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qca_cli.main import app
from qca_cli.options import RENAMED_OPTIONS, hyphenate
from render_documents import render
from typer.main import get_command
from typer.testing import CliRunner

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, configuration
from modeling_qca.training.fitting.recipe import ARGUMENT_FIELDS, CONFIG_FIELDS, OWN_FIELDS, make_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = [ROOT / name for name in re.findall(r"^DOCUMENTS = (.*)$", MAKEFILE, re.MULTILINE)[0].split()]


def test_tables_are_rendered_from_the_results_files():
    assert len(DOCUMENTS) == 3
    for text in (document.read_text() for document in DOCUMENTS):
        assert "<!-- results:" in text and render(text, ROOT) == text
    assert render(README.replace("| majority |", "| minority |"), ROOT) == README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.stem)
def test_commands_exist_with_their_options(document):
    commands = get_command(app).commands
    lines = re.findall(r"^qca ([a-z-]+.*)$", document.read_text().replace("\\\n", " "), re.MULTILINE)
    assert lines and {line.split()[0] for line in lines} <= commands.keys()
    for line in lines:
        command = commands[line.split()[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {old for old, new in RENAMED_OPTIONS.items() if new in known}
        if command.ignore_unknown_options:  # keys of a recipe too
            known |= {f"--{hyphenate(key)}" for key in OWN_FIELDS | CONFIG_FIELDS | ARGUMENT_FIELDS}
        assert {hyphenate(option) for option in re.findall(r"--[a-z0-9_-]+", line)} <= known, line


def test_one_command_makes_every_table_as_the_evidence_says():
    names = [f"{name}={name}" for name in ("ROOMS", "PHOTOS", "CLASSES", "DAQUAR")]
    make = ["make", "-n", "-B", "-C", str(ROOT), "evidence", "BIN=bin"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    planned = subprocess.run([*make, *names], capture_output=True, text=True, check=True, env=outside).stdout
    evidence = (ROOT / "docs" / "evidence.md").read_text()
    told, made = (
        [shlex.split(line) for line in re.findall(pattern, text.replace("\\\n", " "), re.MULTILINE)]
        for pattern, text in ((r"^qca (.*)$", evidence), (r"^bin/qca (.*)$", planned))
    )
    assert sorted(made) == sorted(told)
    lacking = subprocess.run([*make, *names[:3]], capture_output=True, text=True, env=outside)
    assert lacking.returncode and "DAQUAR=... is missing" in lacking.stderr and "qca results" not in lacking.stdout
    tables = {Path(command[1]).stem for command in made if command[0] == "results"}
    assert tables == {path.stem for path in Path(configuration.__file__).parent.glob("recipes/results/*.yaml")}


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


@pytest.mark.slow
def test_the_best_combination_is_made_by_its_commands(desk, tmp_path, monkeypatch):
    """From photos and label maps to the table, as docs/evidence.md says, on scenes with a bed and a lamp."""
    monkeypatch.chdir(tmp_path)
    for folder in ("configuration", "facebook", "sentence-transformers"):
        shutil.copytree(desk / folder, folder)
    for folder in ("PHOTOS", "ROOMS/labels"):
        Path(folder).mkdir(parents=True)
    places = np.random.default_rng(0)
    for number in range(60):
        labels = np.full((64, 64), 3, np.uint8)
        for label, left in zip((1, 2), places.permutation([0, 36]), strict=True):
            top = places.integers(0, 40)
            labels[top : top + 24, left : left + 16 + 8 * label] = label
        Image.fromarray(labels).save(f"ROOMS/labels/image{number}.png")
        Image.fromarray(80 * labels).convert("RGB").save(f"PHOTOS/image{number}.jpg")
    Path("CLASSES").write_text("bed\nlamp\nwall\n")
    table = Path("configuration/recipes/results/views.yaml")
    rows, counts = re.subn(r"(max_steps|faithfulness_questions): \d+", r"\1: 2", table.read_text())
    assert counts == 5
    table.write_text(rows)
    section = (ROOT / "docs" / "evidence.md").read_text().split("## The best combination")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ")
    made = "qca make-questions PHOTOS ROOMS/labels CLASSES rooms"
    small = "--seeds 0 --output-dir runs --vision_feature_layers '[1, 2]' --hidden_size 64 --bf16 false --max_steps 2"
    for line in [made, *block.splitlines()]:
        command = shlex.split(line)[1:] + (shlex.split(small) if line.startswith("qca results") else [])
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (line, result.output, result.exception)
        if line == made:
            for name in ("train.csv", "train_relevance.npz"):
                shutil.copy(f"rooms/{name}", "ROOMS")
    results = json.loads(Path("runs/views/results.json").read_text())
    assert [row["seeds"] for row in results["rows"]] == [[0]] * 4
    assert all(row["faithfulness"] for row in results["rows"])
    assert "| end to end, from the bilinear scorer | 1 |" in Path("runs/views/results.md").read_text()
    accuracy = results["rows"][2]["accuracy"]["all"]["mean"]
    card = Path("runs/views/end_to_end_from_the_bilinear_scorer/README.md").read_text()
    assert f"| accuracy | {accuracy:.3f} | " in card  # one seed has no spread


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
                    json.loads(Path("runs", run, "results.json").read_text()) for run in ("rooms", "evaluate/rooms")
                )
                assert measured["data"]["fingerprint"] == trained["data"]["fingerprint"]
                assert measured["metrics"] == pytest.approx(trained["metrics"])
    assert measured, "the README no longer measures what it trains"
    assert ran == {"ask", "train", "push", "explain", "faithfulness", "evaluate", "export"}
    with Image.open("look.png") as last, Image.open("look-1.png") as first, Image.open("photo.jpg") as photo:
        assert last.size[0] == photo.size[0] and first.size[0] == photo.size[0]
    assert Path("report.html").stat().st_size > 10_000 and Path("exported/model.onnx").exists()
