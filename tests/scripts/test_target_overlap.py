"""Tests of `target_overlap.py` on two regions whose columns are known."""

import json

import numpy as np
import pytest
from studies import target_overlap


@pytest.fixture
def questions(tmp_path):
    """Of four columns, the regions fill 1 and 3 in the first `side` question, and 1 to 2 and 2 to 3 in the second."""
    mask = np.zeros((3, 2, 2, 4), np.float16)
    mask[0, 0, :, 0] = mask[0, 1, 0, 2] = 1
    mask[1] = 1
    mask[2, 0, :, 0:2] = mask[2, 1, 1, 1:3] = 0.5
    np.savez(tmp_path / "train_relevance.npz", mask=mask, row=[0, 2, 3])
    kinds = ["side", "side", "exists", "side"]  # the second `side` question has no map
    rows = [f"image{number},{kind},a question,yes\n" for number, kind in enumerate(kinds)]
    (tmp_path / "train.csv").write_text("image_id,kind,question,answer\n" + "".join(rows))
    return tmp_path


def test_distance_width_and_overlap_equal_those_counted_by_hand(questions):
    targets = target_overlap.side_targets(questions)
    distance, width, overlap = target_overlap.column_statistics(targets)
    assert distance == pytest.approx([0.5, 0.25])
    assert width == pytest.approx([0, 0.125])  # two columns, each an eighth from their center
    assert overlap == pytest.approx([0, 0.5])


def test_table_has_the_medians_of_each_folder(questions, monkeypatch):
    output = questions / "out.json"
    monkeypatch.setattr("sys.argv", ["target_overlap", f"streets={questions}", "--output", str(output)])
    target_overlap.main()
    rows = json.loads(output.read_text())["tables"][0]["rows"]
    assert rows == [["streets", "2", "0.38", "0.06", "0.25"]]


def test_data_without_side_questions_is_refused(questions, monkeypatch, capsys):
    table = questions / "train.csv"
    table.write_text(table.read_text().replace("side", "where"))
    monkeypatch.setattr("sys.argv", ["target_overlap", f"a={questions}", "--output", str(questions / "out.json")])
    with pytest.raises(SystemExit):
        target_overlap.main()
    assert "no question of the kind 'side'" in capsys.readouterr().err
