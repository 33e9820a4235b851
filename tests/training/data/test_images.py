"""Unreadable images are named, or skipped, counted and listed."""

import logging

import datasets
import numpy as np
import pytest
from helpers.data_files import draw, table_folder, write_csv
from PIL import Image

from modeling_qca.training.data.rows import load_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def damaged(tmp_path):
    """Image 2 ends early, image 5 is missing, each shown by two rows of 24."""
    folder = table_folder(tmp_path / "data")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "image2.jpg")
    whole = (folder / "images" / "image2.jpg").read_bytes()
    (folder / "images" / "image2.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "image5.jpg").unlink()
    return folder


def test_unreadable_image_error_names_path_and_row(damaged):
    with pytest.raises(ValueError, match=r"train.csv row 4: image .*image2.jpg cannot be read: .*truncated"):
        load_rows(damaged)


@pytest.mark.parametrize("attempt", ["fresh", "cached"])
def test_skipped_rows_are_listed_also_from_the_cache(damaged, caplog, attempt):
    if attempt == "cached":
        load_rows(damaged, on_bad_image="skip")
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        rows = load_rows(damaged, on_bad_image="skip")
    assert len(rows) == 20
    assert not {"image2", "image5"} & set(rows["image_id"])
    assert "skipped 4 rows" in caplog.text
    for place in ("row 4: ", "row 16: ", "row 7: ", "row 19: "):
        assert place in caplog.text
    assert "no such file" in caplog.text


@pytest.mark.parametrize("in_memory", [False, True])
def test_skipped_rows_are_collected_on_request(damaged, caplog, in_memory):
    data, images = damaged, damaged / "images"
    if in_memory:
        lines = (damaged / "train.csv").read_text().splitlines()[1:]
        data = [dict(zip(("image_id", "question", "answer"), line.split(","), strict=True)) for line in lines]
    for _ in range(2):  # read, then from the cache
        skipped = {}
        assert len(load_rows(data, images=images, on_bad_image="skip", skipped=skipped)) == 20
        assert len(skipped) == 4 and sum("no such file" in fault for fault in skipped.values()) == 2
    assert not caplog.text
    with pytest.raises(ValueError, match="skipped needs on_bad_image"):
        load_rows(data, images=images, skipped={})


def test_repaired_image_is_read_again(damaged):
    assert len(load_rows(damaged, on_bad_image="skip")) == 20
    draw(damaged / "images" / "image2.jpg")
    draw(damaged / "images" / "image5.jpg")
    assert len(load_rows(damaged)) == 24


def test_refuses_an_image_name_that_fits_two_files(tmp_path):
    for suffix in ("png", "jpg"):
        draw(tmp_path / f"a.{suffix}")
    write_csv(tmp_path / "train.csv", "image,question,answer", "a,what,cup")
    with pytest.raises(ValueError, match=r"fits a\.jpg and a\.png"):
        load_rows(tmp_path)


def test_streaming_handles_unreadable_images_like_loading(damaged, caplog):
    with pytest.raises(ValueError, match="row 4: image"):
        list(load_rows(damaged, streaming=True))
    assert len(list(load_rows(damaged, streaming=True, on_bad_image="skip"))) == 20
    assert "skipped 4 rows" in caplog.text
