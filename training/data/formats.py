"""The formats of data and their options: from a format's name to its reader."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from .readers.columns import REQUIRED
from .readers.daquar import DAQUAR
from .readers.gqa import GQA
from .readers.hub import HubTable
from .readers.memory import InMemory
from .readers.tabular import Table
from .readers.vizwiz_grounding import VizWizGrounding
from .readers.vqa_hat import VQAHat
from .readers.vqa_v2 import VQAv2
from .readers.webdataset import WebDataset
from .schema import Reader

FORMATS: dict[str, type] = {
    "table": Table,
    "hub": HubTable,
    "vqa_v2": VQAv2,
    "vqa_hat": VQAHat,
    "daquar": DAQUAR,
    "gqa": GQA,
    "vizwiz_grounding": VizWizGrounding,
    "webdataset": WebDataset,
}
_ELSEWHERE = {
    "split": "`qca evaluate` and similar commands have `--split`; the others use train and validation",
    "streaming": "only training streams; set `streaming: true` in the recipe",
    "skipped": "it is for `load_rows` in Python",
}


def _is_folder(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)


def _is_grid(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def _maps_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)


_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "images": ("a folder", _is_folder),
    "maps": ("a folder", _is_folder),
    "columns": ("a mapping, as in {question: title}", _maps_texts),
    "relevance_filter": ("a mapping, as in {tier: strict}", _maps_texts),
    "relevance_grid": ("the number of rows and of columns, as in [16, 16]", _is_grid),
    "answer_separator": ("a text", _is_text_or_none),
    "further_columns": ("a list of columns, as in [sequence]", _is_texts),
    "encoding": ("the name of a text encoding, as in utf-8", _is_text_or_none),
    "configuration": ("a text", _is_text_or_none),
    "revision": ("a text", _is_text_or_none),
    "subset": ("a text", lambda value: isinstance(value, str)),
    "scene_graphs": ("true or false", lambda value: isinstance(value, bool)),
    "streaming": ("true or false", lambda value: isinstance(value, bool)),
}
"""For each option of a format: what it is, in words, and a check of its value."""


def checked_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """`options` of `load_rows` as a user wrote them in one mapping.

    Raises:
        ValueError: an option is set in another place, or its name is not text.
    """
    for name in options:
        if name in _ELSEWHERE:
            raise ValueError(f"option {name!r} does not belong among the options of the data: {_ELSEWHERE[name]}")
        if not isinstance(name, str):
            raise ValueError(f"the name of an option is a text, not {name!r}")
    return options


def takes_option(format: str, data: Any, option: str) -> bool:
    """Whether the reader of `data` has this option.

    Raises:
        ValueError: the format is unknown.
    """
    return option in inspect.signature(_kind(format, data)).parameters


def make_reader(
    format: str, data: Any, split: str, options: dict[str, Any], required: Collection[str] = REQUIRED
) -> Reader:
    """The reader of `data`. An object in memory has a reader of its own; a path is read by `format`.

    Args:
        required: as for `RecordConverter`, in formats whose columns are found by name.

    Raises:
        ValueError: the format or an option is unknown, missing or malformed, or the path does not exist.
    """
    kind = _kind(format, data)
    in_memory = kind is InMemory
    known = [name for name in inspect.signature(kind).parameters if name not in ("data", "split", "required")]
    if kind is not HubTable:
        options.pop("streaming", None)
        if not in_memory and not Path(data).exists():
            raise ValueError(f"{data}: no such file or folder; for a data set of the Hub pass format: hub")
    if unknown := options.keys() - set(known):
        raise ValueError(f"option {min(unknown)!r} is not one of format {format}: {', '.join(known)}")
    needed = [name for name in known if inspect.signature(kind).parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in needed if name not in options]:
        raise ValueError(f"format {format} needs option {missing[0]!r}")
    for name, value in options.items():
        wanted, fits = _OPTIONS[name]
        if not fits(value):
            raise ValueError(f"option {name!r} is {wanted}, not {value!r}")
    for name in options.keys() & {"images", "maps"}:
        options[name] = Path(options[name])
    for name in options.keys() & {"relevance_grid", "further_columns"}:
        options[name] = tuple(options[name])
    if not in_memory:
        data = str(data) if kind is HubTable else Path(data)
    if set(required) != set(REQUIRED) and "required" in inspect.signature(kind).parameters:
        options["required"] = required
    return kind(data=data, split=split, **options)


def _kind(format: str, data: Any) -> type:
    if format not in list(FORMATS):  # a value from YAML may be unhashable
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    in_memory = not isinstance(data, (str, os.PathLike))
    if in_memory and format != "table":
        raise ValueError(f"format {format!r} reads files, but data is a {type(data).__name__}: leave `format` out")
    return InMemory if in_memory else FORMATS[format]
