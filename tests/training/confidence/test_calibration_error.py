"""Expected calibration error and its intervals, against plain loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from modeling_qca.training.confidence.bootstrap import bootstrap_interval, cluster_sums
from modeling_qca.training.confidence.calibration_error import calibration_error, calibration_table


def answers(questions=600, images=60, seed=0):
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.02, 1, questions)
    score = (generator.random(questions) < confidence**2).astype(float)
    return confidence, score, [f"image{index % images}" for index in range(questions)]


def error_by_loop(confidence, score, bins=15):
    total = 0.0
    for number in range(bins):
        inside = [i for i, sure in enumerate(confidence) if number / bins < sure <= (number + 1) / bins]
        if inside:
            accuracy = sum(score[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return total


def test_calibration_error_equals_a_plain_loop_over_bins():
    confidence, score, _ = answers()
    assert calibration_error(confidence, score) == pytest.approx(error_by_loop(confidence, score))


def test_calibration_error_counts_partly_right_answers_as_such():
    assert calibration_error(np.array([0.5, 0.5]), np.array([0.3, 0.9])) == pytest.approx(0.1)
    assert calibration_error(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0


def test_bins_equal_those_of_scikit_learn():
    confidence, score, images = answers()
    bins = calibration_table(confidence, score, images)["bins"]
    accuracy, mean = calibration_curve(score, confidence, n_bins=15)
    assert [of["accuracy"] for of in bins] == pytest.approx(accuracy)
    assert [of["confidence"] for of in bins] == pytest.approx(mean)
    assert sum(of["questions"] for of in bins) == len(score)


def test_calibrated_answers_reach_the_smallest_error_that_few_questions_can_show():
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.02, 1, 400)
    images = [str(index) for index in range(400)]
    calibrated = calibration_table(confidence, (generator.random(400) < confidence).astype(float), images)
    assert calibrated["ece"] == pytest.approx(calibrated["ece_if_calibrated"], abs=0.02)
    overconfident = calibration_table(confidence, np.zeros(400), images)
    assert overconfident["ece"] > 5 * overconfident["ece_if_calibrated"]
    low, high = overconfident["ece_interval"]
    assert low < overconfident["ece"] < high


def test_interval_of_a_mean_equals_its_known_standard_error():
    generator = np.random.default_rng(2)
    values = generator.normal(size=900)
    sums = cluster_sums(np.stack([np.ones(900), values], axis=1), [str(index) for index in range(900)])
    low, high = bootstrap_interval(sums, lambda totals: totals[:, 1] / totals[:, 0])
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 30, rel=0.1)


def test_interval_is_wider_if_answers_about_an_image_agree():
    values = np.repeat(np.random.default_rng(3).normal(size=90), 10)
    sums = [
        cluster_sums(np.stack([np.ones(900), values], axis=1), clusters)
        for clusters in ([str(index // 10) for index in range(900)], [str(index) for index in range(900)])
    ]
    by_image, by_question = (bootstrap_interval(of, lambda totals: totals[:, 1] / totals[:, 0]) for of in sums)
    assert by_image[1] - by_image[0] > 2.5 * (by_question[1] - by_question[0])
