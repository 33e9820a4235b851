"""Folders that look like finished runs, written without any training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd


def run_results(accuracy: float, pointing: float | None = None, **fields: Any) -> dict[str, Any]:
    """The `results.json` of a run; `fields` replace its entries."""
    attention = {}
    if pointing is not None:
        sources = {"model": pointing, "center": 0.25, "uniform": 0.2, "shuffled_question": pointing / 2}
        attention = dict.fromkeys(("pointing", "energy", "iou", "spearman"), sources)
        attention["maps"] = {"model": 9, "center": 9, "uniform": 9, "shuffled_question": 8}
    reach = {"rows": 4, "coverage": 1.0, "oracle_ceiling": 1.0}
    return {
        "metrics": {"accuracy": accuracy},
        "per_question_type": {"side": {"accuracy": accuracy / 2}},
        "attention": attention,
        "baselines": {"majority": {"accuracy": 0.3}},
        "cost": {"trained_parameters": 1_230_000, "training_seconds": 12.0, "milliseconds_per_question": 4.0},
        "data": {
            "name": "scenes",
            "split": "validation",
            "rows": 4,
            "images": 2,
            "fingerprint": "0",
            "vocabulary": {"answers": 5, "train": reach, "validation": reach},
        },
        "versions": {"torch": "2.0"},
        "device": "a processor",
        "recipe": {"data": "scenes"},
        "seeds": [0],
        "baseline": None,
    } | fields


def write_run(
    folder: Path,
    results: dict[str, Any],
    scores: Mapping[str, float] | None = None,
    area: float | None = None,
) -> None:
    """
    Args:
        scores: of each question; the first letter of its name is its image.
        area: under every faithfulness curve; None writes no `faithfulness.json`.
    """
    folder.mkdir(parents=True)
    scores = scores or {"a1": 1.0, "a2": 0.0, "b1": 1.0, "b2": 0.0}
    questions = pd.DataFrame({"question_id": list(scores), "score": list(scores.values())})
    questions.assign(image_id=questions["question_id"].str[0]).to_parquet(folder / "questions.parquet")
    (folder / "results.json").write_text(json.dumps(results))
    if area is not None:
        curves = {curve: {"positive": {"probability": area}} for curve in ("deletion", "insertion")}
        content = {"auc": {"relevance": curves, "random": curves}, "questions": 2}
        (folder / "faithfulness.json").write_text(json.dumps(content))
