"""Boxes in a column of the table of questions: `boxes`, a list for each hop."""

import json
from collections.abc import Iterable
from typing import Any

from ...data.readers.cells import as_python, is_empty
from ..asked_questions import AskedQuestion
from ..marked_objects import parse_region
from .export import Annotation, Export, fixed


def read_box_column(questions: Iterable[AskedQuestion], column: str) -> Export:
    """The boxes [left, top, right, bottom] of each question, in pixels of the upright picture.

    A cell is one box, a list with a box for each hop, or a list of boxes for each hop: `[[box, box], [box]]`. Text
    tables hold it as JSON. An empty cell or list has no boxes.

    Raises:
        ValueError: no question has such a column, or a cell is of another form. The message names the row.
    """
    export = Export()
    found = False
    for question in questions:
        if column not in question.record:
            continue
        found = True
        for hop, boxes in enumerate(_hops(question.record[column], question.place), start=1):
            for box in boxes:
                region = parse_region("box", box, question.place)
                annotation = Annotation(
                    question.place,
                    question.image_name,
                    "",
                    fixed(region),
                    question_id=question.question_id,
                    hop=hop,
                    image_key=question.image_key,
                )
                export.annotations.append(annotation)
    if not found:
        raise ValueError(f"no table has a column {column!r}; name it with --column")
    return export


def _hops(value: Any, place: str) -> list[list[Any]]:
    value = as_python(value)
    if is_empty(value):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{place}: its boxes are not JSON: {value!r:.80}") from error
    if isinstance(value, list) and value and all(map(_is_number, value)):
        return [[value]]
    if not isinstance(value, list) or not all(hop is None or isinstance(hop, list) for hop in value):
        raise ValueError(f"{place}: its boxes are a list for each hop, not {value!r:.80}")
    return [[] if hop is None else [hop] if hop and all(map(_is_number, hop)) else hop for hop in value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
