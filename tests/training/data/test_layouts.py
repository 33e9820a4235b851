"""Data in memory, conversations and WebDataset shards give the rows of the same table on disk."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import pandas
import pytest
from helpers.data_files import two_images
from PIL import Image

from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.data.schema import FEATURES


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return two_images(tmp_path)


RECORDS = [
    {"image": "a.png", "question": "what is it", "answer": "cup"},
    {"image": "b.png", "question": "how many", "answer": "2"},
    {"image": "a.png", "question": "where is it", "answer": "left"},
]


def seen(rows) -> list[tuple]:
    return [
        (row["question"], row["answers"][0]["answer"], row["image"].convert("RGB").getpixel((0, 0))[0]) for row in rows
    ]


EXPECTED = [("what is it", "cup", 0), ("how many", "2", 100), ("where is it", "left", 0)]


# In memory


@pytest.mark.parametrize(
    "as_data",
    [list, tuple, pandas.DataFrame, datasets.Dataset.from_list, lambda records: iter_dataset(records)],
    ids=["list", "tuple", "DataFrame", "Dataset", "IterableDataset"],
)
def test_data_in_memory_is_read_like_a_table(folder, as_data):
    rows = load_rows(as_data(RECORDS), images=folder / "images")
    assert isinstance(rows, datasets.Dataset) and rows.features == FEATURES
    assert seen(rows) == EXPECTED
    assert rows["image_id"][:] == ["a.png", "b.png", "a.png"]


def iter_dataset(records):
    return datasets.Dataset.from_list(records).to_iterable_dataset()


def test_decoded_images_in_memory_are_grouped_by_content(folder):
    records = [record | {"image": Image.open(folder / "images" / record["image"])} for record in RECORDS]
    rows = load_rows(records)
    assert seen(rows) == EXPECTED
    assert rows[0]["image_id"] == rows[2]["image_id"] != rows[1]["image_id"]
    table = datasets.Dataset.from_list(
        records,
        datasets.Features(
            {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
        ),
    )
    assert seen(load_rows(table)) == seen(load_rows(table, streaming=True)) == EXPECTED


def test_data_in_memory_is_cut_or_has_splits(folder):
    options = {"images": folder / "images"}
    sides = [load_rows(RECORDS, split=split, validation_ratio=0.34, **options) for split in ("train", "validation")]
    assert [len(side) for side in sides] == [2, 1]
    table = datasets.Dataset.from_list(RECORDS)
    splits = datasets.DatasetDict(train=table, validation=table.select([1]))
    assert seen(load_rows(splits, split="validation", **options)) == EXPECTED[1:2]
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        load_rows(splits, split="test", **options)
    with pytest.raises(ValueError, match="cut it with validation_ratio, or give a DatasetDict"):
        load_rows(RECORDS, split="validation", **options)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (3, {}, "the int is no data: give a folder, a file, a Dataset, a DataFrame or a list of dicts"),
        (["a.png"], {}, "row 0: a row is a dict of columns, not 'a.png'"),
        ([], {}, "the list: has no rows"),
        (RECORDS, {"format": "hub"}, "reads files, but data is a list: leave `format` out"),
        ([{"image": "a", "question": "q"}], {}, "no column answers or answer"),
    ],
)
def test_refuses_other_data_in_memory(data, options, message):
    with pytest.raises(ValueError, match=message):
        load_rows(data, **options)


def test_missing_cells_of_a_frame_are_empty(folder):
    frame = pandas.DataFrame([RECORDS[0] | {"answer": 1}, RECORDS[1] | {"answer": None}])
    with pytest.raises(ValueError, match="the DataFrame row 1: the answer is empty"):
        load_rows(frame, images=folder / "images")
    assert load_rows(frame[:1], images=folder / "images")[0]["answers"] == [{"answer": "1", "count": 1}]


# Conversations


def cauldron(folder: Path) -> dict:
    texts = [{"user": "what is it", "assistant": "cup", "source": "x"}, {"user": "where is it", "assistant": "left"}]
    return {"images": [{"path": str(folder / "images" / "a.png"), "bytes": None}], "texts": texts}


def messages(folder: Path) -> dict:
    def content(text):
        return [{"type": "text", "text": text}]

    return {
        "image": str(folder / "images" / "a.png"),
        "messages": [
            {"role": "system", "content": "You answer questions."},
            {"role": "user", "content": [{"type": "image"}, *content("what is it")]},
            {"role": "assistant", "content": content("cup")},
            {"role": "user", "content": "where is it"},
            {"role": "assistant", "content": "left"},
        ],
    }


def messages_with_image(folder: Path) -> dict:
    record = messages(folder)
    path = record.pop("image")
    record["messages"][1]["content"][0] = {"type": "image", "image": path}
    return record


def llava(folder: Path) -> dict:
    return {
        "id": "000",
        "image": str(folder / "images" / "a.png"),
        "conversations": [
            {"from": "human", "value": "<image>\nwhat is it"},
            {"from": "gpt", "value": "cup"},
            {"from": "human", "value": "where is it"},
            {"from": "gpt", "value": "left"},
        ],
    }


@pytest.mark.parametrize("layout", [cauldron, messages, messages_with_image, llava])
def test_each_turn_of_a_conversation_is_a_row(folder, layout):
    rows = load_rows([layout(folder)])
    assert seen(rows) == [EXPECTED[0], EXPECTED[2]]
    assert len(set(rows["question_id"])) == 2
    assert rows["image_id"][0] == rows["image_id"][1]


def test_conversations_are_read_from_a_json_list(folder):
    record = llava(folder) | {"image": "a.png"}
    (folder / "train.json").write_text(json.dumps([record, record | {"id": "001", "image": "b.png"}]))
    rows = load_rows(folder)
    assert rows["question_id"][:] == ["000-0", "000-1", "001-0", "001-1"]
    assert rows["image_id"][:] == ["a.png", "a.png", "b.png", "b.png"]


def test_conversations_with_images_are_read_from_parquet(folder):
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "texts": datasets.List({"user": datasets.Value("string"), "assistant": datasets.Value("string")}),
        }
    )
    record = {
        "images": [Image.open(folder / "images" / "a.png")],
        "texts": [{"user": "what is it", "assistant": "cup"}],
    }
    table = datasets.Dataset.from_list([record], features)
    (folder / "hub").mkdir()
    table.to_parquet(str(folder / "hub" / "train.parquet"))
    assert seen(load_rows(table)) == EXPECTED[:1]
    assert seen(load_rows(folder / "hub")) == EXPECTED[:1]
    assert seen(load_rows(str(folder / "hub"), format="hub")) == EXPECTED[:1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"texts": "what"}, "`texts` is a list of turns"),
        ({"texts": [{"user": "what", "assistant": None}]}, "the answer is empty"),
        ({"images": ["a.png", "b.png"]}, "has 2 images; a question is about one"),
        ({"images": []}, "no image"),
    ],
)
def test_refuses_conversations_of_another_form(folder, changed, message):
    with pytest.raises(ValueError, match=f"the list row 0.*{message}"):
        load_rows([cauldron(folder) | changed])


def test_refuses_a_question_without_a_reply(folder):
    record = llava(folder)
    with pytest.raises(ValueError, match="turn 2 of `conversations` is no question of the user with a reply"):
        load_rows([record | {"conversations": record["conversations"][:3]}])


# WebDataset


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, parts in samples.items():
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_webdataset_shards_are_read(folder):
    images = {name: (folder / "images" / f"{name}.png").read_bytes() for name in "ab"}
    questions = [{name: record[name] for name in ("question", "answer")} for record in RECORDS]
    first = {"png": images["a"], "json": json.dumps([questions[0], questions[2]]).encode()}
    second = {"question.txt": b"how many\n", "answer.txt": b"2\n", "question_id.txt": b"007\n", "png": images["b"]}
    write_shard(folder / "shards" / "train-000.tar", {"000": first})
    write_shard(folder / "shards" / "train-001.tar", {"x/001": second})
    rows = load_rows(folder / "shards", format="webdataset")
    assert seen(rows) == [EXPECTED[0], EXPECTED[2], EXPECTED[1]]
    assert rows["image_id"][:] == ["000", "000", "x/001"] and rows["question_id"][2] == "007"
    stream = load_rows(folder / "shards", format="webdataset", streaming=True)
    assert stream.num_shards == 2 and seen(stream) == seen(rows)


def test_webdataset_names_what_is_wrong(folder):
    with pytest.raises(ValueError, match=r"no train\.tar or train-\*\.tar"):
        load_rows(folder, format="webdataset")
    (folder / "train.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"train\.tar: cannot be read as a tar file"):
        load_rows(folder, format="webdataset")
    write_shard(folder / "train.tar", {"000": {"json": b"{"}})
    with pytest.raises(ValueError, match=r"000\.json: is neither an image, JSON nor text"):
        load_rows(folder, format="webdataset")
    write_shard(folder / "train.tar", {"000": {"json": b'{"question": "q", "answer": "x"}'}})
    with pytest.raises(ValueError, match=r"sample 000: no image"):
        load_rows(folder, format="webdataset")
