"""Objects that somebody marked in a picture, and their file `objects.jsonl` beside a table.

A marked object belongs to its picture. It serves every question about the picture that names it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.readers.table_files import read_lines
from ..files.atomic_write import atomic_write
from .regions import Box, Mask, Polygon, Region

OBJECTS_FILE = "objects.jsonl"
_OPTIONAL = ("annotator", "question_id", "hop")
_REGIONS = ("box", "polygon", "mask")


@dataclass(frozen=True)
class MarkedObject:
    """
    Args:
        image: name of the picture as the table writes it, or its path relative to the folder of images.
        label: what the object is; "" if only its question names it.
        region: where it is, in pixels of the upright picture.
        annotator: who marked it. The maps of several annotators are averaged.
        question_id: the one question it serves; None: every question that names its label.
        hop: the hop that it serves, from 1; None: by the order in which the question names the objects.
    """

    image: str
    label: str
    region: Region
    annotator: str = ""
    question_id: str | None = None
    hop: int | None = None


def read_objects(path: Path) -> Iterator[MarkedObject]:
    """The objects of a JSON-lines file, one object a line.

    Keys of a line: `image`, `label`, and one of `box` [left, top, right, bottom], `polygon` [[x, y], ...] (or a list
    of such outlines) and `mask` {"size": [height, width], "counts": [...]} (uncompressed COCO RLE). `annotator`,
    `question_id` and `hop` are optional.

    Raises:
        ValueError: the file cannot be read, or a line has another form. The message names file and line.
    """
    try:
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                yield _parse(line, f"{path} line {number}")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def write_objects(path: Path, objects: Iterable[MarkedObject]) -> None:
    """Write the file that `read_objects` reads. It is replaced completely or not at all."""
    with atomic_write(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for item in objects:
            file.write(json.dumps(as_record(item), ensure_ascii=False) + "\n")


def as_record(item: MarkedObject) -> dict[str, Any]:
    """The JSON object of one line."""
    record: dict[str, Any] = {"image": item.image, "label": item.label}
    if isinstance(item.region, Box):
        record["box"] = [item.region.left, item.region.top, item.region.right, item.region.bottom]
    elif isinstance(item.region, Polygon):
        record["polygon"] = item.region.outlines[0] if len(item.region.outlines) == 1 else item.region.outlines
    else:
        record["mask"] = {"size": [item.region.height, item.region.width], "counts": item.region.counts}
    return record | {name: value for name in _OPTIONAL if (value := getattr(item, name)) not in (None, "")}


def _parse(line: str, place: str) -> MarkedObject:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not a line of JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("image"), str) or not record["image"]:
        raise ValueError(f"{place}: an object is {{image, label, box or polygon or mask}}, not {line.strip():.80}")
    given = [name for name in _REGIONS if record.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"{place}: an object has one of {', '.join(_REGIONS)}, not {' and '.join(given) or 'none'}")
    hop, question_id = record.get("hop"), record.get("question_id")
    if hop is not None and (type(hop) is not int or hop < 1):
        raise ValueError(f"{place}: `hop` is a number from 1, not {hop!r}")
    return MarkedObject(
        record["image"],
        str(record.get("label") or ""),
        parse_region(given[0], record[given[0]], place),
        str(record.get("annotator") or ""),
        None if question_id is None else str(question_id),
        hop,
    )


def parse_region(kind: str, value: Any, place: str) -> Region:
    """The region that `value` describes: a `box`, `polygon` or `mask` as in `read_objects`.

    Raises:
        ValueError: `value` has another form, or the region is empty. The message names `place`.
    """
    try:
        if kind == "box":
            box = Box(*map(_number, value))
            if box.right <= box.left or box.bottom <= box.top:
                raise ValueError("right must be greater than left, and bottom greater than top")
            return box
        if kind == "polygon":
            outlines = value if isinstance(value[0][0], list | tuple) else [value]
            polygon = Polygon(tuple(tuple((_number(x), _number(y)) for x, y in outline) for outline in outlines))
            if min(map(len, polygon.outlines)) < 3:
                raise ValueError("an outline has three points or more")
            return polygon
        return _parse_mask(value)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{place}: not a {kind}: {value!r:.80} ({error})") from error


def _parse_mask(value: Mapping[str, Any]) -> Mask:
    (height, width), counts = value["size"], value["counts"]
    if isinstance(counts, str):
        raise ValueError("compressed `counts`; import such masks with --from coco")
    if any(type(count) is not int or count < 0 for count in (height, width, *counts)):
        raise ValueError("`size` and `counts` are lists of whole numbers")
    if sum(counts) != height * width or not sum(counts[1::2]):
        raise ValueError("`counts` must sum to the pixels of `size`, and choose at least one")
    return Mask(height, width, tuple(counts))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
