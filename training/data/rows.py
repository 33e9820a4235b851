"""Data sets of questions about images, all in one row schema, as Arrow on disk or as a stream.

`load_rows` is the entry point. A reader (one per file format) yields rows one at a time; `datasets` writes them to its
cache under a fingerprint of the files they come from, so that memory does not grow with the number of rows.
"""

import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets

from ..files.atomic_write import atomic_write
from .images import ImageCheck, image_key
from .readers.daquar import DAQUAR
from .readers.gqa import GQA
from .readers.tabular import HubTable, Row, Table
from .readers.vqa_hat import VQAHat
from .readers.vqa_v2 import VQAv2

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "question_id": datasets.Value("string"),
        "question_type": datasets.Value("string"),
        "answers": datasets.List({"answer": datasets.Value("string"), "count": datasets.Value("int32")}),
        "relevance": datasets.List(datasets.List(datasets.List(datasets.Value("float32")))),
    }
)
"""The row schema. `relevance` is [T][rows][columns], one map per step of looking, or None."""

FORMATS: dict[str, type] = {
    "table": Table,
    "hub": HubTable,
    "vqa_v2": VQAv2,
    "vqa_hat": VQAHat,
    "daquar": DAQUAR,
    "gqa": GQA,
}
_SCHEMA_VERSION = 2  # raise it when a reader's rows change, so that cached rows are written anew
_ELSEWHERE = {
    "split": "`qca evaluate` and the like have `--split`, the others use train and validation",
    "streaming": "only training streams, where the recipe says `streaming: true`",
}
_BY_IMAGE = "`group_by: image_id` (`--group_by image_id`) cuts by image"


def _is_folder(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


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
    "configuration": ("a text", _is_text_or_none),
    "revision": ("a text", _is_text_or_none),
    "subset": ("a text", lambda value: isinstance(value, str)),
    "scene_graphs": ("true or false", lambda value: isinstance(value, bool)),
    "streaming": ("true or false", lambda value: isinstance(value, bool)),
}
"""What each option of a format is, in words, and whether a value is that."""


class Reader(Protocol):
    """What every format offers; `shards` can be read independently of one another."""

    @property
    def data(self) -> str | Path: ...
    def shards(self) -> list[str]: ...
    def sources(self) -> list[Path]: ...
    def rows(self, shard: str) -> Iterator[tuple[str, Row]]: ...


def load_rows(
    data: str | os.PathLike[str],
    *,
    split: str = "train",
    format: str = "table",
    validation_ratio: float | None = None,
    group_by: str | None = None,
    seed: int = 0,
    on_bad_image: Literal["raise", "skip"] = "raise",
    streaming: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """The questions of `data` in the row schema `FEATURES`.

    Args:
        data: a folder or file, or the id of a data set of the Hub (`format="hub"`).
        split: `train`, `validation` or another split the data has.
        format: a key of `FORMATS`: `table` (CSV, JSON lines or Parquet with a folder of images), `hub`, `vqa_v2`,
            `vqa_hat`, `daquar` or `gqa`.
        validation_ratio: cut both splits from the data's train split, with this share of the rows for validation. By
            default the splits are the data's own.
        group_by: keep rows together when cutting: a column, or a column of numbered names and a divisor. `image_id`
            cuts by image, `image_id // 12` by runs of twelve neighboring image numbers. By default each row alone.
        seed: of the cut.
        on_bad_image: `raise` at the first image that cannot be read, naming path and row, or `skip` its rows, which
            are counted and listed in a warning.
        streaming: return an IterableDataset that reads as it goes. It has one shard per file.
        cache_dir: where Arrow files go; default the cache of `datasets`.
        **options: the format's own, see its class: `images`, `columns`, `answer_separator`, `relevance_filter`, ...

    Raises:
        ValueError: an unknown format or option, missing or malformed files, an unreadable image, or an empty split;
            the message names the file and row.
    """
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f"on_bad_image is raise or skip, not {on_bad_image!r}")
    if validation_ratio is not None and streaming:
        raise ValueError(
            "validation_ratio needs all rows: write the validation split to its own file, or do not stream"
        )
    if validation_ratio is None and group_by is not None:
        raise ValueError("group_by says how to cut: give validation_ratio too")
    own_split = "train" if validation_ratio is not None else split
    reader = _make_reader(format, data, own_split, {**options, **({"streaming": True} if streaming else {})})
    if validation_ratio is not None and not isinstance(reader, HubTable):
        with suppress(ValueError):  # it has no validation split of its own, as it should be
            _warn_of_unused(_make_reader(format, data, "validation", dict(options)).shards()[0])
    if streaming:
        arguments = {"shards": reader.shards(), "reader": reader, "on_bad_image": on_bad_image, "report": None}
        return datasets.IterableDataset.from_generator(_generate, features=FEATURES, gen_kwargs=arguments)
    rows = _build(reader, own_split, on_bad_image, Path(cache_dir or datasets.config.HF_DATASETS_CACHE))
    if validation_ratio is None:
        return rows
    if split not in ("train", "validation"):
        raise ValueError(f"validation_ratio makes train and validation, not {split!r}")
    return dict(zip(("train", "validation"), split_rows(rows, validation_ratio, group_by, seed), strict=True))[split]


def checked_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """`options` of `load_rows` as a user wrote them in one mapping.

    Raises:
        ValueError: there is one that has its place elsewhere, or whose name is no text.
    """
    for name in options:
        if name in _ELSEWHERE:
            raise ValueError(f"option {name!r} does not belong among the options of the data: {_ELSEWHERE[name]}")
        if not isinstance(name, str):
            raise ValueError(f"the name of an option is a text, not {name!r}")
    return options


def data_name(data: str | os.PathLike, options: Mapping[str, Any]) -> str:
    """What a measurement on `data` calls it: the id of a Hub data set, the last part of a path."""
    on_hub = options.get("format") == "hub" and not Path(data).exists()
    return str(data) if on_hub else Path(data).resolve().name


def split_name(split: str, options: Mapping[str, Any]) -> str:
    """What a measurement on `split` calls it: where it is cut from the training rows, how."""
    if split != "validation" or options.get("validation_ratio") is None:
        return split
    groups = f" by {options['group_by']}" if options.get("group_by") else ""
    return f"{options['validation_ratio']:.0%} of train{groups}, seed {options.get('seed', 0)}"


def split_rows(
    rows: datasets.Dataset, validation_ratio: float, group_by: str | None = None, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, validation) of `rows`, whole groups on either side; see `load_rows`.

    In an order drawn from `seed`, each group goes to validation that brings it closer to its share of the rows.

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
        raise ValueError(
            f"{len(rows)} rows in {len(groups)} groups cannot be cut at validation_ratio {validation_ratio}: "
            + (_BY_IMAGE if group_by and "//" in group_by else "change it, or give more data")
        )
    return rows.select(kept), rows.select(sorted(chosen))


def group_key(value: str, divisor: int | None) -> str:
    """The group of an id: itself, or its last number divided by `divisor`: ("image25", 12) -> "2".

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
    """("image_id", 12) of "image_id // 12"; the divisor is None for a column alone.

    Raises:
        ValueError: it has another form.
    """
    form = r"\s*(image_id|question|question_id|question_type)\s*(?://\s*([1-9]\d*)\s*)?"
    parsed = re.fullmatch(form, group_by) if isinstance(group_by, str) else None
    if parsed is None:
        raise ValueError(f"group_by is a text column, or one divided as in `image_id // 12`, not {group_by!r}")
    return parsed[1], int(parsed[2]) if parsed[2] else None


def _groups(rows: datasets.Dataset, group_by: str | None) -> Iterable[str]:
    if group_by is None:
        return map(str, range(len(rows)))
    column, divisor = parse_group_by(group_by)
    return (group_key(value, divisor) for value in rows[column])


def _make_reader(format: str, data: str | os.PathLike[str], split: str, options: dict[str, Any]) -> Reader:
    if format not in list(FORMATS):  # YAML gives anything, also what has no hash
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    kind = FORMATS[format]
    known = [name for name in inspect.signature(kind).parameters if name not in ("data", "split")]
    if kind is not HubTable:
        options.pop("streaming", None)
        if not Path(data).exists():
            raise ValueError(f"{data}: no such file or folder; for a data set of the Hub pass format: hub")
    if unknown := options.keys() - set(known):
        raise ValueError(f"option {min(unknown)!r} is not one of format {format}: {', '.join(known)}")
    required = [name for name in known if inspect.signature(kind).parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in options]:
        raise ValueError(f"format {format} needs option {missing[0]!r}")
    for name, value in options.items():
        wanted, fits = _OPTIONS[name]
        if not fits(value):
            raise ValueError(f"option {name!r} is {wanted}, not {value!r}")
    for name in options.keys() & {"images", "maps"}:
        options[name] = Path(options[name])
    if "relevance_grid" in options:
        options["relevance_grid"] = tuple(options["relevance_grid"])
    return kind(data=str(data) if kind is HubTable else Path(data), split=split, **options)


def _build(reader: Reader, split: str, on_bad_image: str, cache: Path) -> datasets.Dataset:
    """The rows as Arrow on disk, written once for the present state of their files.

    Raises:
        ValueError: whatever goes wrong with them; the message names the place, or at least the data.
    """
    fingerprint = _fingerprint(reader, on_bad_image)
    report = cache / f"skipped-{fingerprint}.json"
    arguments = {"shards": reader.shards(), "reader": reader, "on_bad_image": on_bad_image, "report": report}
    cache.mkdir(parents=True, exist_ok=True)
    try:
        rows = datasets.Dataset.from_generator(
            _generate,
            FEATURES,
            str(cache),
            gen_kwargs=arguments,
            fingerprint=fingerprint,
            split=re.sub(r"\W", "_", split),
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        if type(cause) is ValueError:  # of a reader, which names the place; those of other libraries do not
            raise cause from None
        raise ValueError(f"{reader.data}: {type(cause).__name__}: {cause}") from cause
    _warn_of(json.loads(report.read_text()))
    return rows


def _warn_of(skipped: list[dict[str, str]]) -> None:
    if skipped:
        lines = "\n".join(f"  {entry['place']}: {entry['image']}: {entry['reason']}" for entry in skipped)
        logger.warning("skipped %d rows, their images cannot be read:\n%s", len(skipped), lines)


@cache  # both splits are loaded, one after the other
def _warn_of_unused(file: str) -> None:
    logger.warning(
        "%s is not used: validation_ratio cuts the validation rows from the train split; leave it out to use the file",
        file,
    )


def _generate(shards: list[str], reader: Reader, on_bad_image: str, report: Path | None) -> Iterator[Row]:
    """The rows whose image can be read; the others are raised, or warned of and written to `report`."""
    check = ImageCheck()
    skipped = []
    images: dict[str, str] = {}
    for shard in shards:
        for place, row in reader.rows(shard):
            reason = check.reason(row["image"])
            if reason is None:
                image, image_id = image_key(row["image"]), row["image_id"]
                if images.setdefault(image_id, image) != image:
                    raise ValueError(
                        f"{place}: image_id {image_id!r} is of image {image} here, but of {images[image_id]} in an "
                        "earlier row; give every image an id of its own"
                    )
                yield row
            elif on_bad_image == "raise":
                raise ValueError(f"{place}: image {image_key(row['image'])} cannot be read: {reason}")
            else:
                skipped.append({"place": place, "image": image_key(row["image"]), "reason": reason})
    if report is None:
        _warn_of(skipped)
    elif not images:
        _warn_of(skipped)
        data = str(reader.data) if isinstance(reader, HubTable) else ", ".join(shards)
        raise ValueError(f"{data}: has no rows" + (" whose image can be read" if skipped else ""))
    else:
        with atomic_write(report) as unfinished:
            unfinished.write_text(json.dumps(skipped))


def _fingerprint(reader: Reader, on_bad_image: str) -> str:
    """Digest of the options and of the names, sizes and times of the files the rows depend on."""
    digest = blake2b(f"{_SCHEMA_VERSION} {reader} {on_bad_image}".encode(), digest_size=16)
    if isinstance(reader, HubTable):
        digest.update(reader.fingerprint().encode())
    for source in reader.sources():
        if not source.exists():
            raise ValueError(f"{source}: no such file or folder")
        for path in sorted(source.iterdir()) if source.is_dir() else [source]:
            stat = path.stat()
            digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
