"""Selective accuracy: how accurate the answers are if the least sure ones are not given.

n questions, m of them answered at all.
"""

from typing import Any

import numpy as np

COVERAGES = (0.8, 0.9, 1.0)
CURVE = tuple(step / 20 for step in range(1, 21))


def risk_coverage(
    confidence: np.ndarray, score: np.ndarray, unanswered: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The risk-coverage curve (El-Yaniv and Wiener 2010), as accuracies.

    Equally confident answers count with their mean score, so that the order of the questions has no effect.

    Args:
        confidence, score: `[n]`, of the best answer.
        unanswered: `[n]` questions whose best answer means "no answer". They are never covered.

    Returns:
        `[m]` coverage: the share of the questions that get an answer; and `[m]` accuracy of these answers.
    """
    total = len(confidence)
    if unanswered is not None:
        confidence, score = confidence[~unanswered], score[~unanswered]
    _, tie = np.unique(confidence, return_inverse=True)
    mean = np.bincount(tie, weights=score) / np.bincount(tie) if len(tie) else np.zeros(0)
    count = np.arange(1, len(tie) + 1)
    return count / total, np.cumsum(mean[tie][np.argsort(-confidence, kind="stable")]) / count


def selective_table(confidence: np.ndarray, score: np.ndarray, unanswered: np.ndarray | None = None) -> dict[str, Any]:
    """
    Returns:
        `aurc`, the mean risk over the coverages (Geifman et al. 2019); `answered`, the share of the questions whose
        best answer is an answer; `at`: for the coverages .8, .9 and 1 that are reached `coverage`, `accuracy`,
        `threshold` (the lowest confidence of an answer that is given) and `best_possible` (the accuracy if only the
        worst answers were left out); and `curve`: `coverage` and `accuracy` in steps of .05.
    """
    coverage, accuracy = risk_coverage(confidence, score, unanswered)
    answered = np.ones(len(score), bool) if unanswered is None else ~unanswered
    ideal = np.cumsum(np.sort(score[answered])[::-1]) / np.arange(1, answered.sum() + 1)
    descending = np.sort(confidence[answered])[::-1]
    levels = []
    for level in COVERAGES:
        place = covered(level, len(score)) - 1
        if place < len(coverage):
            at = {"accuracy": accuracy[place], "threshold": descending[place], "best_possible": ideal[place]}
            levels.append({"coverage": level, **{name: float(value) for name, value in at.items()}})
    places = [(level, covered(level, len(score)) - 1) for level in CURVE]
    return {
        "aurc": float(np.mean(1 - accuracy)) if len(accuracy) else None,
        "answered": float(answered.mean()),
        "at": levels,
        "curve": [
            {"coverage": level, "accuracy": float(accuracy[place])} for level, place in places if place < len(accuracy)
        ],
    }


def coverage_thresholds(confidence: np.ndarray, unanswered: np.ndarray | None = None) -> list[float]:
    """The thresholds that cover 1, 2, ... 100 % of the questions; 0 for a share that is not reached."""
    answered = confidence if unanswered is None else confidence[~unanswered]
    descending = np.sort(answered)[::-1]
    places = [covered(percent / 100, len(confidence)) - 1 for percent in range(1, 101)]
    return [float(descending[place]) if place < len(descending) else 0.0 for place in places]


def covered(coverage: float, questions: int) -> int:
    """The number of questions that a coverage asks for, at least one."""
    return max(1, int(np.ceil(coverage * questions - 1e-9)))
