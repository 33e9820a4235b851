"""The folder of a run: whose checkpoints it holds, what the run remembers, and the results of a finished one."""

import dataclasses
import json
import logging
import os
import shutil
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..data.image_digests import image_digests
from ..data.schema import FEATURES
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
    read_run,
    write_json,
)
from .callbacks import last_complete_checkpoint
from .recipe import Recipe
from .splits import Splits, blank_images, load_splits

logger = logging.getLogger(__name__)
Baseline: TypeAlias = Literal["blank_images", "reference_model"]
ROW_DESCRIPTIONS = {"training_rows": "the training rows", "validation_rows": "the validation rows"}
ROWS_AT_ONCE = 100  # their encoded images are in memory at once


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


def check_finished_rows(recipe: Recipe, baseline: Baseline | None) -> None:
    """
    Compare the rows of `recipe` with those of the finished run in its `output_dir`.

    A stream takes long to read, so only its validation rows are compared. A run of an earlier release knows no rows.

    Raises:
        ValueError: the rows are others; or see `load_splits`.
    """
    note = recipe.output_dir / RECIPE
    described = json.loads(note.read_text()) if note.exists() else {}
    begun = {name: described[name] for name in ROW_DESCRIPTIONS if name in described}
    if not begun:
        return
    found = dict(begun)
    for name, rows in zip(ROW_DESCRIPTIONS, load_splits(recipe), strict=True):
        if isinstance(rows, datasets.Dataset):
            found[name] = rows_fingerprint(blank_images(rows) if baseline == "blank_images" else rows)
    if begun != found:
        _refuse(recipe.output_dir, begun, found)


def claim_folder(
    recipe: Recipe, should_save: bool, baseline: Baseline | None, answers: list[str], splits: Splits
) -> None:
    """
    Write the recipe into the run's folder, so that no other recipe continues from its checkpoints, and remove the
    results of the model that this run replaces.

    Checkpoints without a written recipe are of an earlier release, or were moved by hand. The run continues from them.

    Raises:
        ValueError: the folder has checkpoints of another recipe, baseline, list of answers or other rows.
    """
    further: dict[str, Any] = {"baseline": baseline, "answers": answers}
    streamed = isinstance(splits.train, datasets.IterableDataset)
    compared: Any = (splits.answered if streamed else splits.train, splits.validation)
    further |= dict(zip(ROW_DESCRIPTIONS, map(rows_fingerprint, compared), strict=True))
    note, described = recipe.output_dir / RECIPE, {**describe(recipe), **further}
    begun = {**further, **_completed(json.loads(note.read_text()))} if note.exists() else None
    checkpoint = last_complete_checkpoint(recipe.output_dir)
    if begun is None and checkpoint is not None:
        logger.warning("%s: no %s says which recipe it is of; the run continues from it", checkpoint, RECIPE)
    if begun not in (None, described) and checkpoint is not None:
        _refuse(checkpoint, begun, described)
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
    before = images_trained_before(recipe)
    known = {
        "split": "validation",
        "answers": answers,
        "majority_answer": best_single_answer(splits.answered, recipe.answer_rule, recipe.normalize_answers),
        "training_images": None if streamed or before is None else sorted(before | image_digests(splits.answered)),
        "blank_images": splits.blank,
    }
    write_json(recipe.output_dir / RUN, own | known)


def images_trained_before(recipe: Recipe) -> set[str] | None:
    """Digests of the images that the recipe's `model` was trained on; None for a run that does not know them."""
    if recipe.model is None:
        return set()
    run = read_run(recipe.model)
    if run is None:
        return set()
    return None if run["training_images"] is None else set(run["training_images"])


def rows_fingerprint(rows: datasets.Dataset) -> str:
    """Digest of the columns of `rows` in the row schema. Of an image it has the id and the size in bytes."""
    digest, file_size = blake2b(digest_size=8), cache(os.path.getsize)
    columns = [name for name in FEATURES if name in rows.column_names]
    batches: Any = rows.select_columns(columns).with_format("arrow").iter(ROWS_AT_ONCE)
    for batch in batches:
        for name in columns:
            column = batch[name].combine_chunks()
            if name == "image":
                encoded = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
                paths = pc.struct_field(column, "path").to_pylist()
                values = [file_size(path) if size is None else size for size, path in zip(encoded, paths, strict=True)]
            elif name == "relevance":
                while pa.types.is_list(column.type):
                    digest.update(repr(pc.list_value_length(column).to_pylist()).encode())
                    column = pc.list_flatten(column)
                digest.update(column.to_numpy(zero_copy_only=False).tobytes())
                continue
            else:
                values = column.to_pylist()
            digest.update(repr(values).encode())
    return digest.hexdigest()


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _completed(description: dict[str, Any]) -> dict[str, Any]:
    """A stored description of a recipe; keys of a later release have their defaults."""
    return {**describe(Recipe(data="", model="")), **description}


def _refuse(folder: Path | str, begun: dict[str, Any], described: dict[str, Any]) -> NoReturn:
    flat = [{**of, **of.get("config", {}), **of.get("arguments", {})} for of in (begun, described)]
    names = (flat[0].keys() | flat[1].keys()) - {"config", "arguments"}
    others = sorted(ROW_DESCRIPTIONS.get(name, name) for name in names if flat[0].get(name) != flat[1].get(name))
    raise ValueError(
        f"{folder} is of a run that differs in {', '.join(others)}: give this one another `output_dir`, or remove "
        "that folder to train anew"
    )
