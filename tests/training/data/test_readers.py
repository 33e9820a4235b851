"""Readers of VQA, VQA-HAT, DAQUAR and GQA, on small files in the official form."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers.data_files import draw, write_csv, write_json
from PIL import Image

from modeling_qca.training.data.rows import load_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


# VQA v2


def write_vqa(folder: Path, prefix: str = "v2_") -> Path:
    questions = [
        {"image_id": 42, "question": "How many?", "question_id": 420001},
        {"image_id": 7, "question": "Is it red?", "question_id": 70000},
    ]
    annotations = [  # in another order than the questions
        {
            "question_id": question_id,
            "question_type": question_type,
            "answer_type": "other",
            "multiple_choice_answer": answers[0],
            "image_id": image_id,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number + 1}
                for number, answer in enumerate(answers)
            ],
        }
        for question_id, image_id, question_type, answers in (
            (70000, 7, "is it", ["yes"] * 10),
            (420001, 42, "how many", ["2"] * 7 + ["3", "two", "two"]),
        )
    ]
    info = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "train2014"}
    stem = f"{prefix}OpenEnded_mscoco_train2014_questions.json"
    write_json(folder / stem, {**info, "task_type": "Open-Ended", "questions": questions})
    write_json(folder / f"{prefix}mscoco_train2014_annotations.json", {**info, "annotations": annotations})
    for image_id in (7, 42):
        draw(folder / "train2014" / f"COCO_train2014_{image_id:012d}.jpg", shade=image_id)
    return folder


def test_vqa_v2_joins_questions_annotations_and_coco_images(tmp_path):
    rows = load_rows(write_vqa(tmp_path), format="vqa_v2")
    assert rows["question_id"][:] == ["420001", "70000"]
    assert rows["question_type"][:] == ["how many", "is it"]
    counts = [{"answer": "2", "count": 7}, {"answer": "3", "count": 1}, {"answer": "two", "count": 2}]
    assert rows[0]["answers"] == counts
    assert rows[0]["image_id"] == "42"
    assert rows[0]["image"].getpixel((0, 0)) == (42, 42, 42)


def test_vqa_v2_test_splits_have_no_answers(tmp_path):
    questions = {"questions": [{"image_id": 1, "question": "What?", "question_id": 10}]}
    write_json(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", questions)
    draw(tmp_path / "test2015" / "COCO_test2015_000000000001.jpg")
    assert load_rows(tmp_path, format="vqa_v2", split="test-dev2015")[0]["answers"] == []


def test_vqa_v2_refuses_malformed_files(tmp_path):
    with pytest.raises(ValueError, match="0 files fit"):
        load_rows(tmp_path, format="vqa_v2")
    write_vqa(tmp_path)
    (tmp_path / "train2014" / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"question 70000 \(row 1\): image .*000000000007.jpg cannot be read: no such"
    ):
        load_rows(tmp_path, format="vqa_v2")
    draw(tmp_path / "train2014" / "COCO_train2014_000000000007.jpg")
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=r"question 420001: .*annotations\.json has no answers"):
        load_rows(tmp_path, format="vqa_v2")
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text('{"annotations": [')
    with pytest.raises(ValueError, match=r"annotations\.json: not JSON"):
        load_rows(tmp_path, format="vqa_v2")


# VQA-HAT


def test_vqa_hat_averages_the_maps_of_a_question(tmp_path):
    write_vqa(tmp_path, prefix="")  # VQA-HAT is about VQA v1
    left = np.zeros((6, 8), np.uint8)
    left[:, :4] = 255
    (tmp_path / "maps").mkdir()
    Image.fromarray(left).save(tmp_path / "maps" / "420001_1.png")
    Image.fromarray(255 - left).resize((80, 60), Image.Resampling.NEAREST).save(tmp_path / "maps" / "420001_2.png")
    options = {"format": "vqa_hat", "maps": tmp_path / "maps", "relevance_grid": [3, 4]}
    rows = load_rows(tmp_path, **options)
    assert rows["question_id"][:] == ["420001"]
    np.testing.assert_allclose(rows[0]["relevance"], np.full((1, 3, 4), 0.5), atol=1e-6)
    (tmp_path / "maps" / "420001_2.png").unlink()
    np.testing.assert_allclose(load_rows(tmp_path, **options)[0]["relevance"], [[[1, 1, 0, 0]] * 3])
    draw(tmp_path / "maps" / "overview.png")
    with pytest.raises(ValueError, match=r"overview\.png: the map of a question is called"):
        load_rows(tmp_path, **options)


# DAQUAR


def test_daquar_reads_text_pairs(tmp_path):
    text = "what is on the table in the image3 ?\ncup, plate\nhow many chairs are there in the image3?\n2\n"
    (tmp_path / "qa.37.raw.train.txt").write_text(text)
    (tmp_path / "qa.37.raw.test.txt").write_text("what is it in image1 ?\nbed\n")
    draw(tmp_path / "nyu" / "image3.png")
    draw(tmp_path / "nyu" / "image1.png")
    rows = load_rows(tmp_path, format="daquar", images=tmp_path / "nyu")
    assert rows["question"][:] == ["what is on the table", "how many chairs are there"]
    assert [[answer["answer"] for answer in row] for row in rows["answers"]] == [["cup", "plate"], ["2"]]
    assert rows["image_id"][:] == ["image3", "image3"]
    test = load_rows(tmp_path, format="daquar", images=tmp_path / "nyu", split="validation")
    assert test["question"][:] == ["what is it"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("what is it in the image1 ?\n", "txt line 2: the answer is missing"),
        ("what is it ?\nbed\n", "txt line 1: a question ends with its image"),
    ],
)
def test_daquar_error_names_the_line(tmp_path, text, message):
    (tmp_path / "qa.37.raw.train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, format="daquar", images=draw(tmp_path / "image1.png").parent)


def test_daquar_reads_a_csv_file(tmp_path):
    draw(tmp_path / "images" / "image1.jpg")
    write_csv(tmp_path / "train.csv", "question,answer,image_id", 'what,"cup,plate",image1')
    assert len(load_rows(tmp_path, format="daquar")[0]["answers"]) == 2


# GQA


def write_gqa(folder: Path) -> Path:
    objects: dict[str, Any] = {
        "10": {"name": "table", "x": 0, "y": 0, "w": 4, "h": 8, "attributes": [], "relations": []},
        "11": {"name": "cup", "x": 6, "y": 4, "w": 6, "h": 4, "attributes": [], "relations": []},
        "12": {"name": "wall", "x": 0, "y": 0, "w": 12, "h": 8, "attributes": [], "relations": []},
    }
    graphs = {"2354786": {"width": 12, "height": 8, "objects": objects}}
    annotations = {
        "both": {"question": {"4": "10"}, "answer": {"0": "11"}, "fullAnswer": {"1": "11"}},
        "one": {"question": {"2:4": "10,11"}, "answer": {}, "fullAnswer": {}},
        "none": {"question": {}, "answer": {}, "fullAnswer": {}},
    }
    questions = {
        name: {
            "semantic": [],
            "entailed": [],
            "equivalent": [name],
            "question": f"What is {name}?",
            "imageId": "2354786",
            "isBalanced": True,
            "answer": "cup",
            "fullAnswer": "It is a cup.",
            "annotations": annotation,
            "types": {"detailed": "relO", "semantic": "rel", "structural": "query"},
        }
        for name, annotation in annotations.items()
    }
    write_json(folder / "train_balanced_questions.json", questions)
    write_json(folder / "train_sceneGraphs.json", graphs)
    draw(folder / "images" / "2354786.jpg")
    return folder


def test_gqa_maps_are_question_objects_then_answer_objects(tmp_path):
    rows = load_rows(write_gqa(tmp_path), format="gqa", relevance_grid=(2, 3))  # cells of 4 x 4 pixels
    table, cup = np.array([[1, 0, 0], [1, 0, 0]]), np.array([[0, 0, 0], [0, 0.5, 1]])
    relevance = dict(zip(rows["question_id"], rows["relevance"], strict=True))
    np.testing.assert_allclose(relevance["both"], np.stack([table, cup]))
    np.testing.assert_allclose(relevance["one"], np.stack([table + cup] * 2))
    assert relevance["none"] is None
    assert rows[0]["question_type"] == "query"
    assert rows[0]["answers"] == [{"answer": "cup", "count": 1}]


def test_gqa_without_scene_graphs_needs_the_option(tmp_path):
    write_gqa(tmp_path)
    (tmp_path / "train_sceneGraphs.json").unlink()
    with pytest.raises(ValueError, match="pass scene_graphs: false"):
        load_rows(tmp_path, format="gqa")
    assert list(load_rows(tmp_path, format="gqa", scene_graphs=False)["relevance"]) == [None] * 3


def test_gqa_refuses_an_unknown_object(tmp_path):
    write_gqa(tmp_path)
    write_json(tmp_path / "train_sceneGraphs.json", {"2354786": {"width": 12, "height": 8, "objects": {}}})
    with pytest.raises(ValueError, match=r"question both \(row 0\): refers to object 10"):
        load_rows(tmp_path, format="gqa")
