"""Training the rows of a table, measuring their faithfulness, and writing the summary after each run."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from modeling_qca import QCAProcessor

from ..evaluation.checkpoint import load_checkpoint
from ..evaluation.faithfulness import measure_faithfulness
from ..evaluation.provenance import command_line
from ..files.atomic_write import atomic_write
from ..files.run_files import FAITHFULNESS, FIGURE, RECIPE, REFERENCE_WEIGHTS, REPORT, RESULTS, write_json
from ..fitting.model_factory import build_model
from ..fitting.recipe import Recipe
from ..fitting.reference_model import reference_model
from ..fitting.run_folder import Baseline, finished_results
from ..fitting.splits import load_splits
from ..fitting.training_run import train
from .results_report import rows_table
from .results_summary import summarize
from .results_table import ResultsRow, ResultsTable

logger = logging.getLogger(__name__)


def run_table(
    table: ResultsTable,
    output_dir: Path,
    seeds: Sequence[int] | None = None,
    after_run: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """
    Train and evaluate every row that is not finished yet, seed by seed, and summarize the finished runs.

    Args:
        output_dir: gets a folder for each run, and `results.json`, `results.md` (its tables) and `results.png` (its
            figure), written anew after each run.
        seeds: only these. Several calls with other seeds may run at the same time.
        after_run: called with the summary after each run.

    Returns:
        The summary, see `results_summary.summarize`, and the `command`.

    Raises:
        ValueError: a seed that the table does not have; and see `training_run.train`.
        ImportError: matplotlib is missing.
    """
    from ..evaluation.figures import rows_figure, write_figure  # before anything is trained

    chosen = table.seeds if seeds is None else seeds
    if unknown := set(chosen) - set(table.seeds):
        raise ValueError(f"{table.name} has no seed {min(unknown)}; its seeds are {', '.join(map(str, table.seeds))}")
    recipes = {(row.name, seed): table.recipe(row, seed, output_dir) for row in table.rows for seed in table.seeds}
    _warn_of_other_recipes(table, recipes)
    summary: dict[str, Any] = {}
    for seed in chosen:
        for row in table.rows:
            logger.warning("%s: %s, seed %d", table.name, row.name, seed)
            _run_row(row, seed, recipes)
            latest = summarize(table, output_dir) | {"command": command_line()}
            if latest == summary:  # the run was finished before
                continue
            summary = latest
            write_json(output_dir / RESULTS, summary)
            with atomic_write(output_dir / REPORT) as unfinished:
                unfinished.write_text(rows_table(summary) + "\n")
            write_figure(rows_figure(summary), output_dir / FIGURE)
            if after_run is not None:
                after_run(summary)
    return summary


def _warn_of_other_recipes(table: ResultsTable, recipes: dict[tuple[str, int], Recipe]) -> None:
    baselines = {row.name: row.baseline for row in table.rows}
    for (name, _), recipe in recipes.items():
        if (recipe.output_dir / RESULTS).exists() and finished_results(recipe, baselines[name]) is None:
            logger.warning(
                "%s is of another recipe; the table leaves it out until it is trained anew", recipe.output_dir
            )


def _run_row(row: ResultsRow, seed: int, recipes: dict[tuple[str, int], Recipe]) -> None:
    recipe = recipes[row.name, seed]
    train(recipe, row.baseline)
    if row.init_from is not None:
        _warn_of_older(recipe.output_dir, recipes[row.init_from, seed].output_dir)
    if row.faithfulness_questions:
        _measure_faithfulness(recipe, row.baseline, row.faithfulness_questions)


def _warn_of_older(folder: Path, before: Path) -> None:
    """A finished run is not trained again when the run it started from was."""
    finished = [file.stat().st_mtime for file in (folder / RESULTS, before / RESULTS) if file.exists()]
    if len(finished) == 2 and finished[0] < finished[1]:
        logger.warning("%s is older than %s, which it starts from; remove it to train it again", folder, before)


def _measure_faithfulness(recipe: Recipe, baseline: Baseline | None, questions: int) -> None:
    """Of the checkpoint of a finished run, unless it is measured already for that many questions."""
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
    """The model and the processor of a finished run."""
    folder = recipe.output_dir
    if baseline != "reference_model":
        return load_checkpoint(str(folder)), QCAProcessor.from_pretrained(folder)
    if not (folder / REFERENCE_WEIGHTS).exists():
        raise ValueError(f"{folder} has no {REFERENCE_WEIGHTS}: remove the folder to train it anew")
    model, processor = build_model(recipe, json.loads((folder / RECIPE).read_text())["answers"])
    reference = reference_model(model)
    load_model(reference, str(folder / REFERENCE_WEIGHTS))
    return reference, processor
