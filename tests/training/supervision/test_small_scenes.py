"""Scenes with small objects: what they show, ask and point at."""

import csv

import numpy as np
from PIL import Image

from modeling_qca.training.supervision.scenes import SIZES, SMALL_COLORS, write_small_scenes


def test_maps_point_at_the_object_that_a_question_names(tmp_path):
    write_small_scenes(tmp_path, {"train": 3}, seed=0)
    with open(tmp_path / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    masks = np.load(tmp_path / "train_relevance.npz")["mask"]
    assert len(rows) == len(masks) == 3 * 2 * len(SMALL_COLORS)
    shapes = {}
    for row, mask in zip(rows, masks, strict=True):
        assert np.array_equal(mask[0], mask[1])
        words = row["question"].split()
        color = words[-2] if words[0] == "what" else words[2]
        down, across = np.nonzero(mask[0])
        side = 16 * (1 + max(np.ptp(down), np.ptp(across)))  # whole cells, at most one more at each end
        assert side <= SIZES[row["kind"]] + 2 * 16
        if words[0] == "what":
            shapes[row["image_id"], color] = row["answer"]
        else:
            assert (row["answer"] == "yes") == (shapes[row["image_id"], color] == words[-1])
        if mask[0].max() < 1:  # no cell shows the object alone
            continue
        picture = np.asarray(Image.open(tmp_path / "images" / f"{row['image_id']}.jpg"), dtype=float)
        assert picture.shape == (1024, 1024, 3)
        down, across = (16 * place + 8 for place in np.unravel_index(mask[0].argmax(), mask[0].shape))
        near = picture[down - 4 : down + 4, across - 4 : across + 4].reshape(-1, 3).mean(axis=0)
        nearest = min(SMALL_COLORS, key=lambda name: np.abs(near - SMALL_COLORS[name]).sum())
        assert nearest == color, row


def test_scenes_follow_from_the_seed(tmp_path):
    for folder, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_small_scenes(tmp_path / folder, {"train": 1}, seed)
    first, again, other = ((tmp_path / name / "train.csv").read_text() for name in ("first", "again", "other"))
    assert first == again != other
