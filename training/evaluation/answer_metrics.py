"""Further metrics of answers, loaded from `training/metrics`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate

METRICS = ("vqa_accuracy", "wups")


def compute_metrics(names: Sequence[str], answers: Sequence[str], rows: datasets.Dataset) -> dict[str, Any]:
    """
    Args:
        names: of `METRICS`.
        answers: the answers to `rows`.

    Returns:
        For `vqa_accuracy`: that of the official evaluation, and `vqa_accuracy_yes/no`, `vqa_accuracy_number` and
        `vqa_accuracy_other` by answer type. For `wups`: `wups_0.9`, `wups_0.0` and `set_accuracy`, which compare with
        the whole set of right answers; `first_answer_accuracy` and `first_answer_wups_0.9` compare with the first.

    Raises:
        ValueError: an unknown name.
        ImportError: WUPS needs WordNet and does not find it; the message says how to get it.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"there is no metric {unknown[0]!r}; the metrics are {', '.join(METRICS)}")
    measures = {"vqa_accuracy": _official_accuracy, "wups": _wups}
    results: dict[str, Any] = {}
    for name in names:
        metric = evaluate.load(str(Path(__file__).parents[1] / "metrics" / name))
        results |= measures[name](metric, answers, rows)
    return results


def validate_metrics(names: Sequence[str]) -> None:
    """Try [`compute_metrics`] on one answer, so that what is missing is reported before a long training.

    Raises:
        ValueError, ImportError: see [`compute_metrics`].
    """
    compute_metrics(names, ["yes"], datasets.Dataset.from_dict({"answers": [[{"answer": "no", "count": 1}]]}))


def _official_accuracy(metric: Any, answers: Sequence[str], rows: datasets.Dataset) -> dict[str, Any]:
    measured = metric.compute(predictions=answers, references=rows["answers"])
    kinds = measured["per_answer_type"].items()
    return {"vqa_accuracy": measured["accuracy"], **{f"vqa_accuracy_{kind}": value for kind, value in kinds}}


def _wups(metric: Any, answers: Sequence[str], rows: datasets.Dataset) -> dict[str, Any]:
    predicted = [[answer] for answer in answers]
    right = [[answer["answer"] for answer in given] for given in rows["answers"]]
    whole = metric.compute(predictions=predicted, references=right)
    first = metric.compute(predictions=predicted, references=[answers[:1] for answers in right])
    return {
        "set_accuracy": whole["accuracy"],
        "wups_0.9": whole["wups_0.9"],
        "wups_0.0": whole["wups_0.0"],
        "first_answer_accuracy": first["accuracy"],
        "first_answer_wups_0.9": first["wups_0.9"],
    }
