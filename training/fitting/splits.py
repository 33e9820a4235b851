"""The training and validation rows of a recipe. No group of rows is in both."""

import logging
from dataclasses import dataclass
from typing import Any, TypeAlias

import datasets

from ..data.formats import checked_options
from ..data.images import blank_image
from ..data.rows import data_name, load_rows
from ..data.splits import further_columns, group_key, parse_group_by, split_name
from ..data.streams import read_answers
from ..evaluation.predictions import sort_by_image
from .recipe import Recipe

logger = logging.getLogger(__name__)
Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset


@dataclass(frozen=True)
class Splits:
    """
    Rows whose images are not decoded.

    Args:
        train: training rows, or a stream of them.
        validation: validation rows, sorted by image, so that evaluation encodes an image once.
        answered: the training rows, of a stream only their columns `question_id` and `answers`.
        blank: whether `train` and `validation` show one gray picture in the place of every image.
    """

    train: Rows
    validation: datasets.Dataset
    answered: datasets.Dataset
    blank: bool = False

    def with_blank_images(self) -> "Splits":
        return Splits(blank_images(self.train), blank_images(self.validation), self.answered, blank=True)


def read_splits(recipe: Recipe) -> Splits:
    """The rows of `recipe`. A stream is read once for its answers.

    Raises:
        ValueError: see [`load_splits`].
    """
    train_rows, validation_rows = load_splits(recipe)
    answered = read_answers(train_rows) if recipe.streaming else train_rows
    return Splits(train_rows, validation_rows, answered)


def load_splits(recipe: Recipe, skipped: dict[str, str] | None = None) -> tuple[Rows, datasets.Dataset]:
    """(train, validation) rows, their images not decoded.

    Args:
        skipped: see `rows.load_rows`.

    Raises:
        ValueError: see `rows.load_rows`; or every training row is of a group that validation holds out.
    """
    cut, options = _cut(recipe), checked_options(recipe.data_options)
    bad_images: dict[str, Any] = {"on_bad_image": recipe.on_bad_image, "skipped": skipped}
    own: dict[str, Any] = {"format": recipe.format, **bad_images, **options}
    if twice := sorted(cut.keys() & own.keys()):
        raise ValueError(f"`{twice[0]}` is in the recipe and in its `data_options`: remove it from `data_options`")
    holds_out_groups = recipe.validation_data is not None or recipe.validation_ratio is None
    if holds_out_groups and (further := further_columns(recipe.group_by)):
        bad_images["further_columns"] = own["further_columns"] = further
    if recipe.validation_data is None:
        train_rows = load_rows(recipe.data, split="train", streaming=recipe.streaming, **cut, **own)
        validation_rows = load_rows(recipe.data, split="validation", **cut, **own)
    else:
        other = {**bad_images, **checked_options(recipe.validation_options)}
        validation_rows = load_rows(recipe.validation_data, split="validation", **cut, **other)
        train_rows = load_rows(recipe.data, split="train", streaming=recipe.streaming, **own)
    if recipe.group_by is not None and holds_out_groups:
        train_rows = _outside_groups(train_rows, validation_rows, recipe.group_by)
    stored = datasets.Image(decode=False)
    return train_rows.cast_column("image", stored), sort_by_image(validation_rows).cast_column("image", stored)


def measured_on(recipe: Recipe) -> dict[str, str]:
    """`name` and `split` of the validation data, for a results file."""
    data, options = recipe.data, {"format": recipe.format, **recipe.data_options}
    if recipe.validation_data is not None:
        data, options = recipe.validation_data, recipe.validation_options
    return {"name": data_name(data, options), "split": split_name("validation", {**_cut(recipe), **options})}


def blank_images(rows: Rows) -> Rows:
    """`rows` with one gray picture in the place of every image."""
    blank = blank_image()
    if isinstance(rows, datasets.IterableDataset):
        return rows.map(lambda row: {"image": blank, "image_id": "blank"}, features=rows.features)
    count = len(rows)
    rows = rows.remove_columns(["image", "image_id"]).add_column("image_id", ["blank"] * count)
    return rows.add_column("image", [blank] * count).cast_column("image", datasets.Image(decode=False))


def _cut(recipe: Recipe) -> dict[str, Any]:
    """The options that cut validation rows off the training rows."""
    if recipe.validation_ratio is None:
        return {}
    return {"validation_ratio": recipe.validation_ratio, "group_by": recipe.group_by, "seed": recipe.data_seed}


def _outside_groups(train_rows: Rows, held_out: datasets.Dataset, group_by: str) -> Rows:
    column, divisor = parse_group_by(group_by)
    groups = {group_key(value, divisor) for value in held_out[column]}
    if isinstance(train_rows, datasets.IterableDataset):
        return train_rows.filter(lambda value: group_key(value, divisor) not in groups, input_columns=column)
    kept = [index for index, value in enumerate(train_rows[column]) if group_key(value, divisor) not in groups]
    if not kept:
        raise ValueError(
            f"every training row is of a group (`group_by: {group_by}`) that validation holds out; nothing is left to "
            "train on"
        )
    if left_out := len(train_rows) - len(kept):
        logger.warning(
            "%d of %d training rows are left out: validation has rows of the same `%s` (`group_by: null` keeps them)",
            *(left_out, len(train_rows), group_by),
        )
    return train_rows.select(kept)
