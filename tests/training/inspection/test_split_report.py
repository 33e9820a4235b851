"""The report on a data set: every figure computed by hand, whatever the order of the rows."""

import dataclasses
import io

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_qca.training.data.schema import FEATURES
from modeling_qca.training.inspection.estimate import ImageShape, estimate_costs, in_units
from modeling_qca.training.inspection.question_only import question_only_accuracy
from modeling_qca.training.inspection.report import inspect_rows
from modeling_qca.training.inspection.split_counts import SplitCounts

# (image id, shade of the image, question, answers, whether there is a relevance map, or one of zeros)
TRAIN = [
    ("a", 10, "What color?", ["red"], True),
    ("a", 10, "what  color", ["Red"], False),  # repeats the row before
    ("copy of a", 10, "what color", ["red"], False),  # repeats it too
    ("b", 20, "what color?", ["blue"], True),
    ("b", 20, "what color", ["green"], False),  # repeats and contradicts the row before
    ("b", 20, "is it big", ["yes"], False),
    ("a", 10, "is it big", ["yes", "yes", "no"], False),
    ("a", 10, "how many", [], "zeros"),
]
VALIDATION = [
    ("v", 30, "what color", ["red"], False),
    ("b", 20, "Is it big?", ["yes"], False),  # an image of the training rows
    ("v", 30, "how many", ["two"], False),  # an answer outside the vocabulary
    ("v", 30, "where is it", ["yes"], False),  # a question of no training row
]
MAPS = {False: None, True: [[[0.0, 0.0]], [[0.0, 0.5]]], "zeros": [[[0.0, 0.0]]]}
VOCABULARY = ["red", "blue", "green", "yes", "no"]


def rows_of(described):
    def row(number, image_id, shade, question, answers, mapped):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (shade,) * 3).save(buffer, "PNG")
        return {
            "image": {"path": None, "bytes": buffer.getvalue()},
            "image_id": image_id,
            "question": question,
            "question_id": str(number),
            "question_type": "",
            "answers": [{"answer": answer, "count": answers.count(answer)} for answer in dict.fromkeys(answers)],
            "relevance": MAPS[mapped],
        }

    listed = [row(number, *of) for number, of in enumerate(described)]
    return datasets.Dataset.from_list(listed, FEATURES).cast_column("image", datasets.Image(decode=False))


def test_every_figure_equals_the_hand_computed_one():
    report = inspect_rows(rows_of(TRAIN), rows_of(VALIDATION), VOCABULARY)
    assert report.train == SplitCounts(
        rows=8,
        images=3,
        copied_images=1,
        answers=5,
        unanswered=1,
        repeated=3,
        conflicting=1,
        mapped=2,
        coverage=7 / 8,
        # two of three people: min(1, 2 / 2) twice with one of them left out, 1 / 2 and 1 / 2 and 1 in the mean
        ceiling=pytest.approx((6 + (2 * 1 / 2 + 1) / 3) / 8),
    )
    assert report.validation == SplitCounts(4, 2, 0, 3, 0, 0, 0, 0, coverage=3 / 4, ceiling=3 / 4)
    assert report.shared_images == 1
    assert ["images that are also in the other split", "1", "1"] in report.table()
    assert report.majority == 1 / 4  # red
    assert report.question_only == 2 / 4  # red, yes, red (majority), red (majority)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_rows_does_not_matter(seed):
    orders = np.random.default_rng(seed)
    tied = [*TRAIN, ("c", 40, "where", ["left"], False), ("c", 40, "where", ["right"], False)]
    asked = [*VALIDATION, ("w", 50, "where", ["right"], False)]
    shuffled = [[of[index] for index in orders.permutation(len(of))] for of in (tied, asked)]
    expected, found = (inspect_rows(*map(rows_of, splits), VOCABULARY) for splits in ((tied, asked), shuffled))
    assert found.table() == expected.table()
    assert found.notes() == expected.notes() and found.summary() == expected.summary()


def test_a_set_of_answers_does_not_conflict_with_a_part_of_it():
    rows = rows_of([("a", 10, "what is there", given, False) for given in (["cup", "plate"], ["cup"])])
    assert inspect_rows(rows, rows, ["cup"], "set").train.conflicting == 0
    other = rows_of([("a", 10, "what is there", given, False) for given in (["cup", "plate"], ["cup"], ["fork"])])
    assert inspect_rows(other, rows, ["cup"], "set").train.conflicting == 1


def test_equally_frequent_answers_to_a_question_are_taken_in_alphabetical_order():
    train = rows_of([("a", 10, "where", ["right"], False), ("a", 10, "where", ["left"], False)])
    asked = rows_of([("b", 20, "where", ["left"], False)])
    assert question_only_accuracy(train, asked, "consensus", True) == 1


def test_problems_and_notes_name_their_cause():
    clean = inspect_rows(rows_of(TRAIN[3:4]), rows_of(VALIDATION[:1]), ["red", "blue"])
    assert clean.problems() == clean.notes() == []
    assert clean.summary()[-1] == "No problems found."
    unreadable = {f"train.csv row {number}": "no such file" for number in range(2, 9)}
    broken = dataclasses.replace(clean, unreadable=unreadable)
    assert "7 (train.csv row 2: no such file;" in broken.problems()[0] and "and 2 more" in broken.problems()[0]
    skipping = dataclasses.replace(broken, skips_unreadable=True)
    assert skipping.problems() == [] and "7" in skipping.notes()[0]
    without_maps = inspect_rows(rows_of(TRAIN[4:]), rows_of(VALIDATION[:1]), VOCABULARY, needs_maps=True)
    assert "relevance map" in without_maps.summary()[-1]
    report = inspect_rows(rows_of(TRAIN), rows_of(VALIDATION), VOCABULARY)
    assert ["image" in problem for problem in report.problems()] == [True]
    assert len(report.notes()) == 3  # conflicting, copied, unanswered
    outside = inspect_rows(rows_of(TRAIN), rows_of(VALIDATION[2:3]), VOCABULARY)
    assert outside.problems() == ["no validation row has an answer in the vocabulary. Check the column of answers."]


def test_costs_equal_the_hand_computed_ones():
    shape = ImageShape(height=28, width=14, patches=8, features=384)
    costs = estimate_costs(rows_of(TRAIN), rows_of(VALIDATION), shape, batch_size=2, accumulation=3)
    assert costs.steps == 2  # 4 batches, 3 to a step
    assert costs.batch_bytes == 2 * 3 * 28 * 14 * 4
    assert costs.feature_bytes == 4 * 8 * 384 * 2  # images a, copy of a, b, v
    assert costs.reading_seconds > 0


@pytest.mark.parametrize(
    ("size", "words"), [(1023, "1023 bytes"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**50, "1024.0 TiB")]
)
def test_sizes_are_in_binary_units(size, words):
    assert in_units(size) == words
