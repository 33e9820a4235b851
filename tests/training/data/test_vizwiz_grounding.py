"""VizWiz-VQA-Grounding in its official layout."""

import datasets
import numpy as np
import pytest
from helpers.data_files import draw, write_json
from PIL import Image

from modeling_qca.training.data.rows import load_rows

NAME = "VizWiz_val_00000001"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "val" / f"{NAME}.jpg", size=(80, 40))
    answered(tmp_path, ["soda"] * 7 + ["coca cola"] * 3)
    write_mask(tmp_path, (10, 0, 30, 20))
    return tmp_path


def answered(folder, answers):
    entry = {"question": "What is this?", "most_common_answer": "soda", "width": 80, "height": 40}
    write_json(folder / "val_grounding.json", {f"{NAME}.jpg": entry | {"answers": answers, "answer_grounding": []}})


def write_mask(folder, box=None, size=(80, 40)):
    pixels = np.zeros(size[::-1], dtype=np.uint8)
    if box is not None:
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = 255
    (folder / "binary_masks_png" / "val").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / "binary_masks_png" / "val" / f"{NAME}.png")


def load(folder, **options):
    return load_rows(folder, format="vizwiz_grounding", split="validation", relevance_grid=(2, 4), **options)


def test_row_has_answers_with_counts_and_the_map_of_the_mask(folder):
    (row,) = load(folder)
    assert (row["question"], row["question_id"], row["image_id"]) == ("What is this?", NAME, NAME)
    assert row["answers"] == [{"answer": "soda", "count": 7}, {"answer": "coca cola", "count": 3}]
    assert np.array(row["relevance"]) == pytest.approx(np.array([[[0.5, 0.5, 0, 0], [0, 0, 0, 0]]]))


def test_answers_may_have_a_confidence(folder):
    answered(folder, [{"answer": "soda", "answer_confidence": "yes"}, {"answer": "cola", "answer_confidence": "no"}])
    assert [answer["answer"] for answer in load(folder)[0]["answers"]] == ["soda", "cola"]


def test_empty_mask_gives_no_map(folder):
    write_mask(folder)
    assert load(folder)[0]["relevance"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_mask(folder, size=(40, 80)), "has 40 x 80 pixels, but its image 80 x 40"),
        (
            lambda folder: (folder / "binary_masks_png/val" / f"{NAME}.png").unlink(),
            "mask of the answer cannot be read",
        ),
        (lambda folder: (folder / "val_grounding.json").write_text("["), "val_grounding.json: not JSON"),
        (lambda folder: write_json(folder / "val_grounding.json", {"a.jpg": {"question": "?"}}), "has no answers"),
        (lambda folder: (folder / "val_grounding.json").unlink(), "no such file of questions"),
    ],
)
def test_refuses_a_malformed_folder(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_maps_may_lie_elsewhere(folder):
    (folder / "binary_masks_png" / "val").rename(folder / "masks")
    with pytest.raises(ValueError, match=r"binary_masks_png/val: no such file or folder"):
        load(folder)
    assert load(folder, maps=folder / "masks")[0]["relevance"] is not None
