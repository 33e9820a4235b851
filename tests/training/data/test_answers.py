"""Answer normalization and agreement, against cases of the published rules and a loop over annotators."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_qca.training.data.answers import (
    agreement,
    answer_key,
    answer_scores,
    answer_type,
    majority_answer,
    normalize_answer,
)


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("a Dog", "dog"),
        ("the", ""),
        ("red and white", "red and white"),
        ("dont know", "don't know"),
        ("shouldn'tve", "shouldn't've"),
        ("yall'd've", "y'all'd've"),
        ("it's", "it's"),
        ("1,000", "1000"),
        ("1,000 black-white", "1000 blackwhite"),  # a comma in a number makes every mark go without a space
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("left/right", "left right"),
        ("yes, it is", "yes it is"),
        ("what?", "what"),
        ("night_stand", "night stand"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("No.", "no"),
        (" on\ttable\n", "on table"),
        ("10:30", "10:30"),
    ],
)
def test_normalize_answer_matches_the_published_rules(raw, normal):
    assert normalize_answer(raw) == normal


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("A", "a"),  # multiple choice: the official rule drops the article
        ("B", "b"),
        ("An", "an"),  # a word of Vietnamese and French
        ("the", "the"),
        ("the Sun", "sun"),
        ("T-shirt", "t shirt"),
        ("Café", "café"),
        ("Cafe\u0301", "café"),  # a combining accent
        ("红色", "红色"),
        ("สีแดง", "สีแดง"),
        ("लाल", "लाल"),
        ("?", "?"),
    ],
)
def test_answer_key_keeps_answers_that_normalization_empties(raw, key):
    assert answer_key(raw) == key
    assert answer_key(key) == key
    assert answer_key(raw, normalize=False) == raw


@given(st.text(alphabet="ab1,.'-? ", max_size=12))
def test_normalize_answer_leaves_single_spaces_and_no_article(raw):
    words = normalize_answer(raw).split(" ")
    assert "a" not in words
    assert "" not in words or words == [""]


def leave_one_out(answers: list[str], predicted: str) -> float:
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        scores.append(min(1, others.count(predicted) / min(3, len(others))))
    return sum(scores) / len(scores)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12))
def test_agreement_equals_the_leave_one_out_mean(answers):
    for predicted in "abc":
        assert agreement(answers.count(predicted), len(answers)) == pytest.approx(leave_one_out(answers, predicted))


def test_agreement_of_ten_annotators_matches_published_values():
    assert [round(agreement(matches, 10), 6) for matches in range(6)] == [0, 0.3, 0.6, 0.9, 1, 1]


def test_unanimous_answer_scores_one_for_any_number_of_annotators():
    for annotators in range(1, 12):
        assert agreement(annotators, annotators) == 1
    assert (agreement(1, 2), agreement(2, 3)) == (0.5, pytest.approx((1 + 2 * 0.5) / 3))


def rows_of(*answers: str) -> list[dict]:
    return [{"answer": answer, "count": count} for answer, count in Counter(answers).items()]


def test_answer_scores_merge_equal_normalized_answers():
    answers = rows_of("2", "two", "Two", *["3"] * 6, "the")
    assert answer_scores(answers) == pytest.approx({"2": 0.9, "3": 1.0, "the": 0.3})
    assert answer_scores(answers, normalize=False)["two"] == pytest.approx(0.3)


def test_single_answer_and_each_set_member_score_one():
    assert answer_scores(rows_of("chair")) == {"chair": 1.0}
    assert answer_scores(rows_of("cup", "plate"), rule="set") == {"cup": 1.0, "plate": 1.0}


def test_majority_answer_is_the_first_most_frequent():
    assert majority_answer(rows_of("b", "c", "c", "B!")) == "b"
    assert majority_answer(rows_of("the")) == "the"
    assert majority_answer([]) is None


@pytest.mark.parametrize(
    ("answers", "kind"),
    [(("yes", "no", "yes"), "yes/no"), (("Two", "2", "3"), "number"), (("1.5",), "number"), (("dog",), "other")],
)
def test_answer_type_follows_the_majority_answer(answers, kind):
    assert answer_type(rows_of(*answers)) == kind
