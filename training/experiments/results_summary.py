"""The summary of the finished runs of a table: means and standard deviations over seeds, and paired gains."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from ..evaluation.faithfulness import CURVES
from ..files.run_files import FAITHFULNESS, QUESTIONS
from ..fitting.run_folder import finished_results
from .results_table import ResultsTable

TIMES = ("training_seconds", "milliseconds_per_question")
QUESTION_COLUMNS = ["question_id", "image_id", "score"]


@dataclass(frozen=True)
class FinishedRun:
    """
    Args:
        results: of `training_run.train`.
        questions: `question_id`, `image_id` and `score` of every question.
        faithfulness: of `faithfulness.faithfulness_curves`, where it was measured.
    """

    results: dict[str, Any]
    questions: dict[str, list]
    faithfulness: dict[str, Any] | None


Runs = Mapping[str, Mapping[int, FinishedRun]]  # row name -> seed -> run


def summarize(table: ResultsTable, output_dir: Path) -> dict[str, Any]:
    """
    Summarize the finished runs of the table's present recipes.

    Returns:
        `table`, its name. `majority`, the mean accuracy of the majority answer. `data`, `versions` and, if every run
        says it, `device`; several values are joined by commas. `splits`, the number of validation splits, if each
        seed has its own. `rows`, for each row with a finished run:

        - `name`, `seeds`, and the `recipe` and `baseline` of its first run;
        - `accuracy` (`all` and each question type), `attention` (measure -> source), and where they were measured
          `metrics`, `shuffled_questions` and `faithfulness` (source -> curve -> area): each value is `mean`, `std`
          and `values` over the seeds;
        - `cost`: medians;
        - `gain` over the row that trains without images, if the table has one: see [`paired_gain`].
    """
    runs = _finished_runs(table, output_dir)
    rows = [
        {"name": name, "seeds": list(of_row), **_summarize_row(list(of_row.values()))} for name, of_row in runs.items()
    ]
    blind = next((row.name for row in table.rows if row.baseline == "blank_images"), "")
    for summary in rows:
        seeds = [seed for seed in summary["seeds"] if seed in runs.get(blind, {})]
        if seeds and summary["name"] != blind:
            ours, theirs = ([runs[name][seed].questions for seed in seeds] for name in (summary["name"], blind))
            summary["gain"] = paired_gain(ours, theirs)
    majority = {
        seed: run.results["baselines"]["majority"]["accuracy"]
        for of_row in runs.values()
        for seed, run in of_row.items()
    }
    shared = _shared([run.results for of_row in runs.values() for run in of_row.values()])
    if table.split_by_seed:
        shown = next((name for name in runs if name != blind), blind)
        shared["data"] = _data_of_splits(shared["data"], list(runs[shown].values()))
        shared["splits"] = max(len(row["seeds"]) for row in rows)
    return {"table": table.name, "majority": statistics.fmean(majority.values()), **shared, "rows": rows}


def _finished_runs(table: ResultsTable, output_dir: Path) -> dict[str, dict[int, FinishedRun]]:
    runs: dict[str, dict[int, FinishedRun]] = {}
    for row in table.rows:
        for seed in table.seeds:
            recipe = table.recipe(row, seed, output_dir)
            results = finished_results(recipe, row.baseline)
            if results is None:
                continue
            questions = parquet.read_table(recipe.output_dir / QUESTIONS, columns=QUESTION_COLUMNS).to_pydict()
            curves = recipe.output_dir / FAITHFULNESS[0]
            faithfulness = json.loads(curves.read_text()) if curves.exists() else None
            runs.setdefault(row.name, {})[seed] = FinishedRun(results, questions, faithfulness)
    return runs


def _shared(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs have in common: `data`, `versions` and `device`."""
    packages = dict.fromkeys(name for run in results for name in run["versions"])
    versions = {name: _joined(run["versions"].get(name, "none") for run in results) for name in packages}
    shared: dict[str, Any] = {"data": dict(results[-1]["data"]), "versions": versions}
    if all("device" in run for run in results):
        shared["device"] = _joined(run["device"] for run in results)
    return shared


def _data_of_splits(data: dict[str, Any], runs: list[FinishedRun]) -> dict[str, Any]:
    """`data` for all seeds together: rows and images of any split, and the mean reach of the vocabularies."""
    whole = {name: value for name, value in data.items() if name not in ("split", "fingerprint", "vocabulary")}
    for count, column in (("rows", "question_id"), ("images", "image_id")):
        whole[count] = len({value for run in runs for value in run.questions[column]})
    reaches = [run.results["data"]["vocabulary"]["validation"] for run in runs]
    means = {name: statistics.fmean(reach[name] for reach in reaches) for name in ("coverage", "oracle_ceiling")}
    return whole | {"vocabulary": {"validation": means}}


def _summarize_row(runs: list[FinishedRun]) -> dict[str, Any]:
    results = [run.results for run in runs]
    metrics = _spreads([run["metrics"] for run in results])
    kinds = [{kind: values["accuracy"] for kind, values in run["per_question_type"].items()} for run in results]
    summary: dict[str, Any] = {
        "accuracy": {"all": metrics.pop("accuracy"), **_spreads(kinds)},
        "attention": {
            measure: _spreads([run["attention"].get(measure, {}) for run in results])
            for measure in dict.fromkeys(measure for run in results for measure in run["attention"])
        },
        "cost": {
            "trained_parameters": round(statistics.median(run["cost"]["trained_parameters"] for run in results)),
            **{name: statistics.median(run["cost"][name] for run in results) for name in TIMES},
        },
        "recipe": results[0]["recipe"],
        "baseline": results[0].get("baseline"),
    }
    if metrics:
        summary["metrics"] = metrics
    if shuffled := _spreads([run["baselines"].get("shuffled_questions", {}) for run in results]):
        summary["shuffled_questions"] = shuffled["accuracy"]
    return summary | _faithfulness(runs)


def _faithfulness(runs: list[FinishedRun]) -> dict[str, Any]:
    """The areas under the curves of the answer's probability; empty unless every run was measured."""
    measured = [run.faithfulness for run in runs if run.faithfulness is not None]
    if len(measured) < len(runs):
        return {}
    areas = [run["auc"] for run in measured]
    faithfulness = {
        source: {
            curve: _spread([area[source][curve]["positive"]["probability"] for area in areas]) for curve in CURVES
        }
        for source in areas[0]
    }
    return {"faithfulness": faithfulness, "faithfulness_questions": measured[0]["questions"]}


def paired_gain(better: Sequence[Mapping[str, list]], other: Sequence[Mapping[str, list]]) -> dict[str, Any]:
    r"""
    How much more accurate some runs are than others on the same questions, with its standard error.

    Over all seeds, with \\(d_i\\) the sum of the differences and \\(n_i\\) the number of the questions about image i,
    the gain is \\(g = \sum d_i / n\\) and its standard error \\(\sqrt{\sum_i (d_i - g n_i)^2} / n\\). Images are the
    sampling unit: the questions about one image depend on one another, also across seeds (Cochran, Sampling
    Techniques, 1977, 6.3).

    Args:
        better, other: for each seed the `question_id`, `image_id` and `score` of every question.

    Returns:
        `mean` and `standard_error`, and the gain of each seed as `values`.

    Raises:
        ValueError: the runs answered different questions.
    """
    differences, images, values = [], [], []
    for ours, theirs in zip(better, other, strict=True):
        if ours["question_id"] != theirs["question_id"]:
            raise ValueError("the runs answered different questions: train them on the same data")
        of_seed = np.subtract(ours["score"], theirs["score"])
        differences += list(of_seed)
        images += ours["image_id"]
        values.append(float(of_seed.mean()))
    image = np.unique(images, return_inverse=True)[1]
    questions, sums = np.bincount(image), np.bincount(image, differences)
    gain = float(np.mean(differences))
    error = float(np.sqrt(((sums - gain * questions) ** 2).sum())) / len(differences)
    return {"mean": gain, "standard_error": error, "values": values}


def _spreads(measured: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """The spread of each name over the seeds that have it; a split may lack a question type."""
    names = dict.fromkeys(name for values in measured for name in values)
    return {name: _spread([values[name] for values in measured if name in values]) for name in names}


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
