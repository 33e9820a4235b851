"""Tables, Hub data sets, splits and streams."""

import csv
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from helpers.data_files import draw, table_folder, write_csv
from hypothesis import given
from hypothesis import strategies as st

from modeling_qca.training.data import row_cache
from modeling_qca.training.data.formats import checked_options
from modeling_qca.training.data.relevance_maps import write_maps
from modeling_qca.training.data.rows import data_name, load_rows
from modeling_qca.training.data.schema import FEATURES
from modeling_qca.training.data.splits import group_key, parse_group_by, split_name, split_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


# Columns beside the schema


def streets(folder: Path) -> Path:
    table_folder(folder)
    lines = [f"image{row % 12},what is at {row},answer {row},street {row % 12 // 4}" for row in range(24)]
    write_csv(folder / "train.csv", "image_id,question,answer,Street", *lines)
    return folder


def in_memory(folder: Path) -> datasets.Dataset:
    table = datasets.Dataset.from_csv(str(folder / "train.csv"))
    return table.add_column("image", [str(folder / "images" / f"{name}.jpg") for name in table["image_id"]])


@pytest.mark.parametrize("form", ["file", "dataset", "list"])
def test_group_by_takes_any_column_of_the_table(tmp_path, form):
    data: object = streets(tmp_path)
    if form != "file":
        table = in_memory(tmp_path)
        data = table if form == "dataset" else table.to_list()
    sides = [load_rows(data, split=name, validation_ratio=0.3, group_by="street") for name in ("train", "validation")]
    assert [len(side) for side in sides] == [16, 8]
    assert sides[0].features == datasets.Features({**FEATURES, "street": datasets.Value("string")})
    assert [len(set(side["street"])) for side in sides] == [2, 1]
    assert set(sides[0]["street"]).isdisjoint(sides[1]["street"])


def test_group_by_of_a_missing_or_empty_column_is_refused(tmp_path):
    streets(tmp_path)
    with pytest.raises(ValueError, match=r"no column 'sequence', only image_id, question, answer, Street"):
        load_rows(tmp_path, validation_ratio=0.3, group_by="sequence")
    with pytest.raises(ValueError, match=r"group_by is a text column, such as image_id, .*, not 'answers'"):
        load_rows(tmp_path, validation_ratio=0.3, group_by="answers")
    with pytest.raises(ValueError, match="format vqa_v2 has no column 'sequence', only image_id"):
        load_rows(tmp_path, format="vqa_v2", validation_ratio=0.3, group_by="sequence")
    write_csv(tmp_path / "train.csv", "image_id,question,answer,street", "image0,what,lamp,", "image1,what,bed,a")
    with pytest.raises(ValueError, match=r"train\.csv row 2: its street is empty"):
        load_rows(tmp_path, validation_ratio=0.3, group_by="street")


def test_streamed_rows_have_further_columns(tmp_path):
    rows = load_rows(streets(tmp_path), streaming=True, further_columns=["street"])
    assert next(iter(rows))["street"] == "street 0"


# Arrow


def test_maps_of_several_shapes_are_stored_as_they_are(tmp_path):
    """More rows than are encoded at once, most of them without maps."""
    maps = {0: [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]], 7: [[[0.5]], [[0.25]]], 1203: [[[1.0, 0.0, 2.0]]]}
    records = [
        {"image_id": f"image{row % 12}", "question": f"what {row}", "answer": "lamp", "relevance": maps.get(row)}
        for row in range(1300)
    ]
    table_folder(tmp_path)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    rows = load_rows(tmp_path)
    assert rows.features == FEATURES
    assert {index: value for index, value in enumerate(rows["relevance"]) if value is not None} == maps
    assert rows["question"][1299] == "what 1299"


def test_a_second_start_reads_no_row(tmp_path, monkeypatch):
    first = load_rows(table_folder(tmp_path)).to_list()
    monkeypatch.setattr(row_cache, "generate_rows", lambda *_: pytest.fail("a row was read again"))
    assert load_rows(tmp_path).to_list() == first


def test_rows_that_cannot_be_written_leave_no_file(tmp_path):
    table_folder(tmp_path)
    write_csv(tmp_path / "train.csv", "image_id,question,answer", "image0,what,lamp", "image1,,bed")
    for _ in range(2):
        with pytest.raises(ValueError, match="row 3: the question is empty"):
            load_rows(tmp_path)
    assert [path.suffix for path in (tmp_path / "cache" / "qca_rows").iterdir()] == [".lock"]


# Tables


def test_csv_row_is_read_in_the_schema(tmp_path):
    table_folder(tmp_path)
    rows = load_rows(tmp_path)
    assert rows.features == FEATURES
    assert {name: value for name, value in rows[3].items() if name != "image"} == {
        "image_id": "image3",
        "question": "what is at 3",
        "question_id": "train-3",
        "question_type": "",
        "answers": [{"answer": "answer 3", "count": 1}],
        "relevance": None,
    }
    assert rows[3]["image"].getpixel((0, 0)) == (30, 30, 30)


def test_images_are_stored_as_paths(tmp_path):
    rows = load_rows(table_folder(tmp_path)).cast_column("image", datasets.Image(decode=False))
    assert rows[0]["image"] == {"path": str((tmp_path / "images" / "image0.jpg").resolve()), "bytes": None}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_csv_jsonl_and_parquet_give_the_same_rows(tmp_path, suffix):
    table_folder(tmp_path)
    with open(tmp_path / "train.csv", newline="") as file:
        records = list(csv.DictReader(file))
    expected = load_rows(tmp_path).remove_columns("image").to_list()
    (tmp_path / "train.csv").unlink()
    if suffix == "csv":
        with open(tmp_path / "train.csv", "w", newline="") as file:  # quoted, its columns the other way round
            writer = csv.DictWriter(file, list(records[0])[::-1], quoting=csv.QUOTE_ALL, lineterminator="\r\n")
            writer.writeheader()
            writer.writerows(records)
    elif suffix == "jsonl":
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        datasets.Dataset.from_list(records).to_parquet(str(tmp_path / "train.parquet"))
    assert load_rows(tmp_path).remove_columns("image").to_list() == expected


def test_columns_are_mapped_and_answers_counted(tmp_path):
    draw(tmp_path / "photos" / "a.png")
    record = {"file": "a.png", "q": "what", "labels": ["cup", "cup", "mug"], "sort": "object", "number": 7}
    (tmp_path / "train.jsonl").write_text(json.dumps(record))
    columns = {"image": "file", "image_id": "file", "question": "q", "answers": "labels", "question_type": "sort"}
    rows = load_rows(tmp_path, images=tmp_path / "photos", columns={**columns, "question_id": "number"})
    assert rows[0]["answers"] == [{"answer": "cup", "count": 2}, {"answer": "mug", "count": 1}]
    assert (rows[0]["image_id"], rows[0]["question_id"], rows[0]["question_type"]) == ("a.png", "7", "object")


def test_answer_separator_splits_an_answer(tmp_path):
    draw(tmp_path / "image1.png")
    write_csv(tmp_path / "train.csv", "image,question,answer", 'image1,what,"cup, plate"')
    assert [answer["answer"] for answer in load_rows(tmp_path)[0]["answers"]] == ["cup, plate"]
    rows = load_rows(tmp_path, answer_separator=",")
    assert [answer["answer"] for answer in rows[0]["answers"]] == ["cup", "plate"]


def test_maps_beside_a_table_belong_to_their_rows(tmp_path):
    table_folder(tmp_path, rows=5)
    masks = np.random.default_rng(0).random((2, 2, 3, 4)).astype(np.float16)
    np.savez_compressed(tmp_path / "train_relevance.npz", mask=masks, row=[1, 4], tier=["strict", "coarse"])
    relevance = list(load_rows(tmp_path)["relevance"])
    assert [maps is not None for maps in relevance] == [False, True, False, False, True]
    np.testing.assert_array_equal(np.array(relevance[4], np.float16), masks[1])
    strict = list(load_rows(tmp_path, relevance_filter={"tier": "strict"})["relevance"])
    assert [maps is not None for maps in strict] == [False, True, False, False, False]


def test_single_map_is_read_as_one_hop(tmp_path):
    table_folder(tmp_path, rows=2)
    np.savez(tmp_path / "train_relevance.npz", mask=np.ones((2, 3, 4)))
    assert np.shape(load_rows(tmp_path)[0]["relevance"]) == (1, 3, 4)


def test_relevance_column_may_be_null(tmp_path):
    draw(tmp_path / "a.png")
    lines = [{"image": "a", "question": "q", "answer": "x", "relevance": relevance} for relevance in ([[1, 0]], None)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(load_rows(tmp_path)["relevance"]) == [[[[1, 0]]], None]


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("image,question", "a,what", "no column answers or answer for answers, only image, question"),
        ("image,question,answer", "a,,cup", "train.csv row 2: the question is empty"),
        ("image,question,answer", "a,what,", "train.csv row 2: the answer is empty"),
        ("image,question,answer", ",what,cup", "train.csv row 2: no image"),
        ("image,question,answer", "a,what", "train.csv row 2: has 2 columns, but the header has 3"),
        ("image,question,answer", "a,what,cup,cup", "train.csv row 2: has 4 columns, but the header has 3"),
        ("image,question,answer,relevance", "a,what,cup,[[1]]", "train.csv row 2: a relevance map is lists"),
    ],
)
def test_malformed_table_error_names_file_and_row(tmp_path, header, line, message):
    draw(tmp_path / "a.png")
    write_csv(tmp_path / "train.csv", header, line)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path)


@pytest.mark.parametrize("rows", [1, 20_000])  # to the end of the file, and over the limit of a field
def test_refuses_an_open_quotation_mark(tmp_path, rows):
    draw(tmp_path / "a.png")
    write_csv(tmp_path / "train.csv", "image,question,answer", "a,what,cup", 'a,what,"cup', *["a,what,mug"] * rows)
    with pytest.raises(ValueError, match=r"train\.csv row 3: a quotation mark is open or stray"):
        load_rows(tmp_path)


@pytest.mark.parametrize("answers", [[{"answer": 2}], [{"answer": "cup", "count": "two"}], [{"count": 1}]])
def test_refuses_malformed_counted_answers(tmp_path, answers):
    draw(tmp_path / "a.png")
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "a", "question": "q", "answers": answers}))
    with pytest.raises(ValueError, match=r"train\.jsonl line 1: an answer is a text"):
        load_rows(tmp_path)


def test_refuses_a_list_written_as_text(tmp_path):
    draw(tmp_path / "a.png")
    write_csv(tmp_path / "train.csv", "image,question,answer", """a,what,"['cup', 'mug']\"""")
    with pytest.raises(
        ValueError, match=r"train\.csv row 2: the answer \"\['cup', 'mug'\]\" is a list written as text"
    ):
        load_rows(tmp_path)
    write_csv(tmp_path / "train.csv", "image,question,answer", "a,what,[illegible]")
    assert load_rows(tmp_path)[0]["answers"] == [{"answer": "[illegible]", "count": 1}]


def test_blank_relevance_cell_means_no_map(tmp_path):
    draw(tmp_path / "a.png")
    write_csv(tmp_path / "train.csv", "image,question,answer,relevance", "a,what,cup,")
    assert load_rows(tmp_path)[0]["relevance"] is None


@pytest.mark.parametrize("empty", ["", " ", None])
def test_image_id_defaults_to_the_image_name(tmp_path, empty):
    records = [{"image": f"{name}.png", "image_id": empty, "question": "q", "answer": "x"} for name in "ab"]
    for record in records:
        draw(tmp_path / record["image"])
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert load_rows(tmp_path)["image_id"][:] == ["a.png", "b.png"]


@pytest.mark.parametrize("streaming", [False, True])
def test_refuses_one_image_id_for_two_images(tmp_path, streaming):
    for name in "ab":
        draw(tmp_path / f"{name}.png")
    write_csv(tmp_path / "train.csv", "image,image_id,question,answer", "a,7,q,x", "a,7,r,x", "b,7,q,x")
    with pytest.raises(ValueError, match=r"train\.csv row 4: image_id '7' is of image .*b\.png here, but of .*a\.png"):
        list(load_rows(tmp_path, streaming=streaming))


def test_refuses_a_table_without_rows(tmp_path):
    draw(tmp_path / "a.png")
    write_csv(tmp_path / "train.csv", "image,question,answer")
    with pytest.raises(ValueError, match=r"train\.csv: has no rows$"):
        load_rows(tmp_path)
    write_csv(tmp_path / "train.csv", "image,question,answer", "b,what,cup")
    with pytest.raises(ValueError, match=r"train\.csv: has no rows whose image can be read"):
        load_rows(tmp_path, on_bad_image="skip")


def test_refuses_a_damaged_parquet_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"train\.parquet: cannot be read as Parquet"):
        load_rows(tmp_path)


def test_unexpected_error_names_the_data(tmp_path):
    record = {"image": {"bytes": "text"}, "question": "q", "answer": "x"}
    (tmp_path / "train.jsonl").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{tmp_path.name}: TypeError: "):
        load_rows(tmp_path)


def test_refuses_json_lines_in_another_encoding(tmp_path):
    (tmp_path / "train.jsonl").write_bytes('{"question": "été"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.jsonl: is not text in UTF-8 .*pass `encoding`"):
        load_rows(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask": np.ones((1, 2, 2)), "row": [9]}, "has a map for row 9, but .*train.csv has 3 rows"),
        ({"mask": np.ones((2, 2, 2))}, "has 2 maps and no `row`"),
        ({"mask": np.ones((2, 2, 2)), "row": [1, 0]}, "must ascend"),
        ({"mask": np.ones((2, 2, 2)), "row": [1]}, "relevance.npz: 1 entries in `row` for 2 in `mask`"),
        ({"mask": -np.ones((3, 2, 2))}, "map 0: its relevance map holds a value that is negative"),
        ({"masks": np.ones((3, 2, 2))}, "no array 'mask'"),
    ],
)
def test_refuses_malformed_maps(tmp_path, arrays, message):
    table_folder(tmp_path, rows=3)
    np.savez(tmp_path / "train_relevance.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tabel"}, "format 'tabel' is none of table, hub"),
        ({"image_folder": "x"}, "option 'image_folder' is not one of format table"),
        ({"columns": {"answer": "label"}}, "'answer' is none of image"),
        ({"columns": {"answers": "label"}}, "no column label for answers"),
        ({"columns": "label"}, "option 'columns' is a mapping, as in {question: title}, not 'label'"),
        ({"format": "vqa_hat"}, "format vqa_hat needs option 'maps'"),
        ({"split": "validation"}, "no validation.csv"),
        ({"images": "nowhere"}, "nowhere: no such file or folder"),
        ({"images": None}, "option 'images' is a folder, not None"),
        ({"answer_separator": 1}, "option 'answer_separator' is a text, not 1"),
        ({"relevance_filter": {"fold": 1}}, "option 'relevance_filter' is a mapping"),
        ({"format": "gqa", "relevance_grid": 16}, "option 'relevance_grid' is the number of rows and of columns"),
        ({"format": ["table"]}, "is none of table, hub"),
        ({"validation_ratio": 1.5}, "between 0 and 1"),
        ({"validation_ratio": "a"}, "between 0 and 1, not 'a'"),
        ({"validation_ratio": 0.2, "group_by": 12}, "group_by is a text column, .*, not 12"),
        ({"validation_ratio": 0.2, "streaming": True}, "do not stream"),
        ({"group_by": "image_id"}, "give validation_ratio too"),
        ({"validation_ratio": 0.2, "group_by": "image_id / 12"}, "group_by is a text column"),
        ({"validation_ratio": 0.2, "split": "test"}, "makes train and validation"),
        ({"on_bad_image": "ignore"}, "raise or skip"),
    ],
)
def test_refuses_wrong_options(tmp_path, options, message):
    table_folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "'split' does not belong"),
        ({"streaming": True}, "'streaming' does not belong"),
        ({1: 2}, "the name of an option is a text, not 1"),
    ],
)
def test_checked_options_refuses_misplaced_options(options, message):
    with pytest.raises(ValueError, match=message):
        checked_options(options)


def test_refuses_a_missing_path(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder; for a data set of the Hub"):
        load_rows(tmp_path / "nothing")


def test_changed_table_of_equal_size_is_read_again(tmp_path):
    table = table_folder(tmp_path, rows=3) / "train.csv"
    assert load_rows(tmp_path)[0]["question"] == "what is at 0"
    time = table.stat().st_mtime_ns
    table.write_text(table.read_text().replace("what is at 0", "what is in 0"))
    os.utime(table, ns=(time + 1000, time + 1000))
    assert load_rows(tmp_path)[0]["question"] == "what is in 0"


# Splits


def test_changed_image_in_a_subfolder_is_read_again(tmp_path):
    broken = tmp_path / "images" / "kitchen" / "deep" / "a.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no picture")
    (tmp_path / "images" / "kitchen" / "again").symlink_to(tmp_path / "images")
    draw(tmp_path / "images" / "b.png")
    write_csv(tmp_path / "train.csv", "image,question,answer", "kitchen/deep/a.png,q,yes", "b.png,q,no")
    assert len(load_rows(tmp_path, on_bad_image="skip")) == 1
    draw(broken)
    assert len(load_rows(tmp_path, on_bad_image="skip")) == 2


def test_images_behind_a_link_are_read_and_links_to_nothing_or_to_themselves_are_not(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    draw(data / "photos" / "a.png")
    (data / "train.csv").write_text("image,question,answer\nphotos/a.png,q,yes\nlinked/deep/b.png,q,no\n")
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "b.png").write_bytes(b"not yet copied")
    for folder in (data, data / "photos"):
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "gone.png").symlink_to("nothing.png")
        (folder / "above").symlink_to(data)
    (data / "linked").symlink_to(elsewhere)
    assert len(load_rows(data, on_bad_image="skip")) == 1
    draw(elsewhere / "deep" / "b.png")
    assert len(load_rows(data, on_bad_image="skip")) == 2


@pytest.mark.parametrize("mark", ["run.json", "pyvenv.cfg"])
def test_changed_output_of_a_run_beside_the_table_reads_no_row_again(tmp_path, monkeypatch, mark):
    data = tmp_path / "data"
    draw(data / "photos" / "a.png")
    write_csv(data / "train.csv", "image,question,answer", "photos/a.png,q,yes")
    outputs = [data / "output", data / "runs" / "deep"]
    for output in outputs:
        draw(output / "overlay.png")
        (output / mark).write_text("{}")
    rows = load_rows(data).to_list()
    for output in outputs:
        draw(output / "overlay.png", size=(99, 99))
        draw(output / "baselines" / "overlay.png")
    monkeypatch.setattr(row_cache, "generate_rows", lambda *_: pytest.fail("a row was read again"))
    assert load_rows(data).to_list() == rows


def test_split_selects_the_file(tmp_path):
    table_folder(tmp_path)
    write_csv(tmp_path / "validation.csv", "image_id,question,answer", "image1,what,cup")
    assert (len(load_rows(tmp_path)), len(load_rows(tmp_path, split="validation"))) == (24, 1)


def test_single_file_has_no_validation_split(tmp_path):
    table_folder(tmp_path)
    assert len(load_rows(tmp_path / "train.csv")) == 24
    with pytest.raises(ValueError, match="is one file: cut it with validation_ratio"):
        load_rows(tmp_path / "train.csv", split="validation")


def test_cut_splits_are_disjoint_and_reproducible(tmp_path):
    table_folder(tmp_path)
    train, validation = (
        load_rows(tmp_path, split=split, validation_ratio=0.25, seed=1)["question_id"][:]
        for split in ("train", "validation")
    )
    assert len(validation) == 6
    assert sorted([*train, *validation]) == sorted(f"train-{row}" for row in range(24))
    assert load_rows(tmp_path, split="validation", validation_ratio=0.25, seed=1)["question_id"][:] == validation
    assert load_rows(tmp_path, split="validation", validation_ratio=0.25, seed=2)["question_id"][:] != validation


@given(
    st.lists(st.integers(0, 40), min_size=4, max_size=40),
    st.sampled_from([None, 1, 5]),
    st.floats(0.1, 0.9),
    st.integers(0, 3),
)
def test_split_rows_keeps_groups_together(numbers, divisor, ratio, seed):
    rows = datasets.Dataset.from_dict({"image_id": [f"image{number}.jpg" for number in numbers]})
    group_by = "image_id" if divisor is None else f"image_id // {divisor}"
    sizes = Counter(number // (divisor or 1) for number in numbers)
    wanted = ratio * len(numbers)
    try:
        train, validation = split_rows(rows, ratio, group_by, seed)
    except ValueError:  # only where every group is too large for one side, or one group for the other
        assert min(sizes.values()) >= 2 * wanted or max(sizes.values()) > 2 * (len(numbers) - wanted)
        return
    sides = [{int(name[5:-4]) // (divisor or 1) for name in side["image_id"]} for side in (train, validation)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(sizes)
    assert len(train) + len(validation) == len(numbers)


def test_group_key_divides_the_last_number():
    assert parse_group_by("image_id // 12") == ("image_id", 12)
    assert [group_key(name, 12) for name in ("image11", "image12", "v2_image25.jpg")] == ["0", "1", "2"]
    assert group_key("kitchen", None) == "kitchen"
    with pytest.raises(ValueError, match="'kitchen' has none: `group_by: image_id`"):
        group_key("kitchen", 12)


def test_refuses_a_cut_with_an_empty_side(tmp_path):
    rows = load_rows(table_folder(tmp_path, rows=11, images=11))
    with pytest.raises(ValueError, match=r"11 rows in 1 groups cannot be cut.*: `group_by: image_id`"):
        split_rows(rows, 0.22, "image_id // 12")
    with pytest.raises(ValueError, match=r"11 rows in 11 groups cannot be cut.*: change it, or give more data"):
        split_rows(rows, 0.01, "image_id")
    with pytest.raises(ValueError, match=r"1 rows in 1 groups .*: add rows of another image_id.*`validation_data`"):
        split_rows(rows.select([0]), 0.2, "image_id")


def test_warns_once_of_an_unused_validation_file(tmp_path, caplog):
    table_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        load_rows(tmp_path, validation_ratio=0.25)
        assert not caplog.text
        write_csv(tmp_path / "validation.csv", "image_id,question,answer", "image1,what,cup")
        for split in ("train", "validation"):
            load_rows(tmp_path, split=split, validation_ratio=0.25)
    assert caplog.text.count("validation.csv is not used: validation_ratio cuts") == 1


# Streaming


def test_streaming_gives_the_same_rows(tmp_path):
    table_folder(tmp_path)
    stream = load_rows(tmp_path, streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    rows = list(stream.remove_columns("image"))
    assert rows == load_rows(tmp_path).remove_columns("image").to_list()


def test_streamed_shards_do_not_overlap(tmp_path):
    table_folder(tmp_path)
    with open(tmp_path / "train.csv", newline="") as file:
        records = list(csv.DictReader(file))
    (tmp_path / "train.csv").unlink()
    for shard in range(4):
        part = datasets.Dataset.from_list(records[shard::4])
        part.to_parquet(str(tmp_path / f"train-{shard:05d}-of-00004.parquet"))
    stream = load_rows(tmp_path, streaming=True).remove_columns("image")
    assert stream.num_shards == 4
    halves = [[row["question"] for row in split_dataset_by_node(stream, rank, world_size=2)] for rank in (0, 1)]
    assert len(halves[0]) == len(halves[1]) == 12
    assert sorted(halves[0] + halves[1]) == sorted(record["question"] for record in records)


# Hub


def test_hub_data_set_is_mapped_to_the_schema(tmp_path):
    draw(tmp_path / "a.png", 10)
    draw(tmp_path / "b.png", 20)
    table = datasets.Dataset.from_dict(
        {
            "picture": [str(tmp_path / f"{name}.png") for name in "aba"],
            "text": ["q0", "q1", "q2"],
            "answers": [[{"answer": "yes", "answer_id": 1}, {"answer": "yes", "answer_id": 2}]] * 3,
        }
    ).cast_column("picture", datasets.Image())
    (tmp_path / "hub").mkdir()
    table.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    options = {"format": "hub", "columns": {"image": "picture", "question": "text"}}
    rows = load_rows(str(tmp_path / "hub"), **options)
    assert rows.features == FEATURES
    assert rows["question"][:] == ["q0", "q1", "q2"]
    assert rows[0]["answers"] == [{"answer": "yes", "count": 2}]
    assert rows[1]["image"].getpixel((0, 0)) == (20, 20, 20)
    assert rows[0]["image_id"] == rows[2]["image_id"] != rows[1]["image_id"]  # the same bytes are the same image
    answer, other = datasets.ClassLabel(names=["no", "yes"]), datasets.ClassLabel(names=["train", "test"])
    named = table.add_column("label", [1, 0, 1], feature=answer).add_column("cut", [0, -1, 1], feature=other)
    named.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    classes = load_rows(str(tmp_path / "hub"), format="hub", columns={**options["columns"], "answers": "label"})
    assert [row[0]["answer"] for row in classes["answers"]] == ["yes", "no", "yes"]
    unlabeled = table.add_column("label", [1, -1, 1], feature=answer)
    unlabeled.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    with pytest.raises(ValueError, match="hub train row 1: the answer is empty"):
        load_rows(str(tmp_path / "hub"), format="hub", columns={**options["columns"], "answers": "label"})
    table.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    stream = load_rows(str(tmp_path / "hub"), streaming=True, **options)
    assert [row["question_id"] for row in stream] == rows["question_id"][:]


@pytest.mark.parametrize(
    ("data", "format", "name"),
    [
        ("owner/VQA", "hub", "owner/VQA"),
        ("owner/VQA", "table", "VQA"),
        (".", "hub", "rooms"),
        ("../rooms/", None, "rooms"),
    ],
)
def test_data_name(tmp_path, monkeypatch, data, format, name):
    (tmp_path / "rooms").mkdir()
    monkeypatch.chdir(tmp_path / "rooms")
    assert data_name(data, {"format": format}) == name


@pytest.mark.parametrize(
    ("split", "options", "name"),
    [
        ("validation", {}, "validation"),
        ("validation", {"validation_ratio": None, "group_by": "image_id"}, "validation"),
        (
            "validation",
            {"validation_ratio": 0.22, "group_by": "a // 12"},
            "22% of train by a // 12, seed 0",
        ),
        ("validation", {"validation_ratio": 0.2, "group_by": None, "seed": 3}, "20% of train, seed 3"),
        ("train", {"validation_ratio": 0.2}, "train"),
    ],
)
def test_split_name_describes_the_cut(split, options, name):
    assert split_name(split, options) == name


def test_hub_error_names_the_data_set(tmp_path):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").touch()
    with pytest.raises(ValueError, match=r"script: Dataset scripts are no longer .*; .*refs/convert/parquet"):
        load_rows(str(tmp_path / "script"), format="hub")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.jsonl").write_text("{")
    with pytest.raises(ValueError, match="damaged: "):
        load_rows(str(tmp_path / "damaged"), format="hub")


# DAQUAR and rooms in their own layout


def test_loads_daquar_layout_and_keeps_scenes_apart(tmp_path):
    """Questions in the official text form, two maps for some of them in the npz file, scenes of twelve images."""
    for number in range(1, 49):
        draw(tmp_path / "images" / f"image{number}.png")
    pairs = [
        (f"what is beside the lamp in the image{number} ?", "night_stand, bed" if number % 2 else "3")
        for number in range(1, 49)
    ]
    text = "".join(f"{question}\n{answer}\n" for question, answer in pairs)
    (tmp_path / "qa.37.raw.train.txt").write_text(text)
    masks = np.random.default_rng(0).random((2, 2, 4, 4)).astype(np.float16)
    np.savez(tmp_path / "qa.37.raw.train_relevance.npz", mask=masks, row=[5, 40])
    rows = load_rows(tmp_path, format="daquar")
    assert len(rows) == 48
    assert [answer["answer"] for answer in rows[0]["answers"]] == ["night_stand", "bed"]
    relevance = list(rows["relevance"])
    assert [index for index, maps in enumerate(relevance) if maps is not None] == [5, 40]
    np.testing.assert_array_equal(np.array(relevance[40], np.float16), masks[1])
    cut = {"format": "daquar", "validation_ratio": 0.25, "group_by": "image_id // 12"}
    scenes = [
        {int(name[5:]) // 12 for name in load_rows(tmp_path, split=split, **cut)["image_id"]}
        for split in ("train", "validation")
    ]
    assert scenes[0] and scenes[1] and not scenes[0] & scenes[1]


# Memory

MEASURE = """
import datasets, re, sys, threading
from modeling_qca import QCAConfig, QCAProcessor
from modeling_qca.training.fitting.model_factory import CONFIGURATION
from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.data.sampler import ImageGroupedSampler

peak, done = 0, threading.Event()

def watch():  # memory of the process's own; pages of the mapped Arrow file are the kernel's to drop
    global peak
    while not done.wait(0.02):
        peak = max(peak, int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)

threading.Thread(target=watch, daemon=True).start()
rows = load_rows(sys.argv[1], cache_dir=sys.argv[2]).cast_column("image", datasets.Image(decode=False))
train = load_rows(sys.argv[1], cache_dir=sys.argv[2], validation_ratio=0.2, group_by="image_id // 12")
assert 0 < len(train) < len(rows)
preset = CONFIGURATION / "qca-tiny"
answers = [f"answer {number}" for number in range(50)]
labels = {"id2label": dict(enumerate(answers)), "label2id": {answer: index for index, answer in enumerate(answers)}}
config = QCAConfig.from_pretrained(preset, **labels)
collator = QuestionCollator(QCAProcessor.from_pretrained(preset), config, "every_hop")
order = list(ImageGroupedSampler(rows["image_id"], 8))
for start in range(0, len(order), 256):
    chosen = [rows[index] for index in order[start : start + 256]]
    assert len(collator(chosen)["pixel_values"]) == len({row["image_id"] for row in chosen})
done.set()
print(len(rows), peak)
"""


def own_megabytes(folder: Path, rows: int, images: int) -> int:
    for number in range(images):
        draw(folder / "images" / f"image{number}.jpg")
    lines = (f"image{row % images},what is at place {row},answer {row % 50}" for row in range(rows))
    write_csv(folder / "train.csv", "image_id,question,answer", *lines)
    maps = (np.full((2, 16, 16), row % 7, np.float16) for row in range(rows))
    write_maps(folder / "train_relevance.npz", maps, rows, (2, 16, 16))
    arguments = [sys.executable, "-c", MEASURE, str(folder), str(folder / "cache")]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    count, own = map(int, done.stdout.split())
    assert count == rows
    print(f"{rows} rows about {images} images: {own} MB of its own at most")
    return own


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_as_rows_grow_tenfold(tmp_path):
    small = own_megabytes(tmp_path / "small", rows=10_000, images=10_000)
    large = own_megabytes(tmp_path / "large", rows=100_000, images=10_000)
    assert large < small + 50, f"{small} MB for 10,000 rows, {large} MB for 100,000"
