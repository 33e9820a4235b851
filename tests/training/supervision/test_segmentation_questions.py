"""Questions from label maps: answers and relevance maps on drawn scenes, and balance."""

import csv
import json
import random
import shutil
from collections import Counter
from functools import partial
from hashlib import sha256
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_qca.image_qca import ORIENTATION
from modeling_qca.training.data.relevance_maps import cell_shares
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.files import processes
from modeling_qca.training.supervision import segmentation_questions
from modeling_qca.training.supervision.image_questions import Question, RegionTarget, image_questions
from modeling_qca.training.supervision.label_maps import read_label_maps
from modeling_qca.training.supervision.segmentation_questions import balance, make_questions, question_only_accuracy

NAMES = {1: "bed", 2: "lamp", 3: "wall"}


def scene() -> np.ndarray:
    """60 x 90: wall everywhere, a bed at the lower left, two lamps at the upper right."""
    labels = np.full((60, 90), 3)
    labels[30:60, 0:30] = 1
    labels[0:12, 60:70] = 2
    labels[0:12, 78:88] = 2
    return labels


@pytest.fixture
def asked() -> dict[str, Question]:
    return {question.question: question for question in image_questions("image1", scene(), NAMES)}


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("is there a bed in the left half of the picture", "exists", "yes"),
        ("is there a bed in the right half of the picture", "exists", "no"),
        ("is there a lamp in the top half of the picture", "exists", "yes"),
        ("is the bed to the left of the lamp", "side", "yes"),
        ("is the bed to the right of the lamp", "side", "no"),
        ("is the lamp to the left of the bed", "side", "no"),
        ("is the lamp above the bed", "height", "yes"),
        ("is the lamp below the bed", "height", "no"),
        ("what is at the bottom-left of the picture", "where", "bed"),
        ("what is at the center of the picture", "where", "wall"),
        ("what is at the top of the picture", "where", "wall"),
        ("which is bigger the bed or the lamp", "bigger", "bed"),
        ("which is bigger the bed or the wall", "bigger", "wall"),
        ("how many separate regions of lamp are in the picture", "count", "2"),
        ("how many separate regions of bed are in the picture", "count", "1"),
    ],
)
def test_questions_of_a_scene_have_the_expected_answers(asked, text, kind, answer):
    assert (asked[text].kind, asked[text].answer) == (kind, answer)


def test_compared_classes_are_in_alphabetical_order(asked):
    assert "which is bigger the lamp or the bed" not in asked


def texts(labels: np.ndarray) -> set[str]:
    return {question.question for question in image_questions("image1", labels, NAMES)}


def test_skips_exists_question_for_a_small_area():
    labels = scene()
    labels[30:32, 45:48] = 1
    assert "is there a bed in the right half of the picture" not in texts(labels)


def test_asks_where_only_with_a_clear_majority_in_the_ninth():
    labels = scene()
    labels[0:20, 17:30] = 0  # the top-left keeps 17 of 30 columns of wall
    labels[20:40, 45:60] = 0  # the center keeps half of it
    assert "what is at the top-left of the picture" in texts(labels)
    assert "what is at the center of the picture" not in texts(labels)


def test_skips_count_question_with_a_region_of_unclear_size():
    counted = "how many separate regions of bed are in the picture"
    noise, unclear = scene(), scene()
    noise[30:32, 45:48] = 1  # 0.1 % of the picture
    unclear[30:35, 45:50] = 1  # 0.5 %
    assert counted in texts(noise)
    assert counted not in texts(unclear)


def test_regions_touching_at_a_corner_count_as_one():
    labels = np.full((60, 90), 3)
    labels[0:20, 0:30] = labels[20:40, 30:60] = 1
    asked = {question.question: question.answer for question in image_questions("image1", labels, NAMES)}
    assert asked["how many separate regions of bed are in the picture"] == "1"


def test_skips_comparisons_with_small_differences():
    labels = np.full((60, 90), 3)
    labels[0:20, 30:50] = 1
    labels[40:60, 34:54] = 2
    assert "is the bed above the lamp" in texts(labels)
    assert "is the bed to the left of the lamp" not in texts(labels)
    assert "which is bigger the bed or the lamp" not in texts(labels)


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("is the bed to the left of the lamp", 1, 2),
        ("which is bigger the bed or the lamp", 1, 2),
        ("how many separate regions of lamp are in the picture", 2, 2),
    ],
)
def test_hop_targets_are_the_first_then_the_second_class(asked, text, first, second):
    labels = scene()
    for target, label in zip(asked[text].targets, (first, second), strict=True):
        np.testing.assert_array_equal(target.mask(labels), labels == label)


def test_exists_targets_are_the_object_or_the_empty_region(asked):
    labels = scene()
    there = asked["is there a wall in the left half of the picture"].targets[0].mask(labels)
    left = np.zeros(labels.shape, bool)
    left[:, :45] = True
    np.testing.assert_array_equal(there, (labels == 3) & left)
    missing = asked["is there a lamp in the left half of the picture"].targets
    np.testing.assert_array_equal(missing[0].mask(labels), left)
    assert missing[0] == missing[1]


# Balance


def questions_of(counts: dict[str, dict[str, int]], kind: str = "side") -> list[Question]:
    targets = (RegionTarget(), RegionTarget())
    return [
        Question(f"image{number}", kind, wording, answer, targets)
        for wording, answers in counts.items()
        for answer, count in answers.items()
        for number in range(count)
    ]


def kept_counts(questions: list[Question]) -> dict[str, Counter]:
    counts: dict[str, Counter] = {}
    for question in balance(questions, random.Random(0)):
        counts.setdefault(question.question, Counter())[question.answer] += 1
    return counts


def test_balance_cuts_answers_of_a_wording_to_one_count():
    assert kept_counts(questions_of({"a": {"yes": 30, "no": 10}})) == {"a": {"yes": 10, "no": 10}}


def test_balance_drops_pairs_whose_classes_predict_the_answer():
    fixed = {"is the ceiling above the floor": {"yes": 40, "no": 2}, "is the wall above the sky": {"no": 40}}
    assert kept_counts(questions_of(fixed, "height")) == {}
    assert kept_counts(questions_of({"a": {"yes": 40, "no": 2}}, "exists")) == {"a": {"yes": 2, "no": 2}}


def test_balance_keeps_rare_answers_and_cuts_common_ones():
    # k answers cut to the k-th's count: 2 -> 100, 3 -> 90, 4 -> 32; the widest with at least 60 of them is 3
    counts = {"w": {"wall": 90, "bed": 50, "floor": 30, "lamp": 8}}
    assert kept_counts(questions_of(counts, "where")) == {"w": {"wall": 30, "bed": 30, "floor": 30, "lamp": 8}}


def test_question_only_accuracy_measures_what_the_wording_predicts():
    told = questions_of({"a": {"yes": 40}, "b": {"no": 40}})
    measured = question_only_accuracy(told)["side"]
    assert measured == {"questions": 80, "accuracy": 1.0, "chance": 1.0}
    even = questions_of({"a": {"yes": 40}}) + [
        question._replace(image_id=f"other{number}", answer="no")
        for number, question in enumerate(questions_of({"a": {"yes": 40}}))
    ]
    measured = question_only_accuracy(even)["side"]
    assert measured["chance"] == 0.5
    assert measured["accuracy"] <= 0.6


# Whole folders


def random_scene(generator: np.random.Generator) -> np.ndarray:
    """Wall with one to four rectangles of bed and lamp, anywhere."""
    labels = np.full((40, 60), 3, np.uint8)
    for _ in range(generator.integers(1, 5)):
        height, width = generator.integers(8, 20), generator.integers(10, 26)
        top, left = generator.integers(0, 40 - height), generator.integers(0, 60 - width)
        labels[top : top + height, left : left + width] = generator.integers(1, 3)
    return labels


@pytest.fixture
def segmented(tmp_path):
    """images/, labels/ and classes.txt of 80 scenes; the images are half as large as the label maps."""
    generator = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(80):
        labels = Image.fromarray(random_scene(generator))
        labels.save(tmp_path / "labels" / f"image{number}.png")
        labels.convert("RGB").resize((30, 20)).save(tmp_path / "images" / f"image{number}.jpg")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES.values()))
    return tmp_path


def make(folder: Path, output: str = "questions", **options) -> dict:
    return make_questions(
        folder / "images", folder / "labels", folder / "classes.txt", folder / output, **{"grid": (5, 6), **options}
    )


def test_load_rows_reads_the_folder_with_two_maps_per_row(segmented, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(segmented / "cache"))
    summary = make(segmented)
    rows = load_rows(segmented / "questions", images=segmented / "images")
    assert len(rows) == summary["questions"] > 200
    assert set(rows["question_type"]) == {"exists", "side", "height", "where", "bigger", "count"}
    assert {np.shape(maps) for maps in rows["relevance"]} == {(2, 5, 6)}
    maps = read_label_maps(segmented / "labels", segmented / "classes.txt")
    for row in (rows[index] for index in range(0, len(rows), 29)):
        labels = maps.read(row["image_id"])
        asked = {question.question: question for question in image_questions(row["image_id"], labels, maps.names)}
        assert asked[row["question"]].answer == row["answers"][0]["answer"]
        for target, relevance in zip(asked[row["question"]].targets, row["relevance"], strict=True):
            np.testing.assert_allclose(relevance, cell_shares(target.mask(labels), (5, 6)), atol=1e-3)


def test_question_only_accuracy_is_near_chance(segmented):
    kinds = make(segmented)["kinds"]
    assert json.loads((segmented / "questions" / "summary.json").read_text())["kinds"] == kinds
    for kind, measured in kinds.items():
        error = (measured["chance"] * (1 - measured["chance"]) / measured["questions"]) ** 0.5
        assert measured["accuracy"] <= measured["chance"] + 3 * error + 0.02, (kind, measured)


def test_question_only_accuracy_is_above_chance_without_balance(segmented, monkeypatch):
    monkeypatch.setattr(segmentation_questions, "balance", lambda candidates, _: candidates)
    kinds = make(segmented)["kinds"]
    assert kinds["where"]["accuracy"] > kinds["where"]["chance"] + 0.2


def test_a_seed_gives_the_questions_of_earlier_versions(segmented):
    """Written by the version that read every pixel of every mask, in one process."""
    make(segmented)
    table = (segmented / "questions" / "train.csv").read_text()
    masks = np.load(segmented / "questions" / "train_relevance.npz")["mask"]
    assert sha256(table.encode()).hexdigest() == "8967c1d6229632975f068c44799525698cd6f183e38afee32389efa312b03e8a"
    assert masks.shape == (1368, 2, 5, 6)
    assert masks.sum(dtype=np.float64) == pytest.approx(25086.8923, abs=0.1)


def test_one_process_gives_the_files_of_several(segmented, monkeypatch):
    make(segmented, "one")
    monkeypatch.setattr(processes, "FEW", 10)
    monkeypatch.setattr(segmentation_questions, "map_in_order", partial(processes.map_in_order, processes=2))
    make(segmented, "several")
    for name in ("train.csv", "train_relevance.npz", "summary.json"):
        assert (segmented / "one" / name).read_bytes() == (segmented / "several" / name).read_bytes(), name


# Tables of images


def image_table(folder: Path, rows: list[str], name: str = "images.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(rows) + "\n")
    return path


def test_questions_get_the_columns_of_their_image(segmented):
    table = image_table(segmented, ["image,street,sharp", *(f"image{n}.jpg,street {n // 9},yes" for n in range(80))])
    summary = make(segmented, image_table=table, group_by="street")
    with open(segmented / "questions" / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image_id", "kind", "question", "answer", "street", "sharp"]
    assert {row["street"] for row in rows if row["image_id"] == "image20"} == {"street 2"}
    assert summary["kinds"] != make(segmented, "by_image", image_table=table)["kinds"]
    cut = {"images": segmented / "images", "validation_ratio": 0.3, "group_by": "street", "cache_dir": segmented}
    sides = [load_rows(segmented / "questions", split=split, **cut) for split in ("train", "validation")]
    streets = [set(side["street"]) for side in sides]
    assert all(streets) and streets[0].isdisjoint(streets[1])
    assert len(streets[0] | streets[1]) == 9


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["image_id,street", "image0,a"], {}, "no row for image 'image1'"),
        (["image_id,street", "image0,a", "image0.jpg,b"], {}, "row 3: a second row for image 'image0'"),
        (["street,town", "a,b"], {}, "no column of image names"),
        (["image_id,answer", *(f"image{n},a" for n in range(80))], {}, "cannot be called 'answer'"),
        (
            ["image_id,street", *(f"image{n},a" for n in range(80))],
            {"group_by": "town"},
            "not 'town'; the columns are image_id, street",
        ),
    ],
)
def test_refuses_a_table_that_does_not_fit_the_images(segmented, rows, options, message):
    with pytest.raises(ValueError, match=message):
        make(segmented, image_table=image_table(segmented, rows), **options)


def test_same_seed_gives_the_same_files(segmented):
    for output, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(segmented, output, seed=seed)
    tables = [(segmented / output / "train.csv").read_text() for output in "abc"]
    masks = [np.load(segmented / output / "train_relevance.npz")["mask"] for output in "ab"]
    assert tables[0] == tables[1] != tables[2]
    np.testing.assert_array_equal(*masks)


def test_questions_per_kind_limits_questions_of_an_image(segmented):
    make(segmented, questions_per_kind=1)
    with open(segmented / "questions" / "train.csv", newline="") as file:
        asked = Counter((row["image_id"], row["kind"], row["answer"]) for row in csv.DictReader(file))
    assert set(asked.values()) == {1}


def test_like_keeps_only_the_wordings_of_the_file(segmented):
    wordings = ["is there a bed in the left half of the picture", "which is bigger the bed or the lamp", "why"]
    (segmented / "like.csv").write_text("question,answer\n" + "".join(f"{wording},yes\n" for wording in wordings))
    make(segmented, like=segmented / "like.csv")
    with open(segmented / "questions" / "train.csv", newline="") as file:
        assert {row["question"] for row in csv.DictReader(file)} == set(wordings[:2])


def test_interrupted_run_leaves_no_files(segmented, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(segmentation_questions, "write_maps", interrupt)
    before = sorted(segmented.iterdir())
    with pytest.raises(KeyboardInterrupt):
        make(segmented)
    assert sorted(segmented.iterdir()) == before


def test_alignment_follows_exif_orientation(segmented):
    path, exif = segmented / "images" / "image3.jpg", Image.Exif()
    exif[ORIENTATION] = 6
    upright = Image.open(path)
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    make(segmented)
    upright.save(path, exif=exif)
    with pytest.raises(ValueError, match=r"image3\.jpg: is 20x30, but its label map is 60x40"):
        make(segmented, "a")


def test_refuses_malformed_inputs(segmented):
    (segmented / "questions").mkdir()
    with pytest.raises(ValueError, match="questions: already exists"):
        make(segmented)
    with pytest.raises(ValueError, match="group_by keeps images together"):
        make(segmented, "a", group_by="question")
    with pytest.raises(ValueError, match="like: not a CSV file with a column `question`"):
        make(segmented, "a", like=segmented / "like")
    with pytest.raises(ValueError, match="not a CSV file with a column `question`"):
        make(segmented, "a", like=segmented / "classes.txt")
    (segmented / "images" / "image3.jpg").unlink()
    with pytest.raises(ValueError, match=r"image3: the image of label map image3\.png cannot be read"):
        make(segmented, "a")
    Image.new("RGB", (20, 30)).save(segmented / "images" / "image3.jpg")
    with pytest.raises(ValueError, match=r"image3\.jpg: is 20x30, but its label map is 60x40"):
        make(segmented, "a")
    (segmented / "classes.txt").write_text("bed\nlamp")
    with pytest.raises(ValueError, match=r"image0\.png: class 3 has no name"):
        make(segmented, "a")
    (segmented / "classes.txt").write_text("bed\nbed")
    with pytest.raises(ValueError, match="must be present and differ"):
        make(segmented, "a")
    (segmented / "labels" / "image0.png").write_bytes(b"no image")
    (segmented / "classes.txt").write_text("bed\nlamp\nwall")
    with pytest.raises(ValueError, match=r"image0\.png: label map cannot be read"):
        make(segmented, "a")
    shutil.rmtree(segmented / "labels")
    with pytest.raises(ValueError, match="no such folder of label maps"):
        make(segmented, "a")


# Label maps


def test_empty_class_names_and_255_are_unlabeled(tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "classes.json").write_text(json.dumps({"1": "bed", "2": ""}))
    assert read_label_maps(tmp_path, tmp_path / "classes.json").read("a").tolist() == [[0, 1, 0, 0]]


def test_coco_panoptic_colors_are_read_as_classes(tmp_path):
    segments = np.array([[0, 70000], [300, 300]])
    colors = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(tmp_path / "000000000139.png")
    panoptic = {
        "categories": [{"id": 1, "name": "person", "isthing": 1}, {"id": 200, "name": "rug-merged", "isthing": 0}],
        "annotations": [
            {
                "image_id": 139,
                "file_name": "000000000139.png",
                "segments_info": [{"id": 70000, "category_id": 1}, {"id": 300, "category_id": 200}],
            }
        ],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    assert read_label_maps(tmp_path, tmp_path / "panoptic.json").read("000000000139").tolist() == [[0, 1], [200, 200]]
    (tmp_path / "classes.txt").write_text("person")
    with pytest.raises(ValueError, match="its pixels are colors, not class numbers"):
        read_label_maps(tmp_path, tmp_path / "classes.txt").read("000000000139")
