"""Further metrics of answers."""

import datasets
import pytest

from modeling_qca.training.evaluation.answer_metrics import compute_metrics


def test_official_accuracy_leaves_out_one_annotator_at_a_time():
    answers = [[{"answer": "yes", "count": 10}], [{"answer": "2", "count": 2}, {"answer": "3", "count": 8}]]
    rows = datasets.Dataset.from_dict({"answers": answers})
    measured = compute_metrics(["vqa_accuracy"], ["yes", "2"], rows)
    two_of_ten = (8 * 2 / 3 + 2 * 1 / 3) / 10  # the subsets that leave one annotator out
    assert measured["vqa_accuracy_yes/no"] == 1 and measured["vqa_accuracy_number"] == pytest.approx(two_of_ten)
    assert measured["vqa_accuracy"] == pytest.approx((1 + two_of_ten) / 2)
    with pytest.raises(ValueError, match="no metric 'bleu'"):
        compute_metrics(["bleu"], ["yes", "2"], rows)
