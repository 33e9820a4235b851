"""Risk and coverage, against values computed by hand."""

import numpy as np
import pytest

from modeling_qca.training.confidence.selective import coverage_thresholds, risk_coverage, selective_table


def test_risk_coverage_equals_hand_computed_values():
    confidence, score = np.array([0.9, 0.3, 0.8, 0.5]), np.array([1.0, 0.0, 0.0, 1.0])
    coverage, accuracy = risk_coverage(confidence, score)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert accuracy == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4])
    assert selective_table(confidence, score)["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_order_of_equally_confident_answers_has_no_effect():
    confidence, score = np.array([0.7, 0.7, 0.7, 0.2]), np.array([1.0, 0.0, 0.0, 1.0])
    expected = [1 / 3, 1 / 3, 1 / 3, 2 / 4]
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [3, 1, 0, 2]):
        assert risk_coverage(confidence[order], score[order])[1] == pytest.approx(expected)


def test_an_answer_that_means_no_answer_is_never_covered():
    confidence, score = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 1.0, 1.0, 0.0])
    unanswered = np.array([True, False, False, False])
    table = selective_table(confidence, score, unanswered)
    assert table["answered"] == 0.75
    coverage, accuracy = risk_coverage(confidence, score, unanswered)
    assert coverage.tolist() == [0.25, 0.5, 0.75] and accuracy == pytest.approx([1, 1, 2 / 3])
    assert table["at"] == []  # no coverage of .8 or more is reached
    assert [of["coverage"] for of in table["curve"]][-1] == 0.75


def test_accuracy_at_a_coverage_is_that_of_the_surest_answers():
    generator = np.random.default_rng(0)
    confidence, score = generator.random(50), generator.random(50).round()
    table = {of["coverage"]: of for of in selective_table(confidence, score)["at"]}
    surest = sorted(zip(confidence, score, strict=True), reverse=True)[:40]
    assert table[0.8]["accuracy"] == pytest.approx(sum(right for _, right in surest) / 40)
    assert table[0.8]["threshold"] == surest[-1][0]
    assert table[0.8]["best_possible"] == pytest.approx(min(1, score.sum() / 40))
    assert table[1.0]["accuracy"] == pytest.approx(score.mean())


@pytest.mark.parametrize("coverage", [0.01, 0.5, 0.9, 1.0])
def test_thresholds_cover_the_share_that_they_are_for(coverage):
    confidence = np.random.default_rng(1).random(500)
    threshold = coverage_thresholds(confidence)[round(100 * coverage) - 1]
    assert (confidence >= threshold).mean() == pytest.approx(coverage)


def test_all_answers_are_given_where_a_coverage_is_not_reached():
    unanswered = np.array([True, True, False, False])
    thresholds = coverage_thresholds(np.array([0.9, 0.8, 0.7, 0.6]), unanswered)
    assert thresholds[49] == 0.6 and thresholds[50] == 0


def test_nothing_is_covered_if_no_question_is_answered():
    table = selective_table(np.array([0.5]), np.array([0.0]), np.array([True]))
    assert table == {"aurc": None, "answered": 0.0, "at": [], "curve": []}
