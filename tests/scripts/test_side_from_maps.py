"""Tests of `side_from_maps.py`: reading `side` answers from centers of mass, and pointing of each hop."""

import json

import numpy as np
import pytest
from studies import side_from_maps

LEFT, RIGHT = "is the bed to the left of the lamp", "is the bed to the right of the lamp"


def maps_of(*columns):
    """A map of two rows for each hop, with weights for its columns."""
    return np.stack([np.stack([of, of]) for of in np.array(columns, dtype=float)])


@pytest.fixture
def maps():
    return np.stack([maps_of([3, 1, 0, 0], [0, 0, 1, 1]), maps_of([0, 0, 0, 1], [9, 0, 0, 1])])


def test_answer_is_yes_where_the_centers_lie_as_the_question_says(maps):
    assert side_from_maps.answers_of_centers(maps, [LEFT, LEFT]).tolist() == ["yes", "no"]
    assert side_from_maps.answers_of_centers(maps, [RIGHT, RIGHT]).tolist() == ["no", "yes"]


def test_unnormalized_maps_give_the_same_answers(maps):
    scaled = maps * np.array([5.0, 0.1])[None, :, None, None]
    assert side_from_maps.answers_of_centers(scaled, [LEFT, RIGHT]).tolist() == ["yes", "yes"]


def test_pointing_counts_the_maxima_in_the_target_of_their_hop(maps):
    targets = np.stack([maps_of([1, 0, 0, 0], [1, 1, 0, 0]), maps_of([1, 1, 1, 0], [1, 0, 0, 0])])
    assert side_from_maps.pointing(maps, targets) == [0.5, 0.5]


def test_pointing_refuses_targets_of_another_grid(maps):
    with pytest.raises(ValueError, match="hops and grid must be equal"):
        side_from_maps.pointing(maps, maps[..., :2])


def test_table_has_mean_and_deviation_over_the_finished_runs(tmp_path, monkeypatch):
    for seed, finished in (("0", True), ("1", True), ("2", False)):
        (tmp_path / "step_by_step" / seed).mkdir(parents=True)
        if finished:
            (tmp_path / "step_by_step" / seed / "results.json").write_text("{}")
    measured = {"0": (0.5, 0.9, 1.0, 0.8, 0.8), "1": (0.6, 0.9, 1.0, 0.8, 0.8)}
    monkeypatch.setattr(side_from_maps, "_measure", lambda checkpoint: measured[checkpoint[-1]])
    output = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["side_from_maps", str(tmp_path / "step_by_step"), "--output", str(output)])
    side_from_maps.main()
    rows = json.loads(output.read_text())["tables"][0]["rows"]
    assert rows == [["step by step", "2", "0.550 ± 0.071", "0.900", "1.000", "0.800", "0.800"]]
