"""The folder of a run: whose checkpoints it holds, what the run remembers, and the results of a finished one."""

import dataclasses
import json
import logging
import shutil
from typing import Any, Literal, TypeAlias

import datasets

from ..data.image_digests import image_digests
from ..evaluation.accuracy import best_single_answer
from ..files.run_files import (
    CALIBRATION,
    FAITHFULNESS,
    OPTIONAL_RUN_KEYS,
    OVERLAY,
    QUESTIONS,
    RECIPE,
    REFERENCE_WEIGHTS,
    RESULTS,
    RUN,
    RUN_KEYS,
    TRAINED_QUESTIONS,
    write_json,
)
from .callbacks import last_complete_checkpoint
from .recipe import Recipe
from .splits import Splits

logger = logging.getLogger(__name__)
Baseline: TypeAlias = Literal["blank_images", "reference_model"]


def finished_results(recipe: Recipe, baseline: Baseline | None = None) -> dict[str, Any] | None:
    """The results in the recipe's `output_dir`; None if the run is unfinished, or of another recipe.

    Raises:
        ValueError: the results there are not of a training run.
    """
    file = recipe.output_dir / RESULTS
    if not file.exists():
        return None
    results = json.loads(file.read_text())
    if "recipe" not in results:
        raise ValueError(f"{file} is of no training; give this recipe another `output_dir`")
    same = _completed(results["recipe"]) == describe(recipe) and results.get("baseline", baseline) == baseline
    return results if same else None


def claim_folder(recipe: Recipe, should_save: bool, baseline: Baseline | None, answers: list[str]) -> None:
    """
    Write the recipe into the run's folder, so that no other recipe continues from its checkpoints, and remove the
    results of the model that this run replaces.

    Checkpoints without a written recipe are of an earlier release, or were moved by hand. The run continues from them.

    Raises:
        ValueError: the folder has checkpoints of another recipe, baseline or list of answers.
    """
    further: dict[str, Any] = {"baseline": baseline, "answers": answers}
    note, described = recipe.output_dir / RECIPE, {**describe(recipe), **further}
    begun = {**further, **_completed(json.loads(note.read_text()))} if note.exists() else None
    checkpoint = last_complete_checkpoint(recipe.output_dir)
    if begun is None and checkpoint is not None:
        logger.warning("%s: no %s says which recipe it is of; the run continues from it", checkpoint, RECIPE)
    if begun not in (None, described) and checkpoint is not None:
        raise ValueError(
            f"{checkpoint} is of a run that differs in {', '.join(_differences(begun, described))}: give this one "
            "another `output_dir`, or remove that folder to train anew"
        )
    if should_save:
        recipe.output_dir.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, QUESTIONS, OVERLAY, REFERENCE_WEIGHTS, CALIBRATION, TRAINED_QUESTIONS, *FAITHFULNESS):
            (recipe.output_dir / name).unlink(missing_ok=True)
        if (recipe.output_dir / "adapter").exists():
            shutil.rmtree(recipe.output_dir / "adapter")
        write_json(note, described)


def remember_run(recipe: Recipe, splits: Splits, answers: list[str]) -> None:
    """Write what `run_files.read_run` reads."""
    streamed = isinstance(splits.train, datasets.IterableDataset)
    own = {key: value for key, value in describe(recipe).items() if key in RUN_KEYS | OPTIONAL_RUN_KEYS}
    known = {
        "split": "validation",
        "answers": answers,
        "majority_answer": best_single_answer(splits.answered, recipe.answer_rule, recipe.normalize_answers),
        "training_images": None if streamed else sorted(image_digests(splits.train)),
    }
    write_json(recipe.output_dir / RUN, own | known)


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _completed(description: dict[str, Any]) -> dict[str, Any]:
    """A stored description of a recipe; keys of a later release have their defaults."""
    return {**describe(Recipe(data="", model="")), **description}


def _differences(begun: dict[str, Any], described: dict[str, Any]) -> list[str]:
    flat = [{**of, **of.get("config", {}), **of.get("arguments", {})} for of in (begun, described)]
    names = (flat[0].keys() | flat[1].keys()) - {"config", "arguments"}
    return sorted(name for name in names if flat[0].get(name) != flat[1].get(name))
