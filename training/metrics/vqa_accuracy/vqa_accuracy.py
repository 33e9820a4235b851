"""Accuracy of the official VQA evaluation, as an `evaluate` metric."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from modeling_qca.training.data.answers import agreement, answer_type, clean_answer, normalize_answer

_DESCRIPTION = """\
VQA accuracy (Antol et al., ICCV 2015): the mean of min(1, matches / 3) over the subsets of the human answers that
leave one annotator out, with the answer normalization of the official evaluation code. With fewer
than three annotators left, an answer that matches all of them scores 1.
"""
_CITATION = """\
@inproceedings{antol2015vqa,
  title={{VQA}: Visual Question Answering},
  author={Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv
          and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle={ICCV},
  year={2015}
}
"""
_INPUTS = """\
Args:
    predictions: one answer string per question.
    references: per question the human answers, [{"answer": str, "count": int}, ...].
    question_types: per question its type, for `per_question_type`. Optional.
    answer_types: per question `yes/no`, `number` or `other`, for `per_answer_type`. By default the type of the most
        frequent human answer.
    always_normalize: normalize every question's answers. The official evaluation (False) normalizes only where the
        human answers differ.
Returns:
    accuracy in [0, 1], per_question_type (where types are given) and per_answer_type, each a dict of accuracies.
"""


def question_accuracy(prediction: str, answers: Sequence[Mapping[str, Any]], always_normalize: bool = False) -> float:
    """Accuracy in [0, 1] of one predicted answer against `answers`, a list of {"answer", "count"}.

    Raises:
        ValueError: `answers` is empty.
    """
    if not answers:
        raise ValueError("a question without human answers has no accuracy; leave such questions out")
    differ = len({clean_answer(answer["answer"]) for answer in answers}) > 1
    form = normalize_answer if differ or always_normalize else clean_answer
    predicted = form(prediction)
    matches = sum(answer["count"] for answer in answers if form(answer["answer"]) == predicted)
    return agreement(matches, sum(answer["count"] for answer in answers))


class VQAAccuracy(evaluate.Metric):
    """VQA accuracy over a set of questions; `question_accuracy` is the rule for one."""

    def _info(self) -> evaluate.MetricInfo:
        answer = {"answer": datasets.Value("string"), "count": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.List(answer)}),
            reference_urls=["https://visualqa.org/evaluation.html"],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[Mapping[str, Any]]],
        question_types: Sequence[str] | None = None,
        answer_types: Sequence[str] | None = None,
        always_normalize: bool = False,
    ) -> dict[str, Any]:
        scores = [
            question_accuracy(prediction, answers, always_normalize)
            for prediction, answers in zip(predictions, references, strict=True)
        ]
        kinds = answer_types if answer_types is not None else [answer_type(answers) for answers in references]
        result: dict[str, Any] = {"accuracy": sum(scores) / len(scores), "per_answer_type": _means(scores, kinds)}
        if question_types is not None:
            result["per_question_type"] = _means(scores, question_types)
        return result


def _means(scores: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for score, kind in zip(scores, kinds, strict=True):
        groups[kind].append(score)
    return {kind: sum(group) / len(group) for kind, group in sorted(groups.items())}
