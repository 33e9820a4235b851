"""From the records of a table to rows: which column holds what, and one record as one or several rows."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from ..images import ImageFolder, image_key
from ..schema import Record, Row
from .cells import cell_answers, cell_image, cell_question, cell_relevance, cell_text, inline_image, is_empty
from .choices import chosen_answer, lettered_choices
from .conversations import conversation_records, is_conversation

USUAL_COLUMNS = {
    "image": ("image", "image_path", "file_name", "images", "image_id"),
    "image_id": ("image_id", "image", "image_path", "file_name"),
    "question": ("question",),
    "question_id": ("question_id",),
    "question_type": ("question_type", "kind"),
    "answers": ("answers", "answer"),
    "relevance": ("relevance",),
    "choices": ("choices", "options"),
}
REQUIRED = ("image", "question", "answers")


class RecordConverter:
    """Turns the records of one table into rows.

    Args:
        table: its name in messages.
        mapping: the column of a schema name, where it is not a usual one.
        folder: of the images that cells name; None where cells hold paths.
        answer_separator: splits an answer into a set of answers.
        keep_decoded: leave PIL images as they are, for rows that are not stored.
        required: the fields that a record must have. Of `question` and `answers`, only those named are read.
        further: columns of text that rows have beside the schema.
    """

    def __init__(
        self,
        table: str,
        mapping: Mapping[str, str],
        folder: ImageFolder | None,
        answer_separator: str | None,
        keep_decoded: bool = False,
        required: Collection[str] = REQUIRED,
        further: Sequence[str] = (),
    ) -> None:
        self.table = table
        self.mapping = mapping
        self.folder = folder
        self.answer_separator = answer_separator
        self.keep_decoded = keep_decoded
        self.required = required
        self.further = further
        self._columns: dict[tuple[str, ...], dict[str, str]] = {}

    def rows(self, record: Record, default_id: str, place: str) -> Iterator[tuple[str, Row]]:
        """(place, row) of each question of one record: several for a conversation, otherwise one.

        Raises:
            ValueError: a cell is empty or of another kind. The message names `place`.
        """
        if "question" in self.mapping or "question" not in self.required or not is_conversation(record):
            yield place, self._row(record, default_id, place)
            return
        for turn, question in enumerate(conversation_records(record, place, "answers" in self.required)):
            yield f"{place} turn {turn}", self._row(question, f"{default_id}-{turn}", f"{place} turn {turn}")

    def _row(self, record: Record, default_id: str, place: str) -> Row:
        names = tuple(record)
        if names not in self._columns:
            self._columns[names] = find_columns(names, self.mapping, self.table, self.required)
        columns = self._columns[names]
        image = record[columns["image"]]
        if not (self.keep_decoded and isinstance(image, Image.Image)):
            image = cell_image(image, place, self.folder)
        ids = [record[columns[name]] for name in ("image_id", "image") if name in columns]
        return {
            "image": image,
            "image_id": next(filter(None, (_id(value, place) for value in ids)), "") or (image and image_key(image)),
            "question": cell_question(record[columns["question"]], place) if "question" in self.required else "",
            "question_id": _question_id(record.get(columns.get("question_id", "")), place) or default_id,
            "question_type": cell_text(record.get(columns.get("question_type", "")), place, "question type"),
            "answers": self._answers(record, columns, place) if "answers" in self.required else [],
            "relevance": cell_relevance(record.get(columns.get("relevance", "")), place),
            **{name: self._further(record, name, place) for name in self.further},
        }

    def _further(self, record: Record, name: str, place: str) -> str:
        column = _present(name, list(record), self.table)
        if column is None:
            raise ValueError(f"{self.table}: no column {name!r}, only {', '.join(record)}")
        if not (text := cell_text(record[column], place, name)):
            raise ValueError(f"{place}: its {name} is empty")
        return text

    def _answers(self, record: Record, columns: Mapping[str, str], place: str) -> list[dict[str, Any]]:
        answer = record[columns["answers"]]
        choices = record[columns["choices"]] if "choices" in columns else lettered_choices(record)
        chosen = answer if is_empty(choices) else chosen_answer(answer, choices, place)
        return cell_answers(chosen, self.answer_separator, place)


def find_columns(
    names: Iterable[str], mapping: Mapping[str, str], table: str, required: Collection[str] = REQUIRED
) -> dict[str, str]:
    """The column of each schema name the table has: the mapped one, or the first of `USUAL_COLUMNS`.

    Case, outer spaces, and spaces or hyphens for `_` do not matter.

    Raises:
        ValueError: the mapping names an unknown field or a missing column, two columns fit one name, or a required
            column is missing.
    """
    present = list(names)
    if unknown := mapping.keys() - USUAL_COLUMNS.keys():
        raise ValueError(f"columns: {min(unknown)!r} is none of {', '.join(USUAL_COLUMNS)}")
    columns = {}
    for name, usual in USUAL_COLUMNS.items():
        wanted = (mapping[name],) if name in mapping else usual
        found = next(filter(None, (_present(column, present, table) for column in wanted)), None)
        if found is not None:
            columns[name] = found
        elif name in mapping or name in required:
            raise ValueError(
                f"{table}: no column {' or '.join(wanted)} for {name}, only {', '.join(present)}; map it with columns"
            )
    return columns


def _present(wanted: str, present: list[str], table: str) -> str | None:
    if wanted in present:
        return wanted
    found = [column for column in present if _plain(column) == _plain(wanted)]
    if len(found) > 1:
        raise ValueError(f"{table}: columns {found[0]!r} and {found[1]!r} both fit {wanted}; rename one")
    return found[0] if found else None


def _plain(column: str) -> str:
    return re.sub(r"[\s\-]+", "_", column.strip()).lower()


def _question_id(value: Any, place: str) -> str:
    """The id as it is written."""
    return value if isinstance(value, str) and not is_empty(value) else cell_text(value, place, "question id")


def _id(value: Any, place: str) -> str:
    """The id in a cell as text; "" for an empty cell and for one that holds the picture itself."""
    if isinstance(value, str):
        return "" if is_empty(value) or inline_image(value) is not None else value
    if isinstance(value, (int, float)) or (hasattr(value, "dtype") and not getattr(value, "shape", ())):
        return cell_text(value, place, "id")
    return ""
