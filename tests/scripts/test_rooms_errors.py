"""The analysis of errors on rooms, on a label map whose shares, distances and ratios are counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

PROGRAM = Path(__file__).parents[2] / "scripts" / "rooms_errors.py"
ROWS = [  # question, kind, right answer, given answer
    ("is there a bed in the left half of the picture", "exists", "yes", "yes"),  # 5 of 50 cells
    ("is there a lamp in the right half of the picture", "exists", "yes", "no"),  # 10 of 50
    ("is there a bed in the right half of the picture", "exists", "no", "yes"),  # there is none: not counted
    ("is the bed to the left of the lamp", "side", "yes", "yes"),  # columns 0 and 9 of 10
    ("which is bigger the bed or the lamp", "bigger", "lamp", "bed"),  # 5 cells and 10
    ("what is at the right of the picture", "where", "lamp", "lamp"),
]


@pytest.mark.slow
def test_groups_accuracy_by_measures_of_the_label_maps(tmp_path):
    labels = np.zeros((10, 10), np.uint8)
    labels[:5, 0], labels[:, 9] = 1, 2
    (tmp_path / "labels").mkdir()
    Image.fromarray(labels).save(tmp_path / "labels" / "image1.png")
    (tmp_path / "classes.txt").write_text("bed\nlamp\n")
    table = pd.DataFrame(ROWS, columns=["question", "kind", "answer", "given"]).assign(image_id="image1")
    table.drop(columns="given").to_csv(tmp_path / "train.csv", index=False)
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        given = table.drop(columns=["kind", "answer"]).rename(columns={"given": "answer"})
        given.to_parquet(tmp_path / run / "questions.parquet")
    arguments = [tmp_path, tmp_path / "classes.txt", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "out.json"]
    subprocess.run([sys.executable, PROGRAM, *arguments], check=True)
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert [table["rows"] for table in tables] == [
        [["0.08 to 0.12", "1.000", "1"], ["0.12 to 0.2", "0.000", "1"]],
        [["0.3 to 1", "1.000", "1"]],
        [["1.8 to 2.5", "0.000", "1"]],
        [["lamp", "1.000", "1"]],
    ]
