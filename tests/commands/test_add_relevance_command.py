"""`qca add-relevance`: what it prints, its exit status, and its import time."""

import json
import sys

import pytest
from helpers.marked_pictures import marked_folder
from qca_cli.main import app, main
from typer.testing import CliRunner


@pytest.fixture
def folder(tmp_path):
    folder = marked_folder(tmp_path / "rooms")
    line = {"image": "room.png", "label": "bed", "box": [40, 20, 70, 40]}
    (folder / "objects.jsonl").write_text(json.dumps(line))
    return folder


def qca(*arguments):
    return CliRunner().invoke(app, ["add-relevance", *map(str, arguments)], catch_exceptions=False)


def test_says_what_came_of_it_and_where(folder):
    finished = qca(folder, "--from", "objects", "--hops", "1")
    assert finished.exit_code == 0
    lines = [line.strip() for line in finished.stdout.splitlines()]
    assert lines[0] == f"{folder / 'train.csv'}:"
    assert lines[1] == "questions with one map: 2 of 4"
    assert lines[-2:] == [
        f"maps: {folder / 'train_relevance.npz'}",
        f"twenty of them as pictures: {folder / 'train_relevance.html'}",
    ]


def test_label_words_are_read_as_yaml(folder):
    finished = qca(folder, "--from", "objects", "--label-words", "{bed: [cup]}")
    assert "words that chose objects: cup (1)" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "coco", "--annotations", "gone.json"], "error: gone.json: no such file or folder of annotations"),
        (["--from", "objects", "--label-words", "{bed: cot}"], "--label-words: bed needs a list of words, got 'cot'"),
        (["--from", "objects", "--hops", "0"], "hops and grid are positive numbers"),
    ],
)
def test_fault_ends_in_one_line_and_status_1(folder, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qca", "add-relevance", str(folder), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (folder / "train_relevance.npz").exists()
