"""Data sets of questions about images, in one row schema, as Arrow on disk or as a stream.

`load_rows` is the entry point. A reader (one per format) yields rows one at a time. `datasets` writes them to its
cache, so that memory does not grow with the number of rows.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import datasets

from .formats import make_reader, takes_option
from .readers.hub import HubTable
from .readers.memory import InMemory
from .row_cache import cached_rows, streamed_rows
from .splits import TEXT_COLUMNS, further_columns, split_rows

logger = logging.getLogger(__name__)


def load_rows(
    data: Any,
    *,
    split: str = "train",
    format: str = "table",
    validation_ratio: float | None = None,
    group_by: str | None = None,
    seed: int = 0,
    on_bad_image: Literal["raise", "skip"] = "raise",
    streaming: bool = False,
    skipped: dict[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """The questions of `data` in the row schema `FEATURES`.

    Args:
        data: a folder or file; the id of a data set of the Hub (`format="hub"`); or a `Dataset`, `DatasetDict`,
            `IterableDataset`, DataFrame or list of dicts.
        split: `train`, `validation` or another split of the data.
        format: a key of `FORMATS`: `table` (CSV, TSV, Excel, JSON, JSON lines or Parquet with a folder of images),
            `hub`, `vqa_v2`, `vqa_hat`, `daquar`, `gqa`, `vizwiz_grounding` or `webdataset`.
        validation_ratio: cut both splits from the data's train split, with this share of the rows for validation. By
            default the splits are the data's own.
        group_by: keep rows together when cutting: a column, or a column of numbered names and a divisor. `image_id`
            cuts by image, `image_id // 12` by runs of twelve neighboring image numbers. A column of the table that is
            not in the schema is added to the rows. By default each row alone.
        seed: of the cut.
        on_bad_image: `raise` at the first image that is missing or cannot be read, naming path and row. Or `skip`
            such rows; a warning counts and lists them.
        streaming: return an IterableDataset that reads as it goes. It has one shard per file.
        skipped: gets place -> fault of each row that `on_bad_image="skip"` leaves out, instead of the warning.
        cache_dir: folder of the Arrow files; default the cache of `datasets`.
        **options: the format's own, see its class: `images`, `columns`, `answer_separator`, `relevance_filter`, ...

    Raises:
        ValueError: an unknown format or option, missing or malformed files, an unreadable image, or an empty split.
            The message names the file and row.
    """
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f"on_bad_image is raise or skip, not {on_bad_image!r}")
    if validation_ratio is not None and streaming:
        raise ValueError(
            "validation_ratio needs all rows: write the validation split to its own file, or do not stream"
        )
    if skipped is not None and (streaming or on_bad_image != "skip"):
        raise ValueError("skipped needs on_bad_image='skip', and rows that are not streamed")
    if validation_ratio is None and group_by is not None:
        raise ValueError("group_by says how to cut: give validation_ratio too")
    own_split = "train" if validation_ratio is not None else split
    if further := further_columns(group_by):
        if not takes_option(format, data, "further_columns"):
            raise ValueError(f"group_by: format {format} has no column {further[0]!r}, only {', '.join(TEXT_COLUMNS)}")
        options["further_columns"] = [*options.get("further_columns", ()), *further]
    reader = make_reader(format, data, own_split, {**options, **({"streaming": True} if streaming else {})})
    if validation_ratio is not None and not isinstance(reader, (HubTable, InMemory)):
        with suppress(ValueError):  # most data has no validation split of its own here
            _warn_of_unused(make_reader(format, data, "validation", dict(options)).shards()[0])
    if streaming:
        return streamed_rows(reader, on_bad_image)
    cache_folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
    rows = cached_rows(reader, own_split, on_bad_image, cache_folder, skipped)
    if validation_ratio is None:
        return rows
    if split not in ("train", "validation"):
        raise ValueError(f"validation_ratio makes train and validation, not {split!r}")
    return dict(zip(("train", "validation"), split_rows(rows, validation_ratio, group_by, seed), strict=True))[split]


def data_name(data: str | os.PathLike, options: Mapping[str, Any]) -> str:
    """The name of `data` in a results file: the id of a Hub data set, or the last part of a path."""
    on_hub = options.get("format") == "hub" and not Path(data).exists()
    return str(data) if on_hub else Path(data).resolve().name


@cache  # both splits are loaded, one after the other
def _warn_of_unused(file: str) -> None:
    logger.warning(
        "%s is not used: validation_ratio cuts the validation rows from the train split; leave it out to use the file",
        file,
    )
