"""The accuracy of answers, and of one answer to every question."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import datasets
import numpy as np

from ..data.answers import AnswerRule, answer_key, answer_scores


def answer_accuracy(
    answers: Sequence[str], rows: datasets.Dataset, answer_rule: AnswerRule, normalize: bool
) -> np.ndarray:
    """The score in [0, 1] of each answer: its agreement with the row's annotators, see `answers.answer_scores`."""
    return np.array(
        [
            answer_scores(expected, answer_rule, normalize).get(answer_key(answer, normalize), 0.0)
            for answer, expected in zip(answers, rows["answers"], strict=True)
        ]
    )


def best_answer(totals: Mapping[str, float]) -> str:
    """The answer with the highest total score, the first in alphabetical order of equals."""
    return min(totals, key=lambda answer: (-round(totals[answer], 9), answer))


def best_single_answer(rows: datasets.Dataset, answer_rule: AnswerRule, normalize: bool) -> str:
    """The answer that scores most if every question of `rows` gets it. It does not depend on the order of the rows."""
    totals: dict[str, float] = defaultdict(float)
    for answers in rows["answers"]:
        for answer, score in answer_scores(answers, answer_rule, normalize).items():
            totals[answer] += score
    return best_answer(totals)


def majority_accuracy(
    train: datasets.Dataset, rows: datasets.Dataset, answer_rule: AnswerRule, normalize: bool
) -> float:
    """The accuracy on `rows` of the one answer that scores most on `train`."""
    majority = best_single_answer(train, answer_rule, normalize)
    return float(answer_accuracy([majority] * len(rows), rows, answer_rule, normalize).mean())


def by_type(values: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    """The mean of `values` for each question type that has a name."""
    groups: dict[str, list[float]] = defaultdict(list)
    for value, kind in zip(values, types, strict=True):
        if kind:
            groups[kind].append(float(value))
    return {kind: float(np.mean(group)) for kind, group in sorted(groups.items())}
