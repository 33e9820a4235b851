"""Cells that are no text, images in every form that tables hold, and multiple choice."""

import base64
import decimal
import io
import json
import logging
import math

import datasets
import numpy as np
import pytest
from helpers.data_files import draw
from PIL import Image

from modeling_qca.training.data.rows import load_rows


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "a.png", shade=40)
    return tmp_path


def row(folder, **fields) -> dict:
    return {"image": str(folder / "a.png"), "question": "what", "answer": "cup"} | fields


def encoded(shade: int = 40, size=(12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def answers(folder, *values) -> list[list[str]]:
    rows = load_rows([row(folder, answer=value) for value in values])
    return [[answer["answer"] for answer in of] for of in rows["answers"]]


# Answers and questions


def test_whole_numbers_have_one_form(folder):
    values = (1, 1.0, np.int64(1), np.float32(1), 0.5, "1")
    assert answers(folder, *values) == [["1"], ["1"], ["1"], ["1"], ["0.5"], ["1"]]
    assert answers(folder, [1, 1.0, "two"], ("x", "y"), np.array(["x", "y"])) == [["1", "two"], ["x", "y"], ["x", "y"]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "the answer is empty"),
        (None, "the answer is empty"),
        ([], "the answer is empty"),
        (["cup", math.nan], "the answer is empty"),
        ({"cup", "mug"}, "an answer is a text, a number, a list"),
        ({"text": "cup"}, "an answer is a text, a number, a list"),
        ([["cup"]], "an answer is a text, a number, a list"),
        (True, "truth value True: write it as text, such as yes or no"),
        (math.inf, "of type float, not a text"),
        ("['cup', 'mug']", "is a list written as text"),
        ("{'cup': 1}", "is a list written as text"),
        ("{'cup', 'mug'}", "is a list written as text"),
    ],
)
def test_refuses_answers_that_are_no_text(folder, value, message):
    with pytest.raises(ValueError, match=f"the list row 0: .*{message}"):
        load_rows([row(folder, answer=value)])


@pytest.mark.parametrize("text", ["(red)", "[illegible]", "{x}", "(1)", "none", "nan", "N/A"])
def test_texts_that_look_like_containers_stay(folder, text):
    assert answers(folder, text) == [[text]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["what", "where"], "write one row for each question"),
        ({"en": "what"}, "of type dict, not a text"),
        (7, "of type int, not a text"),
        (math.nan, "the question is empty"),
        ("['what']", "is a list written as text"),
    ],
)
def test_refuses_questions_that_are_no_text(folder, value, message):
    with pytest.raises(ValueError, match=message):
        load_rows([row(folder, question=value)])


def test_ids_of_a_float_column_are_whole_numbers(folder):
    """pandas turns a column of whole numbers with a gap into floats."""
    rows = load_rows([row(folder, question_id=7.0, image_id=3.0), row(folder, question_id=math.nan, image_id=3.0)])
    assert rows["question_id"][:] == ["7", "train-1"] and rows["image_id"][:] == ["3", "3"]
    for unfit in (decimal.Decimal(7), b"7"):
        with pytest.raises(ValueError, match=r"the question id is of type (Decimal|bytes), not a text"):
            load_rows([row(folder, question_id=unfit)])


# Multiple choice


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        (1, ["cat", "dog"], "dog"),  # ScienceQA
        (1.0, ["cat", "dog"], "dog"),
        (0, ["5", "2", "1"], "5"),
        ("B", ["cat", "dog"], "dog"),
        ("(A)", ["cat", "dog"], "cat"),
        ("dog", ["cat", "dog"], "dog"),
        ("A", "['cat', 'dog']", "cat"),  # MMMU writes the list as text
        ("zebra", ["cat", "dog"], "zebra"),
    ],
)
def test_choices_give_the_text_of_the_answer(folder, answer, choices, expected):
    assert [entry["answer"] for entry in load_rows([row(folder, answer=answer, choices=choices)])[0]["answers"]] == [
        expected
    ]


def test_lettered_columns_are_choices(folder):
    letters = {"A": "cat", "B": "dog", "C": None, "D": math.nan}  # MMBench
    assert load_rows([row(folder, answer="B", **letters)])[0]["answers"][0]["answer"] == "dog"
    with pytest.raises(ValueError, match="choice 2 of 2 choices"):
        load_rows([row(folder, answer="C", **letters)])


@pytest.mark.parametrize(
    ("answer", "choices", "message"),
    [
        (2, ["cat", "dog"], "choice 2 of 2 choices; the first is 0"),
        (-1, ["cat", "dog"], "choice -1 of 2 choices"),
        ("1", ["1", "2"], "'1' is one of its choices and also stands for choice '2'"),
        ("A", ["B", "A"], "'A' is one of its choices and also stands for choice 'B'"),
        (0, "cat or dog", "its choices are a list of texts"),
    ],
)
def test_refuses_choices_that_are_unclear(folder, answer, choices, message):
    with pytest.raises(ValueError, match=message):
        load_rows([row(folder, answer=answer, choices=choices)])


# Images


def test_images_of_every_form_give_the_same_picture(folder):
    picture = np.full((8, 12, 3), 40, np.uint8)
    text = base64.b64encode(encoded()).decode()
    forms = [encoded(), text, f"data:image/png;base64,{text}", Image.fromarray(picture), picture, [encoded()]]
    forms += [{"bytes": encoded(), "path": None}, bytearray(encoded())]
    rows = load_rows([row(folder, image=form, image_id=str(number)) for number, form in enumerate(forms)])
    assert [image.getpixel((3, 3)) for image in rows["image"]] == [(40, 40, 40)] * len(forms)
    assert len(set(load_rows([row(folder, image=form) for form in forms[:3]])["image_id"])) == 1


def test_base64_column_of_a_table_is_read(folder):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    assert len(text) > 131072  # the limit of the csv module
    (folder / "train.tsv").write_text(f"index\timage\tquestion\tanswer\n0\t{text}\twhat\tcup\n")  # MMBench
    np.testing.assert_array_equal(np.asarray(load_rows(folder)[0]["image"]), noise)


def test_bytes_column_of_parquet_is_read(folder):
    table = datasets.Dataset.from_list([{"image": encoded(), "question": "what", "answer": "cup"}])
    table.to_parquet(str(folder / "train.parquet"))
    assert load_rows(folder)[0]["image"].getpixel((0, 0)) == (40, 40, 40)


def test_url_is_downloaded_once_and_a_dead_one_is_skipped(folder, monkeypatch):
    fetched = []

    def open_image(source):
        fetched.append(source)
        if "dead" in source:
            raise ValueError(f"Cannot read the image {source}: 404")
        return Image.new("RGB", (4, 4), "red")

    monkeypatch.setattr("modeling_qca.training.data.readers.cells.open_image", open_image)
    urls = ["https://x.test/once.png", "https://x.test/once.png", "https://x.test/dead.png"]
    rows = load_rows([row(folder, image=url) for url in urls], on_bad_image="skip")
    assert rows["image_id"][:] == urls[:2] and fetched == [urls[0], urls[2]]
    assert rows[0]["image"].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("empty", [None, "", math.nan, b"", []])
def test_null_images_are_skipped_or_named(folder, empty, caplog):
    rows = [row(folder), row(folder, image=empty)]
    with pytest.raises(ValueError, match=r"the list row 1: no image; pass on_bad_image: skip"):
        load_rows(rows)
    with caplog.at_level(logging.WARNING):
        assert len(load_rows(rows, on_bad_image="skip")) == 1
    assert "skipped 1 rows" in caplog.text and "row 1: no image" in caplog.text


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (["a.png", "b.png"], "a list of 2 entries; a row has one image"),
        (True, "an image is a file name, URL, encoded bytes or PIL image"),
        ({"a.png"}, "an image is a file name, URL, encoded bytes or PIL image"),
        (np.full((8, 8, 3), 3000, np.int32), "a range without a clear meaning"),
    ],
)
def test_refuses_image_cells_of_another_kind(folder, image, message):
    with pytest.raises(ValueError, match=message):
        load_rows([row(folder, image=image)])


def test_float_and_16_bit_images_keep_their_brightness(folder):
    values = np.linspace(0, 1, 96).reshape(8, 12)
    expected = (values * 255).round()
    tensor = np.repeat(values[None].astype(np.float32), 3, axis=0)  # ToTensor: [3, height, width] in 0..1
    Image.fromarray((values * 65535).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(values.astype(np.float32)).save(folder / "float.tiff")
    forms = [tensor, str(folder / "deep.png"), str(folder / "float.tiff")]
    from modeling_qca.training.data.images import read_image

    for number, form in enumerate(forms):
        (stored,) = load_rows([row(folder, image=form)]).cast_column("image", datasets.Image(decode=False))
        np.testing.assert_allclose(np.asarray(read_image(stored))[..., 0], expected, atol=1.5, err_msg=str(number))


def test_refuses_image_files_of_an_unclear_range(folder):
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(folder / "twelve.png")
    with pytest.raises(ValueError, match=r"twelve\.png cannot be read: .*a range without a clear meaning"):
        load_rows([row(folder, image=str(folder / "twelve.png"))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "AVIF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_files_of_another_kind_name_it_and_the_formats_that_are_read(folder, content, message):
    (folder / "b.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_rows([row(folder, image=str(folder / "b.jpg"))])
    assert all(name in str(caught.value) for name in ("PNG", "JPEG", "WEBP"))


def test_a_file_of_another_format_is_not_reported_as_missing(folder):
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "train.jsonl").write_text(json.dumps(row(folder, image="photo.heic")))
    with pytest.raises(ValueError, match="HEIC"):
        load_rows(folder)
