"""The recipe that goes on from a run with data that people have marked and corrected."""

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from modeling_qca import QCAConfig

from ..data.formats import make_reader
from ..data.splits import further_columns, split_rows
from ..files.atomic_write import atomic_write
from ..files.run_files import RECIPE, read_run, write_json
from ..supervision.marked_objects import OBJECTS_FILE
from .recipe import Recipe
from .run_folder import ROW_DESCRIPTIONS, describe

logger = logging.getLogger(__name__)
# The checkpoint has its own config, and the baselines were trained with the run.
_DROPPED = (
    *("config", "arguments", "answers", "baseline", "vision_encoder", "text_encoder", "format", "baselines"),
    *ROW_DESCRIPTIONS,
)
_CUT = {"validation_ratio": 0.2, "group_by": "image_id"}
SOURCE = "source.json"  # of a folder of annotations: the data they are of, and its options
HOPS = 2  # for marks, where a checkpoint has none
_WITHOUT_HOPS = {"num_attention_layers": 0, "attention_supervision": "none"}
_NEW_HOPS = (
    "%s has no hops, so marks cannot train it. %s gives it two hops; they and a part of the head start anew. To train "
    "on the corrected answers alone, add `--num-attention-layers 0 --attention-supervision none` to `qca train`"
)
_UNUSED_MARKS = (
    "%s has no hops, so %s trains on the corrected answers and not on the marks. To use the marks, add "
    "`--num-attention-layers 2 --attention-supervision every_hop` to `qca train`. The hops and a part of the head "
    "then start anew. This needs the data of the whole run"
)
_ROUND = re.compile(r"(.*)_round(\d+)")


def write_continued_recipe(
    file: Path, checkpoint: str, annotated: Path, data: str, options: Mapping[str, Any]
) -> None:
    """
    Write a recipe that trains `checkpoint` further on the folder `annotated`, which keeps the `options`.

    It is the recipe of the run, if `checkpoint` is one, with attention supervision, and with the answers of the
    checkpoint and of the data. A run without hops gets two on its own data; few rows of other data cannot train them.
    Validation rows stay those of the run, if the run was trained on `data` or on its annotations.

    Args:
        file: the YAML file.
        annotated: see `supervision.annotation_folder`.
        data, options: of `load_rows`, from which the annotations were made.
    """
    keep_options(annotated, data, options)
    written = Path(checkpoint) / RECIPE
    begun = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    own = _same(begun.get("data"), data, annotated)
    values = _changed(begun) | begun.get("arguments", {})
    values |= {
        "data": str(annotated),
        "data_options": {},
        "model": checkpoint,
        "keep_answers": True,
        "output_dir": str(_next_round(Path(checkpoint) if Path(checkpoint).exists() else Path("runs/annotated"))),
        **_validation(begun, annotated, data, dict(options)),
    }
    if QCAConfig.from_pretrained(checkpoint).num_attention_layers == 0:
        values |= {"num_attention_layers": HOPS, "attention_supervision": "every_hop"} if own else _WITHOUT_HOPS
        logger.warning(_NEW_HOPS if own else _UNUSED_MARKS, checkpoint, file)
    elif values.get("attention_supervision", "none") == "none":
        values["attention_supervision"] = "every_hop"
    if values.get("vocabulary", {}) is None or not own:
        values["vocabulary"] = {}  # with the answers that annotators wrote, however few they are
    with atomic_write(file) as unfinished:
        comment = (
            f"# Goes on from {checkpoint} with marked and corrected data: qca train {file}\n"
            "# `qca annotate` writes this file anew at each start: copy it before you change it.\n"
        )
        unfinished.write_text(comment + yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def run_options(checkpoint: str, data: str) -> dict[str, Any]:
    """The options of `load_rows` with which the run `checkpoint` or its annotations read `data`; none for others."""
    run = read_run(checkpoint)
    if run is None:
        return {}
    if _same(run["data"], data):
        return {"format": run["format"], **run["data_options"]}
    return _kept_options(Path(run["data"]), data)


def known_options(checkpoint: str | None, annotated: Path, data: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `load_rows` for `data`: those `given`, over those of its annotations, over those of the run.

    Options of another format are left out.
    """
    options = {} if checkpoint is None else run_options(checkpoint, data)
    for further in (_kept_options(annotated, data), given):
        known = options.get("format", "table")
        options = {**(options if further.get("format", known) == known else {}), **further}
    return options


def keep_options(annotated: Path, data: str, options: Mapping[str, Any]) -> None:
    """Write the options with which `data` is read into the folder of its annotations, for later starts and rounds."""
    annotated.mkdir(parents=True, exist_ok=True)
    write_json(annotated / SOURCE, {"data": data, "options": dict(options)})


def group_columns(checkpoint: str, annotated: Path, data: str) -> tuple[str, ...]:
    """The column that the `group_by` of the run `checkpoint` needs beside the row schema; none for other data."""
    run = read_run(checkpoint)
    return () if run is None or not _same(run["data"], data, annotated) else further_columns(run["group_by"])


def held_out_rows(checkpoint: str, annotated: Path, data: str, rows: Any) -> set[int]:
    """The numbers of the rows of `data` that the run `checkpoint` cut off for validation; none for other data.

    Args:
        rows: those of `data`, with the column of `group_columns`.
    """
    run = read_run(checkpoint)
    if run is None or run["validation_ratio"] is None or not _same(run["data"], data, annotated):
        return set()
    numbered = rows.remove_columns(["image", "relevance"]).add_column("number", list(range(len(rows))))
    _, held_out = split_rows(numbered, run["validation_ratio"], run["group_by"], run["data_seed"])
    return set(held_out["number"])


def _kept_options(annotated: Path, data: str) -> dict[str, Any]:
    """The options that the folder `annotated` keeps; none for other data, or of a folder that is not of annotations.

    Raises:
        ValueError: the file of the options is damaged.
    """
    file = annotated / SOURCE
    if not file.is_file() or not (annotated / OBJECTS_FILE).exists():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: not the options of annotated data: {error}; remove it, and pass `--data-options` again"
        ) from error
    match kept:
        case {"data": str(source), "options": dict(options)} if _same(source, data):
            return options
    return {}


def _changed(begun: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's own keys that are not as by default."""
    default = describe(Recipe(data="", model=""))
    return {key: value for key, value in begun.items() if key not in _DROPPED and value != default.get(key)}


def _validation(begun: Mapping[str, Any], annotated: Path, data: str, options: dict[str, Any]) -> dict[str, Any]:
    """The keys that say which rows are validation rows, where they are not those of the run's recipe."""
    if begun.get("validation_data") is not None:
        return {}
    own_split = {"validation_data": data, "validation_options": options}
    if _same(begun.get("data"), data, annotated):
        return own_split if begun.get("validation_ratio") is None else {}
    with suppress(ValueError, OSError):
        chosen = {key: value for key, value in options.items() if key not in ("format", "on_bad_image")}
        make_reader(options.get("format", "table"), data, "validation", chosen).shards()
        return {**own_split, "validation_ratio": None, "group_by": None}
    return _CUT


def _same(data: str | None, *others: str | Path) -> bool:
    return data is not None and Path(data).resolve() in {Path(other).resolve() for other in others}


def _next_round(run: Path) -> Path:
    """`run_round2` of `run`, `run_round3` of `run_round2`: the first that does not exist."""
    matched = _ROUND.fullmatch(run.name)
    base, number = (matched[1], int(matched[2])) if matched else (run.name, 1)
    while (following := run.with_name(f"{base}_round{number + 1}")).exists():
        number += 1
    return following
