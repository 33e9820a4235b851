"""The evidence table: every row of a file of rows trained from several seeds, and what they say together."""

import json
import logging
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as parquet
import torch
from safetensors.torch import load_model

from modeling_qca import QCAProcessor

from ..evaluation.checkpoint import load_checkpoint
from ..evaluation.faithfulness import CURVES, measure_faithfulness
from ..evaluation.provenance import command_line
from ..files.atomic_write import atomic_write
from ..files.run_files import DOCUMENT, FAITHFULNESS, FIGURE, QUESTIONS, RECIPE, REPORT, RESULTS, write_json
from ..files.safe_yaml import parse_yaml
from ..fitting.model_factory import build_model
from ..fitting.recipe import Recipe, make_recipe, read_recipe
from ..fitting.reference_model import reference_model
from ..fitting.training_run import Baseline, finished_results, load_splits, train
from .results_report import rows_table

logger = logging.getLogger(__name__)
TIMES = ("training_seconds", "milliseconds_per_question")


@dataclass(frozen=True)
class ResultsRow:
    """
    Args:
        name: as it stands in the table.
        values: keys of a recipe that differ from the table's.
        init_from: row whose checkpoint of the same seed this one starts from.
        baseline: `blank_images` trains without sight, `reference_model` the reference model.
        faithfulness_questions: how many questions to measure `faithfulness.faithfulness_curves` on, in the precision
            it was trained in.
    """

    name: str
    values: Mapping[str, Any]
    init_from: str | None = None
    baseline: Baseline | None = None
    faithfulness_questions: int = 0

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


@dataclass(frozen=True)
class ResultsTable:
    """Rows in the order they are trained and shown; `values` are the keys of a recipe they share. With `split_by_seed`
    each seed has a development split of its own."""

    name: str
    seeds: list[int]
    values: Mapping[str, Any]
    rows: list[ResultsRow]
    split_by_seed: bool = False

    def recipe(self, row: ResultsRow, seed: int, output_dir: Path) -> Recipe:
        """The recipe of one run.

        Raises:
            ValueError: see `recipe.make_recipe`.
        """
        values = {**self.values, **row.values, "seed": seed, "output_dir": str(output_dir / row.folder / str(seed))}
        if self.split_by_seed:
            values["data_seed"] = seed
        if row.init_from is not None:
            before = next(other for other in self.rows if other.name == row.init_from)
            values |= {
                "model": str(output_dir / before.folder / str(seed)),
                "vision_encoder": None,
                "text_encoder": None,
            }
        return make_recipe(values, f"{self.name}: {row.name}")


def load_table(path: str | os.PathLike, overrides: Mapping[str, str] | None = None) -> ResultsTable:
    """
    Read a file of rows: `recipe` (the file every row begins with), `common` keys, `seeds` and `rows`, and where wanted
    `split_by_seed: true`.

    Args:
        overrides: values of keys for every row as YAML text, such as where the data lies.

    Raises:
        ValueError: where the file is not such a table; the message names it and the row.
    """
    path = Path(path)
    content = read_recipe(path)
    try:
        values = {**read_recipe(path.parent / content.pop("recipe")), **content.pop("common")}
        seeds, described = list(content.pop("seeds")), dict(content.pop("rows"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: needs `recipe`, `common`, `seeds` and `rows` ({error})") from error
    split_by_seed = content.pop("split_by_seed", False)
    if content:
        raise ValueError(
            f"{path}: a table has no key `{min(content)}`; it may have `split_by_seed` beside those it needs"
        )
    if not isinstance(split_by_seed, bool):
        raise ValueError(f"{path}: `split_by_seed` is {split_by_seed!r}, neither true nor false")
    values |= {key: parse_yaml(text, f"--{key}") for key, text in (overrides or {}).items()}
    rows: list[ResultsRow] = []
    for name, keys in described.items():
        keys = dict(keys or {})
        own = {key: keys.pop(key) for key in ("init_from", "baseline", "faithfulness_questions") if key in keys}
        row = ResultsRow(name, keys, **own)
        if row.init_from is not None and row.init_from not in (other.name for other in rows):
            raise ValueError(f"{path}: {name}: `init_from` names {row.init_from!r}, which is no row above it")
        if row.baseline is not None and row.baseline not in get_args(Baseline):
            raise ValueError(
                f"{path}: {name}: `baseline` is {row.baseline!r}, not one of {', '.join(get_args(Baseline))}"
            )
        without_hops = {**values, **keys}.get("num_attention_layers") == 0
        if row.faithfulness_questions and (row.baseline == "blank_images" or without_hops):
            raise ValueError(
                f"{path}: {name}: `faithfulness_questions` are of maps; a row without sight or without hops has none"
            )
        rows.append(row)
    return ResultsTable(path.stem, seeds, values, rows, split_by_seed)


def run_table(
    table: ResultsTable,
    output_dir: Path,
    seeds: Sequence[int] | None = None,
    after_run: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """
    Train and evaluate every row that is not finished yet, seed after seed, and summarize what is.

    Args:
        output_dir: gets a folder for each run, and `results.json`, its tables in `results.md` and its figure in
            `results.png`, written anew after each run.
        seeds: only these; several calls with other seeds may run side by side.
        after_run: what else to do with the summary after each run.

    Returns:
        The summary, see [`summarize`], and the `command`.

    Raises:
        ValueError: for a seed that is not the table's; and see `train.train`.
        ImportError: where matplotlib is missing.
    """
    from ..evaluation.figures import rows_figure, write_figure

    chosen = table.seeds if seeds is None else seeds
    if unknown := set(chosen) - set(table.seeds):
        raise ValueError(f"{table.name} has no seed {min(unknown)}, only {', '.join(map(str, table.seeds))}")
    recipes = {(row.name, seed): table.recipe(row, seed, output_dir) for row in table.rows for seed in table.seeds}
    for row in table.rows:
        for seed in table.seeds:
            recipe = recipes[row.name, seed]
            if (recipe.output_dir / RESULTS).exists() and finished_results(recipe, row.baseline) is None:
                logger.warning("%s is of another recipe: not in the table until it is trained anew", recipe.output_dir)
    summary: dict[str, Any] = {}
    for seed in chosen:
        for row in table.rows:
            logger.warning("%s: %s, seed %d", table.name, row.name, seed)
            train(recipes[row.name, seed], row.baseline)
            if row.init_from is not None:
                _warn_of_older(recipes[row.name, seed].output_dir, recipes[row.init_from, seed].output_dir)
            if row.faithfulness_questions:
                _measure_faithfulness(recipes[row.name, seed], row.baseline, row.faithfulness_questions)
            latest = summarize(table, output_dir) | {"command": command_line()}
            if latest == summary:  # that run was finished already
                continue
            summary = latest
            write_json(output_dir / RESULTS, summary)
            with atomic_write(output_dir / REPORT) as unfinished:
                unfinished.write_text(rows_table(summary) + "\n")
            write_figure(rows_figure(summary), output_dir / FIGURE)
            if after_run is not None:
                after_run(summary)
    return summary


def _warn_of_older(folder: Path, before: Path) -> None:
    """A finished run is not trained again because what it started from was."""
    finished = [file.stat().st_mtime for file in (folder / RESULTS, before / RESULTS) if file.exists()]
    if len(finished) == 2 and finished[0] < finished[1]:
        logger.warning("%s is older than %s, which it starts from; remove it to train it again", folder, before)


def _measure_faithfulness(recipe: Recipe, baseline: Baseline | None, questions: int) -> None:
    """Of the checkpoint of a finished run, once for that many questions."""
    folder, arguments = recipe.output_dir, recipe.training_arguments()
    measured, rows = folder / FAITHFULNESS[0], load_splits(recipe)[1]
    if (
        measured.exists()
        and measured.stat().st_mtime > (folder / RESULTS).stat().st_mtime
        and json.loads(measured.read_text())["questions"] == min(questions, len(rows))
    ):
        return
    model, processor = _load_trained(recipe, baseline)
    model.to(arguments.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=arguments.bf16):
        measure_faithfulness(model, processor, rows, folder, questions, seed=arguments.seed)


def _load_trained(recipe: Recipe, baseline: Baseline | None) -> tuple[Any, QCAProcessor]:
    """The model that a finished run left, and its processor."""
    folder = recipe.output_dir
    if baseline != "reference_model":
        return load_checkpoint(str(folder)), QCAProcessor.from_pretrained(folder)
    if not (folder / DOCUMENT).exists():
        raise ValueError(f"{folder} has no {DOCUMENT}, as runs of an earlier release: remove it to train it anew")
    model, processor = build_model(recipe, json.loads((folder / RECIPE).read_text())["answers"])
    document = reference_model(model)
    load_model(document, str(folder / DOCUMENT))
    return document, processor


def summarize(table: ResultsTable, output_dir: Path) -> dict[str, Any]:
    """
    Returns:
        `rows`: for each that has a finished run of the table's present recipe its `name`, `seeds`, and the mean,
        standard deviation and `values` over them of `accuracy` (`all` and each question type), `attention` (measure ->
        source), `shuffled_questions` and, where it was measured, `faithfulness` (source -> areas under the curves of
        the answer's probability), and the medians of `cost`; besides `majority`, `data`, `versions` and `device` of
        the runs, several with commas between them, and how many development `splits` their questions are of, where
        each seed has its own. Rows measured by further metrics have their spread as `metrics`; where a row trains
        without sight, the others have their `gain` over it, see [`paired_gain`].
    """
    rows: list[dict[str, Any]] = []
    finished: list[dict[str, Any]] = []
    majority: dict[int, float] = {}
    scores: dict[str, dict[int, dict[str, list]]] = {}
    blind = next((row.name for row in table.rows if row.baseline == "blank_images"), "")
    for row in table.rows:
        runs = {}
        for seed in table.seeds:
            recipe = table.recipe(row, seed, output_dir)
            if (run := finished_results(recipe, row.baseline)) is not None:
                runs[seed] = run
                majority[seed] = run["baselines"]["majority"]["accuracy"]
                columns = ["question_id", "image_id", "score"]
                answered = parquet.read_table(recipe.output_dir / QUESTIONS, columns=columns).to_pydict()
                scores.setdefault(row.name, {})[seed] = answered
                if (curves := recipe.output_dir / FAITHFULNESS[0]).exists():
                    run["faithfulness"] = json.loads(curves.read_text())
        finished += runs.values()
        if runs:
            rows.append({"name": row.name, "seeds": list(runs), **_summary(list(runs.values()))})
    for summary in rows:
        seeds = [seed for seed in summary["seeds"] if seed in scores.get(blind, {})]
        if seeds and summary["name"] != blind:
            ours, theirs = ([scores[name][seed] for seed in seeds] for name in (summary["name"], blind))
            summary["gain"] = paired_gain(ours, theirs)
    last = finished[-1]
    packages = dict.fromkeys(name for run in finished for name in run["versions"])
    versions = {name: _each(run["versions"].get(name, "none") for run in finished) for name in packages}
    shared: dict[str, Any] = {"data": last["data"], "versions": versions}
    if all("device" in run for run in finished):
        shared["device"] = _each(run["device"] for run in finished)
    if table.split_by_seed:
        for of_one_seed in ("split", "fingerprint", "vocabulary"):
            shared["data"].pop(of_one_seed, None)
        shown = next((row["name"] for row in rows if row["name"] != blind), blind)
        for count, column in (("rows", "question_id"), ("images", "image_id")):
            shared["data"][count] = len({value for run in scores[shown].values() for value in run[column]})
        shared["splits"] = max(len(row["seeds"]) for row in rows)
    return {"table": table.name, "majority": statistics.fmean(majority.values()), **shared, "rows": rows}


def paired_gain(better: Sequence[Mapping[str, list]], other: Sequence[Mapping[str, list]]) -> dict[str, Any]:
    r"""
    How much more accurate some runs are than others on the same questions, and how sure that is.

    Over all seeds, with \\(d_i\\) the sum of the differences and \\(n_i\\) the number of the questions about image i,
    the gain is \\(g = \sum d_i / n\\) and its standard error \\(\sqrt{\sum_i (d_i - g n_i)^2} / n\\): images are what
    was drawn, their questions hang together, from one seed to the next too (Cochran, Sampling Techniques, 1977, 6.3).

    Args:
        better, other: of each seed the `question_id`, `image_id` and `score` of every question.

    Returns:
        `mean` and `standard_error`, and the gain of each seed as `values`.
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


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = _spreads([run["metrics"] for run in runs])
    summary: dict[str, Any] = {
        "accuracy": {
            "all": metrics.pop("accuracy"),
            **_spreads(
                [{kind: values["accuracy"] for kind, values in run["per_question_type"].items()} for run in runs]
            ),
        },
        "attention": {
            measure: _spreads([run["attention"].get(measure, {}) for run in runs])
            for measure in dict.fromkeys(measure for run in runs for measure in run["attention"])
        },
        "cost": {
            "trained_parameters": round(statistics.median(run["cost"]["trained_parameters"] for run in runs)),
            **{name: statistics.median(run["cost"][name] for run in runs) for name in TIMES},
        },
        "recipe": runs[0]["recipe"],
        "baseline": runs[0].get("baseline"),
    }
    if metrics:
        summary["metrics"] = metrics
    shuffled = _spreads([run["baselines"].get("shuffled_questions", {}) for run in runs])
    if shuffled:
        summary["shuffled_questions"] = shuffled["accuracy"]
    if all("faithfulness" in run for run in runs):
        areas = [run["faithfulness"]["auc"] for run in runs]
        summary["faithfulness"] = {
            source: {
                curve: _spread([area[source][curve]["positive"]["probability"] for area in areas]) for curve in CURVES
            }
            for source in areas[0]
        }
        summary["faithfulness_questions"] = runs[0]["faithfulness"]["questions"]
    return summary


def _spreads(measured: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Of each name over the seeds that have it: a question type may be missing from a seed's split."""
    names = dict.fromkeys(name for values in measured for name in values)
    return {name: _spread([values[name] for values in measured if name in values]) for name in names}


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def _each(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
