"""Errors of a detector on maps whose center of mass and area are known."""

import json
import sys

import numpy as np
import pytest
from helpers.tiny import save_tiny_model
from studies import detector_errors
from studies.detector_errors import CONDITIONS, Errors, with_errors

from modeling_qca.training.supervision.scenes import write_scenes

OBJECT = np.zeros((20, 20), dtype=np.float32)
OBJECT[8:12, 8:12] = 1


def rows(count, *maps):
    return [{"image_id": f"image{number}", "relevance": [one.tolist() for one in maps]} for number in range(count)]


def centers(errors):
    shifted = [with_errors(row, errors, seed=0)[0] for row in rows(400, OBJECT)]
    places = np.arange(20) + 0.5
    return np.array([(one.sum(1) @ places, one.sum(0) @ places) / one.sum() for one in shifted]) / 20


def test_maps_without_errors_are_the_true_ones():
    assert (with_errors(rows(1, OBJECT, OBJECT.T)[0], Errors(), seed=0) == [OBJECT, OBJECT.T]).all()
    assert with_errors({"image_id": "a", "relevance": None}, Errors(), seed=0) is None


def test_shift_has_the_given_deviation_in_both_directions():
    found = centers(Errors(shift=0.1))
    assert found.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.02)
    assert found.std(axis=0) == pytest.approx([0.1, 0.1], abs=0.015)


def test_share_of_missed_maps_is_the_given_one():
    found = [with_errors(row, Errors(missed=0.25), seed=0) for row in rows(800, OBJECT)]
    assert np.mean([one is None for one in found]) == pytest.approx(0.25, abs=0.05)
    assert all(one is None or (one == OBJECT).all() for one in found)


def test_false_boxes_add_to_the_given_share_of_maps():
    found = [with_errors(row, Errors(false=0.5), seed=0)[0] for row in rows(800, OBJECT)]
    assert all((one >= OBJECT).all() and one.max() == 1 for one in found)
    assert np.mean([one.sum() > OBJECT.sum() + 1e-4 for one in found]) == pytest.approx(0.5, abs=0.08)


def test_object_has_one_error_in_all_questions_of_its_picture():
    errors = Errors(0.2, 0.3, 0.3)
    first, second = (with_errors(row, errors, seed=1) for row in (*rows(1, OBJECT, OBJECT), rows(1, OBJECT)[0]))
    assert (first is None) == (second is None)
    others = [with_errors(row, Errors(shift=0.2), seed=1)[0] for row in rows(2, OBJECT)]
    assert (others[0] != others[1]).any()
    assert (with_errors(rows(1, OBJECT)[0], Errors(shift=0.2), seed=2)[0] != others[0]).any()


@pytest.mark.slow
def test_trains_each_condition_once_and_writes_its_table(tmp_path, monkeypatch):
    write_scenes(tmp_path / "scenes", {"train": 6, "validation": 2}, seed=0)
    save_tiny_model(tmp_path / "tiny")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {tmp_path / 'scenes'}\nmodel: {tmp_path / 'tiny'}\nattention_supervision: every_hop\nmax_steps: 1\n"
    )
    chosen = ["true maps", "50 % missed"]
    files = [str(tmp_path / name) for name in ("recipe.yaml", "runs", "errors.json")]
    words = [*files[:2], "--output", files[2], "--conditions", *chosen, "--learning_rate", "1e-4"]
    monkeypatch.setattr(sys, "argv", ["detector_errors.py", *words])
    detector_errors.main()
    results = json.loads((tmp_path / "errors.json").read_text())
    runs = results["runs"]
    assert runs.keys() == set(chosen) < CONDITIONS.keys()
    assert runs["50 % missed"]["0"]["with_maps"] < runs["true maps"]["0"]["with_maps"]
    assert [row[:2] for row in results["tables"][0]["rows"]] == [["true maps", "1"], ["50 % missed", "1"]]
    monkeypatch.setattr(detector_errors, "train_with_errors", None)
    detector_errors.main()
