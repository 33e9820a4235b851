"""Tests of `row_differences.py`: differences of accuracy and their standard errors against a plain loop."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from studies import row_differences

IMAGES = ["a", "a", "b", "c", "c", "c"]
KINDS = ["side", "where", "side", "side", "where", "side"]
STREETS = {"a": "high", "b": "high", "c": "low"}
SCORES = {
    ("one", "step_by_step", "0"): [1, 1, 0, 1, 1, 1],
    ("one", "step_by_step", "1"): [1, 0, 1, 1, 0, 1],
    ("one", "image_mean", "0"): [0, 1, 0, 0, 1, 0],
    ("one", "image_mean", "1"): [0, 1, 1, 0, 0, 1],
    ("two", "views", "1"): [1, 1, 1, 1, 1, 1],
    ("one", "twice", "0"): [0, 0, 0, 0, 0, 0],
    ("two", "twice", "0"): [0, 0, 0, 0, 0, 0],
}


@pytest.fixture
def results(tmp_path):
    for (table, row, seed), scores in SCORES.items():
        folder = tmp_path / "runs" / table / row / seed
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")
        questions = {"question_id": range(6), "image_id": IMAGES, "question_type": KINDS, "score": scores}
        pd.DataFrame(questions).astype({"score": float}).to_parquet(folder / "questions.parquet")
    rows = [f"{image}.jpg,{street}\n" for image, street in STREETS.items()]
    (tmp_path / "images.csv").write_text("image,street\n" + "".join(rows))
    return tmp_path


def run(monkeypatch, folder, *pairs, group_by="street"):
    table = ["--image-table", str(folder / "images.csv"), "--group-by", group_by] if group_by else []
    output = ["--output", str(folder / "out.json")]
    results = ["--results", str(folder / "runs" / "one"), str(folder / "runs" / "two")]
    monkeypatch.setattr("sys.argv", ["row_differences", *pairs, *results, *table, *output])
    row_differences.main()
    return json.loads((folder / "out.json").read_text())["tables"]


def expected(ours, theirs, seeds, kind, unit):
    """A plain loop over questions, as the docstring of `paired_gain` says."""
    sums, counts = {}, {}
    for seed in seeds:
        for place in range(6):
            if kind in ("all", KINDS[place]):
                cluster = unit(IMAGES[place])
                difference = SCORES[*ours, seed][place] - SCORES[*theirs, seed][place]
                sums[cluster] = sums.get(cluster, 0) + difference
                counts[cluster] = counts.get(cluster, 0) + 1
    total = sum(counts.values())
    gain = sum(sums.values()) / total
    error = np.sqrt(sum((sums[cluster] - gain * counts[cluster]) ** 2 for cluster in sums)) / total
    return f"{gain:+.3f} (SE {error:.3f})"


def test_differences_equal_a_loop_over_the_seeds_that_both_rows_finished(results, monkeypatch):
    by_image, by_street = run(monkeypatch, results, "step by step - image mean", "views - step by step")
    mean, step, views = ("one", "image_mean"), ("one", "step_by_step"), ("two", "views")
    assert by_image["columns"] == ["difference (SE by image)", "all", "side", "where"]
    assert by_street["columns"][0] == "difference (SE by street)"
    for table, unit in ((by_image, str), (by_street, STREETS.get)):
        for row, (ours, theirs, seeds) in zip(
            table["rows"], [(step, mean, ("0", "1")), (views, step, ("1",))], strict=True
        ):
            assert row[1:] == [expected(ours, theirs, seeds, kind, unit) for kind in ("all", "side", "where")]
    assert by_image["rows"][0][1] != by_street["rows"][0][1]
    assert run(monkeypatch, results, "step by step - image mean", "views - step by step", group_by=None) == [by_image]


@pytest.mark.parametrize(
    ("pair", "group_by", "message"),
    [
        ("step by step - image men", "street", "0 of these folders have a finished row 'image men'"),
        ("twice - image mean", "street", "2 of these folders have a finished row 'twice'"),
        ("step by step", "street", "'step by step' is no pair of rows"),
        ("step by step - image mean", "city", "no column 'city', only street"),
    ],
)
def test_unknown_name_is_refused_with_its_place(results, monkeypatch, capsys, pair, group_by, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, results, pair, group_by=group_by)
    assert re.search(re.escape(message), capsys.readouterr().err)
    assert not (results / "out.json").exists()
