"""The rows of every kind of source, without answers, and files of questions."""

import errno
import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
from helpers.data_files import draw, write_csv
from helpers.tiny import tiny_image

from modeling_qca.training.prediction.sources import read_questions, source_rows


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    tiny_image(seed).save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(folder: Path, suffix: str) -> Path:
    """A table of two unlabeled questions, whose ids have leading zeros."""
    draw(folder / "a.png"), draw(folder / "b.png", shade=30)
    columns = {"image": ["a.png", "b.png"], "question": ["what is it", "where"], "question_id": ["01827492", "7"]}
    file, frame = folder / f"pairs{suffix}", pd.DataFrame(columns)
    write = {".csv": frame.to_csv, ".xlsx": frame.to_excel, ".parquet": frame.to_parquet}.get(suffix)
    if write is None:
        file.write_text(
            "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in frame.to_numpy().tolist())
        )
    else:
        write(file, index=False)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_a_table_gives_its_pairs_without_answers_and_ids_as_written(tmp_path, suffix):
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl")
    rows = list(source_rows(str(write_pairs(tmp_path, suffix)), None, {}, with_questions=True))
    assert [(row.question, row.question_id) for row in rows] == [("what is it", "01827492"), ("where", "7")]
    assert [Path(row.image).name for row in rows] == ["a.png", "b.png"]


def test_a_table_of_images_alone_serves_questions_of_a_file(tmp_path):
    draw(tmp_path / "images" / "a.png")
    table = write_csv(tmp_path / "photos.csv", "image", "a.png", "missing.png")
    rows = list(source_rows(str(table), None, {}, with_questions=False))
    assert [Path(row.image).name for row in rows] == ["a.png", "missing.png"]
    with pytest.raises(ValueError, match="no column question for question"):
        list(source_rows(str(table), None, {}, with_questions=True))


def test_a_folder_gives_its_images_by_name_also_those_in_its_folders(tmp_path):
    for name in ("b.jpg", "a.png", "deep/er/c.webp"):
        draw(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    rows = list(source_rows(str(tmp_path / "photos"), None, {}, with_questions=False))
    assert [row.image_id for row in rows] == ["a.png", "b.jpg", "deep/er/c.webp"]
    assert all(Path(row.image).is_absolute() for row in rows)
    alone = list(source_rows(str(tmp_path / "photos" / "b.jpg"), None, {}, with_questions=False))
    assert [row.image_id for row in alone] == ["b.jpg"]
    with pytest.raises(ValueError, match="pass a file of them with --questions"):
        source_rows(str(tmp_path / "photos"), None, {}, with_questions=True)


def test_a_glob_gives_its_images_or_the_rows_of_its_tables(tmp_path):
    for name in ("x1.jpg", "x2.jpg", "y.jpg"):
        draw(tmp_path / name)
    found = list(source_rows(str(tmp_path / "x*.jpg"), None, {}, with_questions=False))
    assert [row.image_id for row in found] == ["x1.jpg", "x2.jpg"]
    for number in range(2):
        write_csv(tmp_path / f"t{number}.csv", "image,question", f"x{number + 1}.jpg,what is {number}")
    rows = list(source_rows(str(tmp_path / "t*.csv"), None, {}, with_questions=True))
    assert [row.question for row in rows] == ["what is 0", "what is 1"]


def test_webdataset_shards_give_images_as_bytes(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as archive:
            for name, content in ((f"{shard}.png", encoded(shard)), (f"{shard}.json", b'{"question": "what"}')):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    for source, options in ((str(tmp_path), {"format": "webdataset"}), (str(tmp_path / "train-*.tar"), {})):
        rows = list(source_rows(source, None, options, with_questions=True))
        assert [row.image_id for row in rows] == ["0", "1"]
        assert [row.image["bytes"] for row in rows] == [encoded(0), encoded(1)]


@pytest.mark.parametrize("damage", ["invalid", "truncated"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_an_archive_with_a_damaged_header_in_its_middle_is_refused(tmp_path, damage, suffix):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("0.txt", "1.txt"):
            archive.addfile(tarfile.TarInfo(name))
    whole, start = buffer.getvalue(), tarfile.BLOCKSIZE
    bad = whole[: start + 100] if damage == "truncated" else whole[:start] + b"x" + whole[start + 1 :]
    file = tmp_path / f"photos.{suffix}"
    file.write_bytes(gzip.compress(bad) if suffix == "tar.gz" else bad)
    with pytest.raises(ValueError, match=f"photos.{suffix}: cannot be read as a tar file: .* at byte {start}"):
        list(source_rows(str(file), None, {"format": "webdataset"}, with_questions=False))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    draw(tmp_path / "photos" / "a.png"), draw(tmp_path / "photos" / "shut" / "b.png")
    scandir = os.scandir

    def deny(path):
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)  # root may read every folder
    with pytest.raises(ValueError, match=r"shut: this folder cannot be read \(Permission denied\): make it readable"):
        list(source_rows(str(tmp_path / "photos"), None, {}, with_questions=False))


def test_all_rows_of_a_sheet_that_states_too_small_a_size_are_read(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["question_id", "question", "note"], ["a", "what is it"], [], ["b", "where", "far"]):
        book.active.append(row)
    book.save(tmp_path / "right.xlsx")
    with zipfile.ZipFile(tmp_path / "right.xlsx") as right, zipfile.ZipFile(tmp_path / "wrong.xlsx", "w") as wrong:
        for name in right.namelist():
            wrong.writestr(name, right.read(name).replace(b'<dimension ref="A1:C4"', b'<dimension ref="A1:C2"'))
    assert read_questions(tmp_path / "wrong.xlsx") == [("a", "what is it"), ("b", "where")]


def test_a_data_set_as_on_the_hub_needs_no_answers(tmp_path):
    table = datasets.Dataset.from_dict({"image": [tiny_image(0), tiny_image(1)], "question": ["what", "where"]})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "test.parquet")
    rows = list(source_rows(str(tmp_path), "test", {"format": "hub"}, with_questions=True))
    assert [row.question for row in rows] == ["what", "where"] and all(row.image["bytes"] for row in rows)


def test_conversations_without_replies_are_asked(tmp_path):
    tiny_image(0).save(tmp_path / "1.png")
    record = {"id": "c", "image": "1.png", "conversations": [{"from": "human", "value": "<image>\nwhat"}] * 2}
    (tmp_path / "test.jsonl").write_text(json.dumps(record) + "\n")
    rows = list(source_rows(str(tmp_path / "test.jsonl"), None, {}, with_questions=True))
    assert [(row.question, row.question_id) for row in rows] == [("what", "c-0"), ("what", "c-1")]


def test_questions_come_from_lines_or_from_a_table_with_their_ids(tmp_path):
    lines = tmp_path / "questions.txt"
    lines.write_text("what is it\n\nwhere is it\n")
    assert read_questions(lines) == [("1", "what is it"), ("2", "where is it")]
    table = write_csv(tmp_path / "questions.csv", "question_id,question", "007,what is it", "b,where is it")
    assert read_questions(table) == [("007", "what is it"), ("b", "where is it")]
    table = write_csv(tmp_path / "titled.csv", "Question ID,Question", "007,what is it")
    assert read_questions(table) == [("007", "what is it")]


@pytest.mark.parametrize(
    ("content", "message"),
    [("\n\n", "has no questions"), ("what\nwhat\n", "question occurs twice"), (None, "no such file of questions")],
)
def test_names_what_is_wrong_with_a_file_of_questions(tmp_path, content, message):
    file = tmp_path / "questions.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_questions(file)
