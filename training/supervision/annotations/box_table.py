"""Boxes in a table of their own: `image, x, y, width, height`, and optionally `label, hop, question_id`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.readers.cells import cell_text, is_empty
from ...data.readers.table_files import read_records
from ..marked_objects import parse_region
from .export import Annotation, Export, fixed, parse_hop, parse_number

_NUMBERS = ("x", "y", "width", "height")
_COLUMNS = ("image", *_NUMBERS, "label", "hop", "question_id")


def read_box_table(path: Path) -> Export:
    """The boxes of a CSV, TSV, Excel, JSON, JSON-lines or Parquet file, in pixels of the upright picture.

    Raises:
        ValueError: a column is missing, or a row is malformed. The message names the row.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of boxes")
    export = Export()
    for place, record in read_records(path, "boxes"):
        cells = _cells(record, path)
        x, y, width, height = (parse_number(cells[name], name, place) for name in _NUMBERS)
        image = cell_text(cells["image"], place, "image")
        if not image:
            raise ValueError(f"{place}: the image is empty")
        annotation = Annotation(
            place,
            image,
            cell_text(cells.get("label"), place, "label"),
            fixed(parse_region("box", [x, y, x + width, y + height], place)),
            question_id=cell_text(cells.get("question_id"), place, "question id") or None,
            hop=parse_hop(None if is_empty(cells.get("hop")) else cells["hop"], place),
        )
        export.annotations.append(annotation)
    return export


def _cells(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    plain = {name.strip().lower().replace(" ", "_"): cell for name, cell in record.items()}
    if missing := [name for name in ("image", *_NUMBERS) if name not in plain]:
        raise ValueError(
            f"{path}: no column {missing[0]!r}, only {', '.join(record)}; it needs {', '.join(_COLUMNS[:5])}"
        )
    return plain
