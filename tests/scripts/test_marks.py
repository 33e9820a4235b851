"""Tests of `marks.py` against the recipe key that it measures."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from studies import marks

from modeling_qca.training.data.schema import FEATURES
from modeling_qca.training.fitting.recipe import Recipe
from modeling_qca.training.fitting.splits import Splits
from modeling_qca.training.supervision.detection.word_maps import add_word_maps
from modeling_qca.training.supervision.detection.word_regions import principal_components
from modeling_qca.training.supervision.label_maps import LabelMaps

pytest.importorskip("inflect")
LABELS = ["bed", "chair", "lamp"]
ASKED = [
    ("p0", "is there a bed in the picture", "yes"),
    ("p0", "is the chair left of the bed", "no"),
    ("p1", "is there a bed", "no"),
    ("p1", "what is at the top", "lamp"),
    ("p2", "which is bigger the lamp or the chair", "lamp"),
    ("p2", "is there a lamp", "yes"),
]


def test_regions_of_words_without_marks_are_the_maps_of_object_words():
    answers = [[{"answer": answer, "count": 1}] for _, _, answer in ASKED]
    values = {
        "question_id": [str(index) for index in range(len(ASKED))],
        "image_id": [photo for photo, _, _ in ASKED],
        "question": [question for _, question, _ in ASKED],
        "answers": answers,
    }
    empty = {name: [None] * len(ASKED) for name in FEATURES if name not in values}
    rows = datasets.Dataset.from_dict({**values, **empty}, features=FEATURES)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 257, 8)).astype(np.float32))
    study = marks.Study(
        Recipe(data="rooms", model="model"),
        Splits(rows, rows, rows),
        LabelMaps(Path("labels"), dict(enumerate(LABELS, start=1)), {}),
    )
    study.patches = principal_components(features[:, 1:])
    row = marks.ROWS["no marks, regions of words"]
    measured = study.question_maps(row, 0, study.region_maps(row, []))
    filled = add_word_maps(rows, LABELS, lambda images: features, (16, 16), 2)["relevance"]
    assert sorted(measured) == [index for index, maps in enumerate(filled) if maps is not None] == [0, 1, 4, 5]
    for index, maps in measured.items():
        np.testing.assert_allclose(shares(maps), shares(np.array(filled[index])), rtol=1e-4)


def shares(maps: np.ndarray) -> np.ndarray:
    """The maps as training uses them: the sum of each is 1."""
    return maps / maps.sum(axis=(1, 2), keepdims=True)
