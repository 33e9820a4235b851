"""Regions of the objects that questions name, learned from the questions, and the maps that they give."""

import datasets
import numpy as np
import pytest
import torch

from modeling_qca.training.data.schema import FEATURES
from modeling_qca.training.supervision.detection.word_maps import add_word_maps
from modeling_qca.training.supervision.detection.word_regions import (
    labels_shown,
    learn_word_regions,
    principal_components,
)
from modeling_qca.training.supervision.object_matching import LabelMatcher

pytest.importorskip("inflect")
GRID = (4, 4)


def pictures(count: int, width: int = 8, together: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Features [I, 16, E] of noise, and the patch [I, 2] of each label, -1 if the picture has none.

    Axis 0 is high in the patch of label 0, axis 1 in that of label 1.

    Args:
        together: each picture has both labels.
    """
    generator = np.random.default_rng(0)
    features = generator.normal(scale=0.3, size=(count, 16, width)).astype(np.float32)
    places = np.stack([generator.permutation(16)[:2] for _ in range(count)])
    if not together:
        places[generator.random(places.shape) < 0.5] = -1
    for index, label in np.argwhere(places >= 0):
        features[index, places[index, label], label] += 4
    return features, places


def share_found(regions: np.ndarray, places: np.ndarray) -> float:
    best = regions.argmax(axis=-1)
    return float((best == places)[places >= 0].mean())


def test_regions_are_the_patches_that_only_pictures_with_the_label_have():
    features, places = pictures(40)
    regions = learn_word_regions(torch.from_numpy(features), places >= 0)
    assert regions.shape == (40, 2, 16)
    np.testing.assert_allclose(regions.sum(axis=-1), 1, rtol=1e-5)
    assert share_found(regions, places) > 0.95


def test_marks_tell_labels_apart_that_every_picture_shows():
    features, places = pictures(40, together=True)
    patches = torch.from_numpy(features)
    marks = {
        (index, label): np.eye(16, dtype=np.float32)[places[index, label]] for index in range(6) for label in (0, 1)
    }
    assert share_found(learn_word_regions(patches, places >= 0), places) < 0.9
    assert share_found(learn_word_regions(patches, places >= 0, marks), places) > 0.95


def test_principal_components_are_those_of_a_singular_value_decomposition():
    features = np.random.default_rng(1).normal(size=(5, 6, 4)) @ np.diag([4.0, 2.0, 1.0, 0.5])
    flat = features.reshape(30, 4)
    flat = (flat - flat.mean(axis=0)) / flat.std(axis=0, ddof=1)
    left, values, _ = np.linalg.svd(flat, full_matrices=False)
    expected = left[:, :2] * np.sqrt(values[:2])  # left * values, divided by the square root of the deviation
    found = principal_components(torch.from_numpy(features).float(), 2).flatten(0, 1).numpy()
    for component, reference in zip(found.T, expected.T, strict=True):
        assert abs(np.corrcoef(component, reference)[0, 1]) > 0.999
    np.testing.assert_allclose(np.divide(*found.std(axis=0)), np.divide(*expected.std(axis=0)), rtol=1e-3)


@pytest.mark.parametrize(
    ("question", "answer", "shown"),
    [
        ("is the chair left of the beds", "no", {"chair", "bed"}),
        ("what is at the top", "lamp", {"lamp"}),
        ("is there a bed in the left half", "yes", {"bed"}),
        ("Is there a bed in the left half", "no", set()),
        ("how many beds are there", "0", set()),
        ("how many beds are there", "2", {"bed"}),
        ("can you see a lamp", "No", set()),
        ("can you see the lamp", "no", set()),
        ("is a bed visible", "no", set()),
        ("is a bed in the picture", "no", set()),
        ("are any beds shown", "no", set()),
        ("In the photo, is there a bed?", "no", set()),
        ("which beds are there", "none", set()),
        ("is there a bed", "no ", set()),
        ("Does the room have a bed?", "No.", set()),
        ("is a lamp above the bed", "no", {"bed"}),
        ("what color is the wall", "red", set()),
    ],
)
def test_a_picture_shows_what_question_and_answer_name_unless_the_answer_denies_it(question, answer, shown):
    assert labels_shown(question, answer, LabelMatcher(["bed", "chair", "lamp"])) == shown


def rows_about(questions: list[tuple[int, str, str, object]]) -> datasets.Dataset:
    """Rows of (picture, question, answer, maps)."""
    blank = {"bytes": None, "path": "none.jpg"}
    rows = [
        {
            "image": blank,
            "image_id": f"{picture:02}",
            "question_id": str(index),
            "question": question,
            "question_type": "",
            "answers": [{"answer": answer, "count": 1}],
            "relevance": maps,
        }
        for index, (picture, question, answer, maps) in enumerate(questions)
    ]
    features = datasets.Features({**FEATURES, "image": datasets.Image(decode=False)})
    return datasets.Dataset.from_list(rows, features=datasets.Features({name: features[name] for name in features}))


def word_maps(questions, count=40, hops=2):
    features, places = pictures(count)
    told = [
        (index, f"what color is the {label}", "red", None)
        for index in range(count)
        for number, label in enumerate(("bed", "chair"))
        if places[index, number] >= 0
    ]
    with_prefix = torch.cat([torch.full((count, 1, 8), 9.0), torch.from_numpy(features)], dim=1)
    rows = rows_about([*questions(places), *told])
    filled = add_word_maps(
        rows, ["chair", "bed"], lambda images: with_prefix[[int(image) for image in images]], GRID, hops
    )
    assert filled.features == rows.features
    return filled["relevance"][:], places


def picture_with_both(places) -> int:
    return int(np.flatnonzero((places >= 0).all(axis=1))[0])


def test_the_hops_look_at_the_objects_in_the_order_of_the_question():
    def questions(places):
        picture = picture_with_both(places)
        return [(picture, "is the chair left of the bed", "no", None), (picture, "is it dark", "no", None)]

    (maps, unnamed, *_), places = word_maps(questions)
    bed, chair = places[picture_with_both(places)]
    assert [int(np.argmax(hop)) for hop in np.array(maps).reshape(2, 16)] == [chair, bed]
    assert unnamed is None


def test_the_last_hop_has_the_rest_and_a_missing_hop_repeats_the_last():
    def questions(places):
        return [(picture_with_both(places), "is the chair left of the bed", "no", None)]

    (one_hop, *_), places = word_maps(questions, hops=1)
    bed, chair = places[picture_with_both(places)]
    assert set(np.argsort(np.ravel(one_hop))[-2:]) == {bed, chair}
    (three_hops, *_), _ = word_maps(questions, hops=3)
    assert [int(np.argmax(hop)) for hop in np.array(three_hops).reshape(3, 16)] == [chair, bed, bed]


def test_maps_of_rows_stay_and_only_hops_without_target_are_filled():
    mark = np.zeros((2, *GRID), np.float32)
    mark[0, 3, 3] = 1

    def questions(places):
        picture = picture_with_both(places)
        return [(picture, "is the chair left of the bed", "no", mark), (picture, "is it dark", "no", mark)]

    (half_filled, other, *_), places = word_maps(questions)
    np.testing.assert_array_equal(half_filled[0], mark[0])
    assert int(np.argmax(half_filled[1])) == places[picture_with_both(places)][0]
    np.testing.assert_array_equal(other, mark)


def one_cell(*cells: tuple[int, int]) -> np.ndarray:
    maps = np.zeros((len(cells), *GRID), np.float32)
    for one, cell in zip(maps, cells, strict=True):
        one[cell] = 1
    return maps


@pytest.mark.parametrize(
    ("question", "maps", "is_mark"),
    [
        ("what color is the bed", one_cell((3, 3), (3, 3)), True),
        ("what color is the bed", one_cell((3, 3)), True),
        ("is the couch left of the bed", one_cell((0, 0), (3, 3)), False),
        ("is the couch left of the bed", one_cell((0, 0), (0, 0)), False),  # the bed has no label
        ("is the couch left of the bed", one_cell((0, 0)), False),  # or both
        ("is the picture above the bed", one_cell((0, 0), (0, 0)), False),
        ("is the chair left of the bed", one_cell((0, 0), (3, 3)), False),
        ("what is left of the bed", one_cell((0, 0), (3, 3)), False),
    ],
)
def test_only_a_map_that_is_certainly_of_one_object_is_its_mark(question, maps, is_mark):
    def questions(places):
        picture = picture_with_both(places)
        return [(picture, question, "red", maps), (picture, "is the bed red", "yes", None)]

    (own, other, *_), _ = word_maps(questions)
    np.testing.assert_array_equal(own, maps)
    assert np.array_equal(other, one_cell((3, 3), (3, 3))) == is_mark
    assert not np.array_equal(other, one_cell((0, 0), (0, 0)))


@pytest.mark.parametrize("question", ["is the couch left of the bed", "is the picture above the bed"])
def test_hop_without_target_stays_if_the_question_names_another_object(question):
    maps = one_cell((0, 0), (3, 3))
    maps[0] = 0
    (own, *_), _ = word_maps(lambda places: [(picture_with_both(places), question, "no", maps)])
    np.testing.assert_array_equal(own, maps)


def test_each_row_keeps_its_own_map_of_an_object():
    first, second = np.zeros((2, 2, *GRID), np.float32)
    first[:, 0, 0], second[:, 3, 3] = 1, 1

    def questions(places):
        return [(picture_with_both(places), "what color is the bed", "red", mark) for mark in (first, second)]

    (of_first, of_second, *_), _ = word_maps(questions)
    np.testing.assert_array_equal(of_first, first)
    np.testing.assert_array_equal(of_second, second)


def test_refuses_words_that_no_question_names():
    rows = rows_about([(0, "is it dark", "no", None)])
    with pytest.raises(ValueError, match=r"none of 1 training questions names lamp"):
        add_word_maps(rows, ["lamp"], lambda images: torch.zeros(1, 16, 4), GRID, 2)
