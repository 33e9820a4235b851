"""Relevance maps against target regions, beside the maps of shuffled questions."""

import datasets
import numpy as np

from modeling_qca.training.evaluation.attention import attention_table, pointing_hits, shuffle_questions


def test_shuffles_only_questions_whose_image_has_several():
    rows = datasets.Dataset.from_dict({"image_id": ["a", "b", "a", "c"], "question": ["1", "2", "3", "4"]})
    shuffled, indices = shuffle_questions(rows, seed=0)
    assert (indices, shuffled["image_id"][:], shuffled["question"][:]) == ([0, 2], ["a", "a"], ["3", "1"])


def test_compares_maps_of_shuffled_questions_with_the_original_targets():
    corner, other = np.zeros((2, 4, 4), np.float32)
    corner[0, 0] = other[3, 3] = 1
    rows = datasets.Dataset.from_dict({"relevance": [[corner], [other], [corner]]})
    maps = [corner[None], other[None], corner[None]]
    pointing = attention_table(maps, rows, {0: other[None], 1: other[None]})["pointing"]
    assert (pointing["model"], pointing["shuffled_question"]) == (1, 0.5)
    table = attention_table(maps, rows, {1: other[None]})
    assert table["pointing"]["shuffled_question"] == 1
    assert table["maps"] == {"model": 3, "center": 3, "uniform": 3, "shuffled_question": 1}
    assert set(attention_table(maps, rows, {})["pointing"]) == {"model", "center", "uniform"}


def test_leaves_out_rows_whose_last_map_is_zero():
    corner, zero = np.zeros((2, 4, 4), np.float32)
    corner[0, 0] = 1
    rows = datasets.Dataset.from_dict({"relevance": [[corner, zero], [zero, corner], None, []]})
    maps = [np.stack([corner, corner])] * 4
    assert attention_table(maps, rows, {})["maps"]["model"] == 1
    assert pointing_hits(maps, rows) == {1: 1.0}
