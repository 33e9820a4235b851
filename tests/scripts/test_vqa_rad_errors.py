"""The analysis of errors on VQA-RAD, on questions that are counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

PROGRAM = Path(__file__).parents[2] / "scripts" / "studies" / "vqa_rad_errors.py"
ASKED = [  # image, question, answer, type, score; questions of the validation split
    ("a", "Where is the mass?", "The left lung", "open", 1),  # trained on in other words
    ("a", "where is the  node", "Right lung", "open", 0),  # trained on about image b
    ("b", "What is shown?", "Edema", "open", 0),  # only its image is trained on; its answer is not
    ("b", "Where is the node?", "liver", "open", 1),  # the question itself is trained on, with another answer
    ("c", "Is it large?", "yes", "closed", 1),  # nothing is trained on
]
TRAINED = [
    ("a", "What shows a mass", "left lung", "open"),
    ("b", "Where is the node", "right lung", "open"),
    *[("b", f"Is it number {number}?", "liver", "open") for number in range(5)],
]


@pytest.mark.slow
def test_groups_accuracy_by_what_was_trained_on(tmp_path):
    columns = ["image", "question", "answer", "answer_type"]
    table = pd.DataFrame([*(row[:4] for row in ASKED), *TRAINED], columns=columns).assign(question_type="POS")
    table.to_csv(tmp_path / "train.csv", index=False)
    folder = tmp_path / "results" / "image_mean" / "0"
    folder.mkdir(parents=True)
    ids = [f"train-{row}" for row in range(len(ASKED))]
    run = pd.DataFrame({"question_id": ids, "score": [float(row[-1]) for row in ASKED]})
    run.to_parquet(folder / "questions.parquet")
    (folder / "results.json").touch()
    command = [sys.executable, PROGRAM, tmp_path, tmp_path / "results", "image mean"]
    subprocess.run([*command, "--output", tmp_path / "out.json"], check=True)
    frequency, opened, closed, kinds = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert frequency["columns"][1:] == ["image mean", "questions"]
    assert frequency["rows"] == [
        ["0: outside the vocabulary", "0.000", "1"],
        ["1 to 4", "0.500", "2"],
        ["5 to 19", "1.000", "1"],
    ]
    assert sorted(opened["rows"]) == [
        ["another question with the same answer, about the image", "1.000", "1"],
        ["the image", "0.000", "1"],
        ["the question, about another image", "0.000", "1"],
        ["the question, about the image", "1.000", "1"],
    ]
    assert closed["rows"] == [["neither the question nor the image", "1.000", "1"]]
    assert kinds["rows"] == []
    absent = subprocess.run([*command, "hops", "--output", tmp_path / "out.json"], capture_output=True, text=True)
    assert absent.returncode == 2 and "no finished run of 'hops'" in absent.stderr
