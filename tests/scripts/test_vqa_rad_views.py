"""Tests of `vqa_rad_views.py`: which picture each question is asked about, and the split of the views."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from studies import vqa_rad_views

from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.splits import load_splits

QUESTIONS = ["is it the heart", "is it on the left", "which organ"] * 4
ANSWERS = ["yes", "yes", "RLL"] * 4


@pytest.fixture
def folders(tmp_path, monkeypatch):
    (tmp_path / "own" / "images").mkdir(parents=True)
    names = [f"{index // 3}.jpg" for index in range(12)]
    for name in set(names):
        shades = np.tile(np.arange(100, dtype=np.uint8) * 2, (80, 1))  # brighter to the right
        Image.fromarray(shades).save(tmp_path / "own" / "images" / name)
    questions = pd.DataFrame({"image": names, "question": QUESTIONS, "answer": ANSWERS, "answer_type": "open"})
    questions.to_csv(tmp_path / "own" / "train.csv", index=False)
    monkeypatch.setattr("sys.argv", ["vqa_rad_views", str(tmp_path / "own"), str(tmp_path / "views")])
    vqa_rad_views.main()
    return tmp_path / "own", tmp_path / "views"


def test_only_questions_without_a_side_are_asked_about_a_mirrored_picture(folders):
    table = pd.read_csv(folders[1] / "train.csv")
    mirrored = table[table["image"].str.startswith("mirror_")]
    assert set(mirrored["question"]) == {"is it the heart"} and len(mirrored) == 4
    assert len(table) == 12 * (1 + vqa_rad_views.VIEWS)
    for name in set(table["image"]):
        with Image.open(folders[1] / "images" / name) as picture:
            row = np.asarray(picture.convert("L"), dtype=float)[0]
            assert picture.width >= 100 * vqa_rad_views.KEPT - 1 and picture.height >= 80 * vqa_rad_views.KEPT - 1
        assert (row[-1] < row[0]) == name.startswith("mirror_")


def test_views_have_the_split_of_their_questions(folders):
    own, views = map(str, folders)
    common = {"model": "qca-tiny", "validation_ratio": 0.3, "output_dir": "runs", "data_seed": 1}
    plain = load_splits(make_recipe({**common, "data": own}, "plain"))[1]
    keys = {"data": views, "validation_data": f"{views}/rows", "validation_options": {"images": f"{views}/images"}}
    train, validation = load_splits(make_recipe({**common, **keys, "group_by": "row"}, "views"))
    assert validation["question_id"] == plain["question_id"]
    assert not set(train["row"]) & set(validation["row"])
    assert len(train) == (12 - len(validation)) * (1 + vqa_rad_views.VIEWS)
