"""Maps beside a table: several tables, words, the report and its page, and what is left untouched."""

import base64
import io
import json
import re

import datasets
import numpy as np
import pytest
from helpers.data_files import write_csv
from helpers.marked_pictures import QUESTIONS, cells, make_maps, marked_folder
from PIL import Image

from modeling_qca.training.data.relevance_maps import read_maps
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.supervision.add_relevance import MapOptions, add_relevance
from modeling_qca.training.supervision.marked_objects import read_objects

LAMP, BED = ("room.png", "lamp", [10, 0, 30, 10]), ("room.png", "bed", [40, 20, 70, 40])
LAMP_MAP, BED_MAP = cells(row0="0 1 1"), cells(row2="0 0 0 0 1 1 1", row3="0 0 0 0 1 1 1")
OPTIONS = MapOptions(grid=(4, 8))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return mark(marked_folder(tmp_path / "rooms"), LAMP, BED)


def mark(folder, *objects):
    lines = [{"image": image, "label": label, "box": box} for image, label, box in objects]
    (folder / "objects.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_rows_are_loaded_with_their_maps(folder):
    add_relevance(folder, "objects", options=OPTIONS)
    rows = load_rows(folder)
    assert np.array(rows[0]["relevance"]) == pytest.approx(np.stack([LAMP_MAP, BED_MAP]), abs=1e-3)
    assert np.array(rows[1]["relevance"]) == pytest.approx(np.stack([BED_MAP, BED_MAP]), abs=1e-3)
    assert rows[2]["relevance"] is None and rows[3]["relevance"] is None


def test_object_that_the_question_names_and_nobody_marked_gives_a_map_of_zeros(folder):
    mark(folder, LAMP, ("phone.jpg", "bed", [0, 0, 9, 9]))
    (report,) = add_relevance(folder, "objects", options=OPTIONS)
    maps = dict(read_maps(folder / "train_relevance.npz"))
    assert list(maps) == [0]
    assert maps[0][0].any() and not maps[0][1].any()
    assert "of these, questions that name an object nobody marked: 1 (no target there)" in report.lines()


def test_both_tables_get_maps_with_the_same_number_of_hops(folder):
    write_csv(folder / "validation.csv", "image,question,answer", "room.png,what is on the bed,cat")
    reports = add_relevance(folder, "objects", options=OPTIONS)
    assert [report.mapped for report in reports] == [2, 1]
    assert dict(read_maps(folder / "validation_relevance.npz"))[0].shape == (2, 4, 8)


def test_split_restricts_the_tables(folder):
    write_csv(folder / "validation.csv", "image,question,answer", "room.png,what is on the bed,cat")
    add_relevance(folder, "objects", options=OPTIONS, splits=["validation"])
    assert not (folder / "train_relevance.npz").exists()
    assert dict(read_maps(folder / "validation_relevance.npz"))[0].shape == (1, 4, 8)  # one hop is enough


def test_existing_maps_are_kept_unless_replaced(folder):
    (folder / "train_relevance.npz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"train_relevance.npz: already exists; .* --replace"):
        add_relevance(folder, "objects", options=OPTIONS)
    assert (folder / "train_relevance.npz").read_bytes() == b"mine"
    add_relevance(folder, "objects", options=MapOptions(grid=(4, 8), replace=True))
    assert sorted(dict(read_maps(folder / "train_relevance.npz"))) == [0, 1]


def test_replaced_maps_of_a_table_without_a_map_now_are_removed(folder):
    write_csv(folder / "validation.csv", "image,question,answer", "room.png,what is on the bed,cat")
    add_relevance(folder, "objects", options=OPTIONS)
    mark(folder, LAMP)
    _, report = add_relevance(folder, "objects", options=MapOptions(grid=(4, 8), replace=True))
    assert report.lines()[-1] == "removed validation_relevance.npz: no question of this table has a map now"
    assert (folder / "train_relevance.npz").exists()
    assert not list(folder.glob("validation_relevance*"))


def test_maps_are_kept_if_no_table_has_a_map_now(folder):
    add_relevance(folder, "objects", options=OPTIONS)
    mark(folder, ("room.png", "rug", [0, 0, 9, 9]))
    with pytest.raises(ValueError, match="no question names a label"):
        add_relevance(folder, "objects", options=MapOptions(grid=(4, 8), replace=True))
    assert (folder / "train_relevance.npz").exists()


def test_existing_maps_of_a_later_table_stop_all(folder):
    write_csv(folder / "validation.csv", "image,question,answer", "room.png,what is on the bed,cat")
    (folder / "validation_relevance.npz").write_bytes(b"mine")
    with pytest.raises(ValueError, match="already exists"):
        add_relevance(folder, "objects", options=OPTIONS)
    assert not (folder / "train_relevance.npz").exists()


def test_picture_that_cannot_be_drawn_leaves_no_file(folder):
    path = folder / "images" / "room.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:1000])  # its header is whole
    with pytest.raises(ValueError, match=r"Cannot read the image .*room.png"):
        add_relevance(folder, "objects", options=OPTIONS)
    assert {file.name for file in folder.iterdir()} == {"images", "objects.jsonl", "train.csv"}


def test_label_words_and_labels_to_leave_out(folder):
    mark(folder, ("room.png", "couch", [40, 20, 70, 40]), ("room.png", "lamp", [0, 0, 9, 9]))
    words = {"couch": ["couch", "bed"], "lamp": []}
    add_relevance(folder, "objects", options=MapOptions(grid=(4, 8), label_words=words))
    maps = dict(read_maps(folder / "train_relevance.npz"))
    assert maps[0] == pytest.approx(BED_MAP[None], abs=1e-3)


@pytest.mark.parametrize("cell", ['"bed,lamps"', "bed; lamp"])
def test_column_of_the_table_names_the_objects(folder, cell):
    write_csv(
        folder / "train.csv", "image,question,answer,about", f"room.png,what is it,cat,{cell}", "room.png,a cup,no,"
    )
    add_relevance(folder, "objects", options=MapOptions(grid=(4, 8), objects_column="about"))
    maps = dict(read_maps(folder / "train_relevance.npz"))
    assert maps[0] == pytest.approx(np.stack([BED_MAP, LAMP_MAP]), abs=1e-3)
    assert list(maps) == [0]


def test_report_counts_questions_words_and_idle_labels(folder):
    mark(folder, LAMP, BED, ("room.png", "rug", [0, 0, 9, 9]), ("gone.png", "bed", [0, 0, 9, 9]))
    (report,) = add_relevance(folder, "objects", options=OPTIONS)
    assert report.lines() == [
        "questions with a map for each of 2 hops: 2 of 4",
        "words that chose objects: lamp (1), bed (1), beds (1)",
        "labels of objects that serve no question here: rug (1)",
        "annotated pictures without a question here: 1, such as gone.png",
    ]


def test_page_shows_at_most_twenty_pictures_and_refers_to_nothing_else(folder):
    write_csv(folder / "train.csv", "image,question,answer", *QUESTIONS[:2] * 15)
    add_relevance(folder, "objects", options=OPTIONS)
    text = (folder / "train_relevance.html").read_text()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(pictures) == text.count("<img") == 20
    assert not re.findall(r"https?://|<script|<link", text)
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert not shown.getexif() and "comment" not in shown.info


def test_bright_cells_of_a_page_are_the_target(folder):
    add_relevance(folder, "objects", options=OPTIONS, splits=["train"])
    text = (folder / "train_relevance.html").read_text()
    first = Image.open(io.BytesIO(base64.b64decode(re.findall(r'base64,([^"]+)"', text)[0])))
    heat = np.asarray(first.crop((88, 0, 168, 40)).convert("RGB")).astype(int)  # the map beside the 80 x 40 picture
    lit = heat[..., 1] > heat[..., 2] + 40  # yellow is greener than blue
    rows, columns = np.nonzero(lit)
    expected = (np.mean(rows), np.mean(columns))
    assert expected == pytest.approx((30, 55), abs=4) or expected == pytest.approx((5, 20), abs=4)


def test_saved_objects_serve_later_questions(folder):
    (folder / "objects.jsonl").unlink()
    write_csv(folder / "boxes.csv", "image,x,y,width,height,label", "room.png,40,20,30,20,bed")
    for _ in range(2):
        add_relevance(
            folder, "csv", folder / "boxes.csv", options=MapOptions(grid=(4, 8), replace=True), save_objects=True
        )
    assert [(item.image, item.label) for item in read_objects(folder / "objects.jsonl")] == [("room.png", "bed")]
    write_csv(folder / "train.csv", "image,question,answer", "room.png,is the bed made,yes")
    (folder / "train_relevance.npz").unlink()
    assert make_maps(folder, "objects")[0] == pytest.approx(BED_MAP[None], abs=1e-3)


def test_conversations_are_refused(folder):
    (folder / "train.csv").unlink()
    texts = [{"user": "what is it", "assistant": "cup"}, {"user": "where is it", "assistant": "left"}]
    (folder / "train.jsonl").write_text(json.dumps({"image": "room.png", "texts": texts}))
    with pytest.raises(ValueError, match="line 1: holds 2 questions; maps need a table with one question a row"):
        add_relevance(folder, "objects", options=OPTIONS)


def test_data_that_is_no_table_is_refused(folder):
    with pytest.raises(ValueError, match="maps are written beside tables, but the data has the format 'gqa'"):
        add_relevance(folder, "objects", data_options={"format": "gqa"})
