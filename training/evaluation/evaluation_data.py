"""The rows that `qca evaluate` measures on: the data that it is given, or the validation rows of the run itself."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ..data.formats import checked_options
from ..data.image_digests import image_digests
from ..data.images import blank_image
from ..data.rows import data_name, load_rows
from ..data.splits import further_columns, split_name
from ..files.run_files import RUN, read_run
from .predictions import sort_by_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationData:
    """`data`, `split` and further `options` of `rows.load_rows`."""

    data: str
    split: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return data_name(self.data, self.options)

    @property
    def split_name(self) -> str:
        return split_name(self.split, self.options)

    def rows(self) -> datasets.Dataset:
        """The rows, images not decoded, questions about one image together.

        Raises:
            ValueError: no question has an answer; or see `load_rows`.
        """
        rows = load_rows(self.data, split=self.split, **self.options)
        if not any(rows["answers"]):
            raise ValueError(f"{self.data}: no question of its {self.split} split has an answer to compare with")
        return sort_by_image(rows.cast_column("image", datasets.Image(decode=False)))


def evaluation_data(
    checkpoint: str, run: Mapping[str, Any] | None, data: str | None, split: str | None, options: Mapping[str, Any]
) -> EvaluationData:
    """
    Args:
        run: see `run_files.read_run`.
        data, split, options: of `load_rows`. Without `data` they are those of the run's own validation rows.

    Raises:
        ValueError: an option that has its place elsewhere; without `data`, a checkpoint that remembers no data, or
            another split or options.
    """
    options = checked_options(options)
    if data is not None:
        return EvaluationData(data, split or "validation", options)
    if run is None:
        raise ValueError(f"{checkpoint} has no {RUN} that says what it was validated on: name the data to evaluate on")
    if options or split not in (None, run["split"]):
        raise ValueError("a split or options of the data are given, but no data: name the data too, or leave them out")
    if run["validation_data"] is None:
        own, chosen = run["data"], {"format": run["format"], **run["data_options"]}
    else:
        own, chosen = run["validation_data"], run["validation_options"]
    cut: dict[str, Any] = {}
    if run["validation_ratio"] is not None:
        cut = {"validation_ratio": run["validation_ratio"], "group_by": run["group_by"], "seed": run["data_seed"]}
    elif further := further_columns(run["group_by"]):
        cut = {"further_columns": [*chosen.get("further_columns", ()), *further]}
    return EvaluationData(own, run["split"], {"on_bad_image": run["on_bad_image"], **chosen, **cut})


def shown_rows(checkpoint: str, rows: datasets.Dataset) -> datasets.Dataset:
    """`rows` for the model of `checkpoint`: with a gray picture in the place of every image if it was trained so."""
    if not sees_blank_images(checkpoint):
        return rows
    blank = rows.remove_columns("image").add_column("image", [blank_image()] * len(rows))
    return blank.cast_column("image", datasets.Image(decode=False))


def sees_blank_images(checkpoint: str) -> bool:
    """Whether `checkpoint` is to be shown a gray picture in the place of every image, with a warning if so."""
    blank = bool((read_run(checkpoint) or {}).get("blank_images"))
    if blank:
        logger.warning("%s was trained on blank images, so it is shown blank images", checkpoint)
    return blank


def count_images(known: Sequence[str] | None, rows: datasets.Dataset, use: str) -> int | None:
    """
    How many images of `rows` are among the digests `known`, with a warning if there are any; None without `known`.

    Args:
        use: `trained` or `calibrated`, what these images were used for.
    """
    if known is None:
        return None
    shown = image_digests(rows)
    seen = len(shown.intersection(known))
    if seen:
        effect = {
            "trained": "the accuracy on new images is lower",
            "calibrated": "the probabilities fit new images a little worse",
        }[use]
        logger.warning("%d of the %d images to evaluate on were %s on: %s", seen, len(shown), use, effect)
    return seen
