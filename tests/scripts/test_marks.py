"""Tests of `marks.py` against the recipe key that it measures."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
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
    study = marks_study(Path("labels"))
    rows = study.splits.train
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 257, 8)).astype(np.float32))
    study.patches = principal_components(features[:, 1:])
    row = marks.ROWS["no marks, regions of words"]
    measured = study.question_maps(row, 0, study.region_maps(row, []))
    filled = add_word_maps(rows, LABELS, lambda images: features, (16, 16), 2)["relevance"]
    assert sorted(measured) == [index for index, maps in enumerate(filled) if maps is not None] == [0, 1, 4, 5]
    for index, maps in measured.items():
        np.testing.assert_allclose(shares(maps), shares(np.array(filled[index])), rtol=1e-4)


def test_box_covers_its_share_of_photos_of_different_sizes(tmp_path):
    for photo, size in (("p0", (32, 64)), ("p1", (64, 32)), ("p2", (64, 64))):  # height and width
        save_labels(tmp_path / f"{photo}.png", size)
    study = marks_study(tmp_path)
    row = marks.ROWS["all boxes"]
    drawn = study.region_maps(row, study.marked(row, range(len(ASKED))))
    for photo in ("p0", "p1"):
        expected = np.zeros((16, 16))
        expected[:8, :8] = 1
        np.testing.assert_allclose(drawn[photo, "bed"], expected)


def test_objects_of_the_least_certain_question_are_marked_first(tmp_path, monkeypatch):
    for photo in ("p0", "p1", "p2"):
        save_labels(tmp_path / f"{photo}.png", (64, 64))
    study = marks_study(tmp_path)
    monkeypatch.setattr(marks, "question_confidence", lambda checkpoint, rows, file: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    order = study.order(marks.ROWS["150 boxes, least certain first"], 0, Path("run"))
    assert study.marked(marks.Row(2), order) == [("p2", "lamp"), ("p2", "chair")]


def test_model_draws_the_maps_of_each_question(monkeypatch):
    def one_cell(model, rows, collator, description):
        maps = np.zeros((len(rows), 2, 4, 4), np.float32)
        for drawn, name in zip(maps, rows["question_id"], strict=True):
            drawn[0].flat[int(name)] = 0.5
        return {"relevance": list(maps)}

    study = marks_study(Path("labels"))
    study.photo_of = study.photo_of[::-1]  # the order by photo is then another one
    for name in ("load_checkpoint", "load_processor", "QuestionCollator"):
        monkeypatch.setattr(marks, name, lambda *_: SimpleNamespace(config=None))
    monkeypatch.setattr(marks, "predict", one_cell)
    drawn = study.drawn_by_model(Path("run"))
    assert {index: maps[0].argmax() for index, maps in drawn.items()} == {index: index for index in range(len(ASKED))}
    assert all(maps.max() == 1 for maps in drawn.values())


@pytest.mark.parametrize(("options", "splits"), [([], {0: 0, 1: 0}), (["--split-by-seed"], {0: 0, 1: 1})])
def test_split_is_that_of_the_seed_if_asked(tmp_path, monkeypatch, options, splits):
    measured = {}

    class Study:
        def __init__(self, recipe, *_):
            self.split = recipe.data_seed

        def measure(self, name, seed, runs):
            measured[seed] = self.split
            return {"accuracy": 0.5, "pointing": 0.5, "marks": 0, "with_maps": 0}

    monkeypatch.setattr(marks, "Study", Study)
    monkeypatch.setattr(marks, "read_splits", lambda recipe: None)
    (tmp_path / "recipe.yaml").write_text("data: rooms\nmodel: model\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("bed\n")
    files = [str(tmp_path / name) for name in ("recipe.yaml", "labels", "classes.txt", "runs")]
    output = ["--output", str(tmp_path / "marks.json"), "--rows", "no marks", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", ["marks.py", *files, *output, *options])
    marks.main()
    assert measured == splits


def test_table_has_the_shuffled_pointing_of_the_runs_that_measured_it():
    old = {"accuracy": 0.5, "pointing": 0.25, "marks": 0, "with_maps": 0}
    runs = {"no marks": {"0": old}, "50 boxes": {"0": old, "1": old | {"pointing_shuffled": 0.125}}}
    shuffled = [row[-1] for row in marks.table(runs)["rows"]]
    assert shuffled == ["", "0.125"]


def marks_study(labels: Path) -> marks.Study:
    answers = [[{"answer": answer, "count": 1}] for _, _, answer in ASKED]
    values = {
        "question_id": [str(index) for index in range(len(ASKED))],
        "image_id": [photo for photo, _, _ in ASKED],
        "question": [question for _, question, _ in ASKED],
        "answers": answers,
    }
    empty = {name: [None] * len(ASKED) for name in FEATURES if name not in values}
    rows = datasets.Dataset.from_dict({**values, **empty}, features=FEATURES)
    maps = LabelMaps(labels, dict(enumerate(LABELS, start=1)), {})
    return marks.Study(Recipe(data="rooms", model="model"), Splits(rows, rows, rows), maps)


def save_labels(file: Path, size: tuple[int, int]) -> None:
    """A label map with an object of each label in a quarter of the photo."""
    height, width = size
    labels = np.zeros(size, np.uint8)
    labels[: height // 2, : width // 2] = 1
    labels[: height // 2, width // 2 :] = 2
    labels[height // 2 :, : width // 2] = 3
    Image.fromarray(labels).save(file)


def shares(maps: np.ndarray) -> np.ndarray:
    """The maps as training uses them: the sum of each is 1."""
    return maps / maps.sum(axis=(1, 2), keepdims=True)
