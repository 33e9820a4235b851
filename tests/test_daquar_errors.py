"""The errors' program on six questions of which every number is counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

PROGRAM = Path(__file__).parent.parent / "examples" / "daquar_errors.py"
TRAINED = ["red", "red", "cup, lamp", "lamp", "4"]
ASKED = [  # question, right answers, given with sight, without, trained on with the best known of the right ones
    ("what colour is the cup", "red", "red", "cup"),  # 2
    ("what is on the table", "cup, lamp", "lamp", "red"),  # lamp: 2
    ("what is on the bed", "quilt", "cup", "cup"),  # 0
    ("how many cups are there", "4", "2", "4"),  # 1
    ("how many lamps are there", "3", "4", "lamp"),  # 0; without sight no number
]


@pytest.mark.slow
def test_accuracy_is_grouped_by_how_often_the_answer_was_trained_on(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "image1.png")
    questions = [*(question for question, *_ in ASKED), *["what is there"] * len(TRAINED)]
    answers = [*(right for _, right, *_ in ASKED), *TRAINED]
    table = pd.DataFrame({"question": questions, "answer": answers, "image_id": "image1"})
    table.to_csv(tmp_path / "train.csv", index=False)
    for row, column in (("with_sight", 2), ("blind", 3)):
        for seed in range(2):
            given = [asked[column] for asked in ASKED]
            score = [float(asked[column] in asked[1].split(", ")) for asked in ASKED]
            run = pd.DataFrame({"question": questions[: len(ASKED)], "answer": given, "score": score})
            run["question_id"] = [f"train-{index}" for index in range(len(ASKED))]
            (tmp_path / "results" / row / str(seed)).mkdir(parents=True)
            run.to_parquet(tmp_path / "results" / row / str(seed) / "questions.parquet")
    arguments = [tmp_path, tmp_path / "results", "with sight", "blind", "--output", tmp_path / "out.json"]
    subprocess.run([sys.executable, PROGRAM, *arguments], check=True)
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert tables[0]["columns"][1:] == ["with sight", "blind", "questions"]
    assert [table["rows"] for table in tables] == [
        [["0", "0.000", "0.000", "2"], ["1 to 9", "0.667", "0.333", "3"]],
        [
            ["colour", "1.000", "0.000", "1"],
            ["how many", "0.000", "0.500", "2"],
            ["what, which or where", "0.500", "0.000", "2"],
        ],
        [["0", "0.000", "1.000", "0"], ["1", "0.500", "0.000", "1"], ["2", "0.500", "0.000", "1"]],
    ]
