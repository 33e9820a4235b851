"""Measure how well calibrated runs know when not to answer: calibration, selective accuracy, unfamiliar questions.

    python scripts/confidence/figures.py rooms=RUN,RUN daquar=RUN --output docs/results/confidence.json

Each RUN is the folder of a training that `qca calibrate RUN` has calibrated. Its `calibration.json` was measured by
cross-fitting, see `training/evaluation/calibrate.py`. Questions of the other data sets, and its own with their words
shuffled, are told from its own held-out questions by their distance.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from modeling_qca.training.confidence.abstention import read_calibration
from modeling_qca.training.evaluation.calibrate import embed_questions, read_familiarity
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.evaluation.evaluation_data import evaluation_data
from modeling_qca.training.files.run_files import read_run, write_json

COVERAGE = 0.8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=RUN,RUN,...")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    runs = {name: folders.split(",") for name, _, folders in (given.partition("=") for given in arguments.runs)}
    questions = {name: _held_out_questions(folders[0]) for name, folders in runs.items()}
    measured = {
        name: {
            "runs": [_confidence(folder) for folder in folders],
            "unfamiliar": _unfamiliar(folders[0], name, questions),
        }
        for name, folders in runs.items()
    }
    write_json(arguments.output, {"tables": [_error_table(measured), *_other_tables(measured)], "measured": measured})


def _confidence(run: str) -> dict[str, Any]:
    """Calibration error before and after, and what the share of the possible gain at 80 % coverage is."""
    content = read_calibration(run)
    if content is None:
        raise ValueError(f"{run} is not calibrated: run `qca calibrate {run}`")
    before, after = (content[when]["calibration"] for when in ("before", "after"))
    levels = {level["coverage"]: level for level in content["after"]["selective"]["at"]}
    accuracy, best = (levels[COVERAGE][name] for name in ("accuracy", "best_possible"))
    return {
        "questions": content["data"]["rows"],
        "images": content["data"]["images"],
        "accuracy": levels[1.0]["accuracy"],
        "temperature": content["temperature"],
        "ece_before": before["ece"],
        "ece_before_interval": before["ece_interval"],
        "ece_after": after["ece"],
        "ece_after_interval": after["ece_interval"],
        "ece_if_calibrated": after["ece_if_calibrated"],
        "accuracy_at_80": accuracy,
        "best_possible_at_80": best,
        "share_of_possible_gain": (accuracy - levels[1.0]["accuracy"]) / (best - levels[1.0]["accuracy"]),
        "aurc": content["after"]["selective"]["aurc"],
    }


def _unfamiliar(run: str, own: str, questions: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]] | None:
    """For shuffled questions and those of each other data set: area under the ROC curve, and the share flagged."""
    familiarity = read_familiarity(run)
    if familiarity is None:
        return None
    pipeline = load_pipeline(run)
    asked = {"own": list(questions[own]), "shuffled words": shuffled_words(questions[own])}
    asked |= {f"questions of {name}": list(texts) for name, texts in questions.items() if name != own}
    distances = {
        name: familiarity.distances(embed_questions(pipeline.model, pipeline.processor, texts))
        for name, texts in asked.items()
    }
    usual = distances.pop("own")
    flagged = {"own questions": {"flagged": float((usual > familiarity.threshold).mean())}}
    return flagged | {
        name: {"auroc": auroc(usual, values), "flagged": float((values > familiarity.threshold).mean())}
        for name, values in distances.items()
    }


def auroc(usual: np.ndarray, unusual: np.ndarray) -> float:
    """The probability that an unusual value is the larger one; half for a tie (Mann and Whitney 1947)."""
    ranks = rankdata(np.concatenate([usual, unusual]))[len(usual) :]
    return float((ranks.sum() - len(unusual) * (len(unusual) + 1) / 2) / (len(usual) * len(unusual)))


def shuffled_words(questions: Sequence[str], seed: int = 0) -> list[str]:
    """Each question with its words in another order. Those that have none, such as `why`, are left out."""
    generator = random.Random(seed)
    found = []
    for question in questions:
        words = question.removesuffix("?").split()
        if len(set(words)) > 1:
            order = words[:]
            while order == words:
                generator.shuffle(order)
            found.append(" ".join(order) + "?" * question.endswith("?"))
    return found


def _error_table(measured: Mapping[str, Any]) -> dict[str, Any]:
    columns = ["calibration error [95 %]", "questions", "temperature", "before", "after", "if calibrated"]
    rows = []
    for name, of in measured.items():
        for seed, run in enumerate(of["runs"]):
            label = name if len(of["runs"]) == 1 else f"{name}, run {seed + 1}"
            errors = [_interval(run[f"ece_{when}"], run[f"ece_{when}_interval"]) for when in ("before", "after")]
            counts = [f"{run['questions']:,}", f"{run['temperature']:.2f}"]
            rows.append([label, *counts, *errors, f"{run['ece_if_calibrated']:.3f}"])
    return {"columns": columns, "rows": rows}


def _other_tables(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("accuracy", "accuracy_at_80", "best_possible_at_80", "share_of_possible_gain")
    answered, told = [], []
    for name, of in measured.items():
        for seed, run in enumerate(of["runs"]):
            label = name if len(of["runs"]) == 1 else f"{name}, run {seed + 1}"
            answered.append([label, *(f"{run[value]:.3f}" for value in names)])
        for kind, values in (of["unfamiliar"] or {}).items():
            area = f"{values['auroc']:.3f}" if "auroc" in values else ""
            told.append([name, kind, area, f"{values['flagged']:.1%}"])
    gains = ["accuracy", "all answers", "surest 80 %", "best possible at 80 %", "share of the possible gain"]
    return [
        {"columns": gains, "rows": answered},
        {"columns": ["unfamiliar questions of", "asked", "AUROC", "flagged"], "rows": told},
    ]


def _interval(value: float, bounds: Sequence[float]) -> str:
    return f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _held_out_questions(run: str) -> list[str]:
    return evaluation_data(run, read_run(run), None, None, {}).rows()["question"][:]


if __name__ == "__main__":
    main()
