"""A table of rows: variants of one recipe, each of which is trained from every seed."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..files.run_files import RESULTS
from ..files.safe_yaml import parse_yaml
from ..fitting.recipe import Recipe, make_recipe, read_recipe
from ..fitting.run_folder import Baseline

logger = logging.getLogger(__name__)
ROW_KEYS = ("init_from", "baseline", "faithfulness_questions")
# keys and values of release 0.1, still read
RENAMED_KEYS = {"after": "init_from", "control": "baseline"}
RENAMED_BASELINES = {"document": "reference_model"}


@dataclass(frozen=True)
class ResultsRow:
    """
    Args:
        name: as the table shows it.
        values: keys of a recipe that differ from those of the table.
        init_from: the row whose checkpoint of the same seed this row starts from.
        baseline: `blank_images` trains without the images, `reference_model` trains the reference model.
        faithfulness_questions: how many questions `faithfulness.faithfulness_curves` measures, in the precision of
            the training.
    """

    name: str
    values: Mapping[str, Any]
    init_from: str | None = None
    baseline: Baseline | None = None
    faithfulness_questions: int = 0

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    def finished_runs(self, results: Path) -> list[Path]:
        """The folder of each finished run of this row, where `results` is the output folder of `qca results`.

        Raises:
            ValueError: no run of this row is finished.
        """
        finished = sorted(file.parent for file in results.glob(f"{self.folder}/*/{RESULTS}"))
        if not finished:
            raise ValueError(f"{results / self.folder}: no finished run of {self.name!r}")
        return finished


@dataclass(frozen=True)
class ResultsTable:
    """
    Args:
        name: of the file without its suffix.
        seeds: every row is trained from each of them.
        values: keys of a recipe that the rows share.
        rows: in the order in which they are trained and shown.
        split_by_seed: whether each seed has a validation split of its own.
    """

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
    Read the file of a table. Its keys are `recipe` (the file that every row extends), `common` (keys of a recipe),
    `seeds`, `rows` and optionally `split_by_seed: true`.

    Args:
        overrides: values of recipe keys for every row, as YAML text; such as the folder of the data.

    Raises:
        ValueError: the file is not such a table; the message names it and the row.
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
            f"{path}: a table has no key `{min(content)}`; its keys are `recipe`, `common`, `seeds`, `rows` and "
            "`split_by_seed`"
        )
    if not isinstance(split_by_seed, bool):
        raise ValueError(f"{path}: `split_by_seed` is {split_by_seed!r}; it is true or false")
    values |= {key: parse_yaml(text, f"--{key}") for key, text in (overrides or {}).items()}
    described = _with_present_keys(described, path)
    rows: list[ResultsRow] = []
    for name, keys in described.items():
        own = {key: keys.pop(key) for key in ROW_KEYS if key in keys}
        row = ResultsRow(name, keys, **own)
        _check_row(row, rows, values, f"{path}: {name}")
        rows.append(row)
    return ResultsTable(path.stem, seeds, values, rows, split_by_seed)


def _with_present_keys(described: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The rows with today's names of keys and values; one warning for each name that is renamed."""
    renamed: dict[str, str] = {}
    rows = {}
    for name, keys in described.items():
        row = {}
        for key, value in dict(keys or {}).items():
            new = RENAMED_KEYS.get(key, key)
            if new != key:
                renamed[f"`{key}`"] = f"`{new}`"
            if new == "baseline" and value in RENAMED_BASELINES:
                renamed[f"`baseline: {value}`"] = f"`baseline: {RENAMED_BASELINES[value]}`"
                value = RENAMED_BASELINES[value]
            row[new] = value
        rows[name] = row
    for old, new in renamed.items():
        logger.warning("%s: %s is now called %s", path, old, new)
    return rows


def _check_row(row: ResultsRow, above: list[ResultsRow], values: Mapping[str, Any], place: str) -> None:
    if row.init_from is not None and row.init_from not in (other.name for other in above):
        raise ValueError(f"{place}: `init_from` names {row.init_from!r}, which is no row above it")
    if row.baseline is not None and row.baseline not in get_args(Baseline):
        raise ValueError(f"{place}: `baseline` is {row.baseline!r}, not one of {', '.join(get_args(Baseline))}")
    without_hops = {**values, **row.values}.get("num_attention_layers") == 0
    if row.faithfulness_questions and (row.baseline == "blank_images" or without_hops):
        raise ValueError(
            f"{place}: `faithfulness_questions` needs relevance maps; a row without images or without hops has none"
        )
