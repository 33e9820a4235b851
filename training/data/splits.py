"""Train and validation rows cut from one set of rows, with whole groups on either side."""

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import datasets

from .schema import FEATURES

TEXT_COLUMNS = ("image_id", "question", "question_id", "question_type")
_BY_IMAGE = "`group_by: image_id` (`--group_by image_id`) cuts by image"


def split_rows(
    rows: datasets.Dataset, validation_ratio: float, group_by: str | None = None, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, validation) of `rows`, with whole groups on either side; see `load_rows`.

    Groups are visited in an order drawn from `seed`. A group goes to validation if that brings validation closer to
    its share of the rows.

    Raises:
        ValueError: the ratio is not between 0 and 1, `group_by` is malformed, or one side would be empty.
    """
    if not isinstance(validation_ratio, (int, float)) or not 0 < validation_ratio < 1:
        raise ValueError(f"validation_ratio must lie between 0 and 1, not {validation_ratio!r}")
    groups: dict[str, list[int]] = {}
    for index, group in enumerate(_groups(rows, group_by)):
        groups.setdefault(group, []).append(index)
    wanted = validation_ratio * len(rows)
    held_out: list[int] = []
    for group in sorted(groups, key=lambda group: blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()):
        if abs(len(held_out) + len(groups[group]) - wanted) < abs(len(held_out) - wanted):
            held_out += groups[group]
    chosen = set(held_out)
    kept = [index for index in range(len(rows)) if index not in chosen]
    if not kept or not chosen:
        advice = "change it, or give more data"
        if group_by and "//" in group_by:
            advice = _BY_IMAGE
        elif len(groups) == 1:
            advice = f"add rows of another {group_by or 'row'}, or name other validation data (`validation_data`)"
        raise ValueError(
            f"{len(rows)} rows in {len(groups)} groups cannot be cut at validation_ratio {validation_ratio}: {advice}"
        )
    return rows.select(kept), rows.select(sorted(chosen))


def fold_of_groups(rows: datasets.Dataset, group_by: str | None, folds: int, seed: int = 0) -> list[int]:
    """
    The fold of each row, whole groups in one fold; folds have about equally many groups.

    Raises:
        ValueError: `group_by` is malformed.
    """
    groups = list(_groups(rows, group_by))
    order = sorted(set(groups), key=lambda group: blake2b(f"{seed}:{group}".encode(), digest_size=8).digest())
    fold = {group: place % folds for place, group in enumerate(order)}
    return [fold[group] for group in groups]


def group_key(value: str, divisor: int | None) -> str:
    """The group of an id: the id itself, or its last number divided by `divisor`: ("image25", 12) -> "2".

    Raises:
        ValueError: there is a divisor but no number in the id.
    """
    if divisor is None:
        return value
    number = re.search(r"(\d+)\D*$", value)
    if number is None:
        raise ValueError(f"group_by divides numbers, but {value!r} has none: {_BY_IMAGE}")
    return str(int(number[1]) // divisor)


def parse_group_by(group_by: str) -> tuple[str, int | None]:
    """("image_id", 12) for "image_id // 12". The divisor is None for a column alone.

    Raises:
        ValueError: `group_by` has another form.
    """
    form = r"\s*([^/]*[^/\s])\s*(?://\s*([1-9]\d*)\s*)?"
    parsed = re.fullmatch(form, group_by) if isinstance(group_by, str) else None
    if parsed is None:
        raise ValueError(f"group_by is a text column, or one divided as in `image_id // 12`, not {group_by!r}")
    return parsed[1].lstrip(), int(parsed[2]) if parsed[2] else None


def further_columns(group_by: str | None) -> tuple[str, ...]:
    """The column that `group_by` needs beside the row schema.

    Raises:
        ValueError: `group_by` is malformed, or names a column of the schema that is no text.
    """
    if group_by is None:
        return ()
    column, _ = parse_group_by(group_by)
    if column in FEATURES and column not in TEXT_COLUMNS:
        raise ValueError(f"group_by is a text column, such as {', '.join(TEXT_COLUMNS)}, not {group_by!r}")
    return () if column in TEXT_COLUMNS else (column,)


def split_name(split: str, options: Mapping[str, Any]) -> str:
    """The name of `split` in a results file. It says how validation was cut from the training rows, if it was."""
    if split != "validation" or options.get("validation_ratio") is None:
        return split
    groups = f" by {options['group_by']}" if options.get("group_by") else ""
    return f"{options['validation_ratio']:.0%} of train{groups}, seed {options.get('seed', 0)}"


def _groups(rows: datasets.Dataset, group_by: str | None) -> Iterable[str]:
    if group_by is None:
        return map(str, range(len(rows)))
    column, divisor = parse_group_by(group_by)
    return (group_key(value, divisor) for value in rows[column])
