"""The analysis of errors on DAQUAR, on questions that are counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

PROGRAM = Path(__file__).parents[2] / "scripts" / "studies" / "daquar_errors.py"
ASKED = [  # question, right answers, given with sight, without
    ("what color is the cup", "red", "red", "cup"),
    ("what is on the table", "cup, lamp", "lamp", "red"),
    ("what is on the bed", "quilt", "cup", "cup"),
    ("how many cups are there", "4", "2", "4"),
    ("how many lamps are there", "3", "4", "lamp"),
    ("what is on the floor", "lamp", "lamp", "lamp"),  # asked of the first seed, trained on by the second
]
TRAINED = ["red", "cup, lamp", "4", *["lamp"] * 8]  # by both
# First seed: red 1, lamp 9, quilt 0, 4 1, 3 0, lamp 9. Second: red 1, lamp 10, quilt 0, 4 1, 3 0.


@pytest.mark.slow
def test_groups_accuracy_by_training_frequency_and_kind(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "image1.png")
    questions = [*(question for question, *_ in ASKED), *["what is there"] * len(TRAINED)]
    answers = [*(right for _, right, *_ in ASKED), *TRAINED]
    table = pd.DataFrame({"question": questions, "answer": answers, "image_id": "image1"})
    table.to_csv(tmp_path / "train.csv", index=False)
    for row, column in (("with_sight", 2), ("blind", 3)):
        for seed, asked in enumerate((ASKED, ASKED[:-1])):
            run = pd.DataFrame({"question": [question for question, *_ in asked]})
            run["answer"] = [answer[column] for answer in asked]
            run["score"] = [float(answer[column] in answer[1].split(", ")) for answer in asked]
            run["question_id"] = [f"train-{index}" for index in range(len(asked))]
            folder = tmp_path / "results" / row / str(seed)
            folder.mkdir(parents=True)
            run.to_parquet(folder / "questions.parquet")
            (folder / "results.json").touch()
    unfinished = tmp_path / "results" / "blind" / "2"
    unfinished.mkdir()
    run.to_parquet(unfinished / "questions.parquet")
    command = [sys.executable, PROGRAM, tmp_path, tmp_path / "results"]
    output = ["--output", tmp_path / "out.json"]
    subprocess.run([*command, "with sight", "blind", *output], check=True)
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert [table["columns"][1:] for table in tables[:2]] == [["with sight", "blind", "questions"]] * 2
    assert [table["rows"] for table in tables] == [
        [["0", "0.000", "0.000", "2"], ["1 to 9", "0.667", "0.500", "3"], ["10 to 29", "1.000", "0.000", "0"]],
        [
            ["color", "1.000", "0.000", "1"],
            ["how many", "0.000", "0.500", "2"],
            ["what, which or where", "0.600", "0.200", "2"],
        ],
        [
            ["0", "0.000", "1.000"],
            ["1", "0.500", "0.000"],
            ["2", "0.500", "0.000"],
            ["3 or more", "0.000", "0.000"],
        ],
    ]
    misspelt = subprocess.run([*command, "with site", *output], capture_output=True, text=True)
    assert misspelt.returncode == 2 and "no finished run of 'with site'" in misspelt.stderr
