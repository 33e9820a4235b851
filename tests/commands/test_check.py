"""`qca check`: what it prints, and its exit status."""

import re
from pathlib import Path

import pytest
from helpers.data_files import draw, write_csv
from qca_cli.main import app
from typer.testing import CliRunner

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
HEADER = "image,question,answer"
TRAIN = re.search(r"```text\nimage,question,answer\n(.*?)\n```", DOCUMENT.read_text(), re.DOTALL)[1].splitlines()
VALIDATION = (
    "hall3.jpg,is there a lamp in the left half of the picture,yes",
    "hall3.jpg,what is on the table,book",
)


@pytest.fixture(autouse=True)
def rooms(tmp_path, monkeypatch):
    for number, name in enumerate(("kitchen1", "office7", "hall3")):
        draw(tmp_path / "my_rooms" / "images" / f"{name}.jpg", shade=40 * number)
    write_csv(tmp_path / "my_rooms" / "train.csv", HEADER, *TRAIN)
    write_csv(tmp_path / "my_rooms" / "validation.csv", HEADER, *VALIDATION)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my_rooms"


def qca(*arguments):
    finished = CliRunner().invoke(app, ["check", *map(str, arguments)], catch_exceptions=False)
    return finished.exit_code, [line.rstrip() for line in finished.stdout.splitlines()]


def figures(lines, label):
    (line,) = (line for line in lines if line.strip().startswith(f"{label}  "))
    return line.split()[-2:]


def test_clean_data_has_status_0_and_the_output_of_the_documents(rooms):
    status, lines = qca("my_rooms")
    shown = re.search(r"```text\n\$ qca check my_rooms\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    time = re.compile(r"(less than|about) [\d.]+ s$")
    assert [time.sub("", line) for line in lines] == [time.sub("", line) for line in shown.splitlines()]
    assert status == 0


def test_an_image_in_both_splits_has_status_1(rooms):
    draw(rooms / "images" / "hall4.jpg", shade=0)  # the content of kitchen1.jpg
    write_csv(rooms / "validation.csv", HEADER, *VALIDATION, "hall4.jpg,what is on the table,cup")
    status, lines = qca("my_rooms")
    assert status == 1
    assert lines[-1].startswith("Problem: images in both train and validation: 1.")


@pytest.mark.parametrize("rule", ["raise", "skip"])
def test_unreadable_images_are_listed(rooms, rule):
    (rooms / "images" / "broken.jpg").write_bytes(b"no image")
    write_csv(rooms / "train.csv", HEADER, *TRAIN, "broken.jpg,what is it,desk", "gone.jpg,what is it,desk")
    status, lines = qca("my_rooms", "--on-bad-image", rule)
    assert status == (1 if rule == "raise" else 0)
    (listed,) = (line for line in lines if "cannot be read: 2" in line)
    assert listed.startswith("Problem: " if rule == "raise" else "Note: ")
    assert "broken.jpg" in listed and "gone.jpg" in listed and "no such file" in listed
    assert figures(lines, "rows") == ["4", "2"]


def test_keys_of_a_recipe_cut_the_split_and_choose_the_vocabulary(rooms):
    (rooms / "validation.csv").unlink()
    options = ["--validation_ratio", "0.5", "--group-by", "image_id", "--data-options", "{answer_separator: ','}"]
    options += ["--answer-rule", "set", "--model", "qca-tiny"]
    status, lines = qca("my_rooms", *options)
    assert status == 0
    assert figures(lines, "rows") == ["2", "2"]
    assert figures(lines, "different answers") == ["3", "2"]  # cup, plate and yes; desk and yes
    assert any(line.startswith("Estimate for qca-tiny with images of 160 x 160") for line in lines)
    status, lines = qca("my_rooms", *options, "--vocabulary", "{top_k: 2}")  # cup and plate
    assert status == 1
    assert lines[-1].startswith("Problem: no validation row has an answer in the vocabulary")


def test_a_missing_validation_split_is_an_error_that_names_the_remedy(rooms):
    (rooms / "validation.csv").unlink()
    with pytest.raises(ValueError, match="validation_ratio"):
        qca("my_rooms")


def test_training_prints_the_last_lines_of_the_check_first(monkeypatch):
    class Started(Exception):  # noqa: N818
        pass

    def start(run):
        raise Started

    monkeypatch.setattr("modeling_qca.training.fitting.training_run.TrainingRun.train", start)
    Path("recipe.yaml").write_text("data: my_rooms\nmodel: qca-tiny\n")
    trained = CliRunner().invoke(app, ["train", "recipe.yaml"])
    assert isinstance(trained.exception, Started)
    checked = qca("recipe.yaml")[1]
    assert trained.stdout.splitlines() == checked[-4:]
    assert checked[-4].startswith("Validation accuracy of the majority answer")


def test_a_recipe_is_checked_with_its_data_and_supervision(rooms):
    Path("recipe.yaml").write_text(
        "data: my_rooms\nmodel: qca-tiny\nattention_supervision: last_hop\nper_device_train_batch_size: 2\n"
    )
    status, lines = qca("recipe.yaml")
    assert status == 1 and lines[-1].startswith("Problem: no training row has a relevance map")
    assert "  steps of an epoch on one device: 2" in lines
    assert qca("recipe.yaml", "--attention-supervision", "none")[0] == 0


def test_a_model_that_is_not_available_leaves_only_the_estimate_out(rooms):
    status, lines = qca("my_rooms", "--vision-encoder", "missing", "--text-encoder", "missing")
    assert status == 0
    assert any(line.startswith("No estimate") for line in lines) and lines[-1] == "No problems found."
