"""Thresholds and coverages that say when a checkpoint gives no answer."""

import pytest
from helpers.calibration import write_calibration

from modeling_qca.training.confidence.abstention import Abstention, check_abstain_answer, read_abstention


@pytest.fixture
def calibrated(tmp_path):
    write_calibration(tmp_path, [1 - percent / 100 for percent in range(1, 101)], abstain_answer="unanswerable")
    return tmp_path


def test_a_probability_below_the_threshold_gives_no_answer():
    abstention = Abstention(0.5)
    assert abstention("red", 0.49) and not abstention("red", 0.5)
    assert not Abstention()("red", 0.0)


def test_an_answer_that_means_no_answer_abstains_at_any_probability(calibrated):
    assert read_abstention(str(calibrated))("unanswerable", 0.99)
    assert not read_abstention(str(calibrated))("red", 0.01)


@pytest.mark.parametrize(("coverage", "threshold"), [(0.9, 0.1), (0.5, 0.5), (0.905, 0.095), (1.0, 0.0)])
def test_a_coverage_becomes_the_threshold_of_the_calibration(calibrated, caplog, coverage, threshold):
    assert read_abstention(str(calibrated), coverage=coverage).threshold == pytest.approx(threshold)
    assert not caplog.text


def test_warns_when_the_calibration_did_not_reach_the_coverage(tmp_path, caplog):
    write_calibration(tmp_path, [0.5] * 80 + [0.0] * 20)
    assert read_abstention(str(tmp_path), coverage=0.9).threshold == 0
    assert "answered fewer than 90 % of the questions" in caplog.text


def test_a_coverage_of_1_gives_answers_that_are_less_sure_than_every_row_of_the_calibration(tmp_path):
    write_calibration(tmp_path, [0.4] * 100)
    assert not read_abstention(str(tmp_path), coverage=1)("red", 0.01)
    assert read_abstention(str(tmp_path), coverage=0.99)("red", 0.39)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 0.5, "coverage": 0.5}, "choose one of them"),
        ({"coverage": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"coverage": 90}, "at most 1, got 90"),
        ({"threshold": 1.5}, "between 0 and 1, got 1.5"),
        ({"coverage": 0.9}, r"has no calibration\.json.*run `qca calibrate`"),
    ],
)
def test_refuses_what_cannot_become_a_threshold(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        read_abstention(str(tmp_path), **given)


@pytest.mark.parametrize("content", ["[]", "{}", '{"temperature": 1, "thresholds": [0.1]}', "{"])
def test_a_damaged_calibration_is_named(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match=r"not the calibration\.json of `qca calibrate`"):
        read_abstention(str(tmp_path), threshold=0.5)


def test_refuses_an_abstain_answer_that_is_no_answer_of_the_model():
    check_abstain_answer(None, ["red"])
    with pytest.raises(ValueError, match=r"'unanswerabel', which is none .* the nearest is 'unanswerable'"):
        check_abstain_answer("unanswerabel", {"red": 0, "unanswerable": 1})
