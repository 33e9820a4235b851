"""What `qca check` reports: the rows of a recipe inspected, and the costs of its training estimated."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..data.formats import checked_options
from ..files.safe_yaml import parse_yaml
from ..inspection.estimate import estimate_costs
from ..inspection.report import DataReport, inspect_rows
from .model_factory import image_shape, training_answers
from .recipe import ARGUMENT_DEFAULTS, Recipe, make_recipe
from .splits import Splits, load_splits

MODEL = "qca-base"  # whose costs are estimated where no model is named


def data_recipe(data: str, overrides: Mapping[str, str]) -> Recipe:
    """A recipe with the defaults for `data`.

    Args:
        data: a folder, a file or a Hub data set.
        overrides: values of recipe keys as YAML text.

    Raises:
        ValueError: see `recipe.make_recipe`.
    """
    values: dict[str, Any] = {key: parse_yaml(text, f"--{key}") for key, text in overrides.items()}
    model = {} if "vision_encoder" in values else {"model": MODEL}
    return make_recipe({"data": data, **model, **values}, data)


def check_recipe(recipe: Recipe) -> tuple[DataReport, Splits]:
    """
    Inspect the rows of a recipe. Rows whose image cannot be read are left out and listed in the report.

    Raises:
        ValueError: no row can be read, a split is missing, or there is no vocabulary; see `load_splits`.
    """
    unreadable: dict[str, str] = {}
    options, further = _without_rule(recipe.data_options), _without_rule(recipe.validation_options)
    tolerant = dataclasses.replace(
        recipe, on_bad_image="skip", streaming=False, data_options=options, validation_options=further
    )
    train, validation = load_splits(tolerant, unreadable)
    splits = Splits(train, validation, answered=train)  # type: ignore[arg-type]
    given = {**recipe.data_options, **recipe.validation_options}
    skips = given.get("on_bad_image", recipe.on_bad_image) == "skip"
    return inspect_splits(recipe, splits, training_answers(recipe, splits.answered), unreadable, skips), splits


def inspect_splits(
    recipe: Recipe,
    splits: Splits,
    answers: list[str],
    unreadable: Mapping[str, str] | None = None,
    skips_unreadable: bool = True,
) -> DataReport:
    """The report on loaded rows that are no stream. `answers` is the vocabulary."""
    return inspect_rows(
        splits.answered,
        splits.validation,
        answers,
        recipe.answer_rule,
        recipe.normalize_answers,
        unreadable=unreadable,
        skips_unreadable=skips_unreadable,
        needs_maps=recipe.attention_supervision != "none",
    )


def estimate_lines(recipe: Recipe, splits: Splits) -> list[str]:
    """Steps, memory, disk space and reading time of the recipe's training.

    Raises:
        OSError: the model's config is not available.
    """
    shape = image_shape(recipe)
    batch_size = recipe.arguments.get(name := "per_device_train_batch_size", ARGUMENT_DEFAULTS[name])
    accumulation = recipe.arguments.get("gradient_accumulation_steps", 1)
    estimate = estimate_costs(splits.answered, splits.validation, shape, batch_size, accumulation)
    return estimate.lines(recipe.model or recipe.vision_encoder, shape, batch_size)


def _without_rule(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in checked_options(options).items() if name != "on_bad_image"}
