"""The file of answers: Parquet, CSV, JSON lines, or the submission file of the VQA challenge."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..files.atomic_write import atomic_write

ROWS_AT_ONCE = 4096
_NUMBERS, _TEXTS = pyarrow.list_(pyarrow.float64()), pyarrow.list_(pyarrow.string())
COLUMNS = {
    "image_id": pyarrow.string(),
    "question_id": pyarrow.string(),
    "question": pyarrow.string(),
    "answer": pyarrow.string(),
    "probability": pyarrow.float64(),
    "answers": _TEXTS,
    "probabilities": _NUMBERS,
    "peak": _NUMBERS,
    "box": _NUMBERS,
    "abstained": pyarrow.bool_(),
    "unfamiliar": pyarrow.bool_(),
}


def check_format(file: Path, options: Sequence[str]) -> None:
    """
    Args:
        options: those given that a submission file has no room for.

    Raises:
        ValueError: there is no format of this suffix, or it has no room for an option.
    """
    if file.suffix.lower() not in _WRITERS:
        raise ValueError(
            f"{file}: answers are written as {', '.join(_WRITERS)}, where .json is the submission file of VQA"
        )
    if file.suffix.lower() == SUBMISSION and options:
        raise ValueError(
            f"{file}: the submission file of VQA has one answer for each `question_id` of a table: leave {options[0]} "
            "out, or write .jsonl"
        )


def write_answers(file: Path, records: Iterable[dict[str, Any]], columns: list[str]) -> None:
    """
    Write the file completely or not at all, a few thousand rows in memory at a time.

    Args:
        file: its suffix is the format.
        records: the rows; each has `columns`, which are among `COLUMNS`.
    """
    with atomic_write(file) as unfinished:
        _WRITERS[file.suffix.lower()](unfinished, iter(records), columns)


def write_faults(file: Path, faults: list[dict[str, Any]]) -> None:
    """A CSV of the images that cannot be read; no file if there are none."""
    if not faults:
        file.unlink(missing_ok=True)
        return
    with atomic_write(file) as unfinished:
        _write_csv(unfinished, iter(faults), ["image", "reason", "rows"])


def _write_parquet(file: Path, records: Iterator[dict[str, Any]], columns: list[str]) -> None:
    schema = pyarrow.schema([(name, COLUMNS[name]) for name in columns])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(records, ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))


def _write_csv(file: Path, records: Iterator[dict[str, Any]], columns: list[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        for record in records:
            values = (record[name] for name in columns)
            writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in values])


def _write_json_lines(file: Path, records: Iterator[dict[str, Any]], columns: list[str]) -> None:
    with file.open("w", encoding="utf-8") as opened:
        for record in records:
            opened.write(json.dumps({name: record[name] for name in columns}, ensure_ascii=False) + "\n")


def _write_submission(file: Path, records: Iterator[dict[str, Any]], columns: list[str]) -> None:
    """`[{"question_id": ..., "answer": ...}]`. A number stays a number, `01827492` stays text."""
    with file.open("w", encoding="utf-8") as opened:
        separator = "["
        for record in records:
            written = record["question_id"]
            is_number = written.isascii() and written.isdecimal() and str(int(written)) == written
            entry = {"question_id": int(written) if is_number else written, "answer": record["answer"]}
            opened.write(f"{separator}\n{json.dumps(entry, ensure_ascii=False)}")
            separator = ","
        opened.write("\n]\n" if separator == "," else "[]\n")


SUBMISSION = ".json"
_WRITERS: dict[str, Callable[[Path, Iterator[dict[str, Any]], list[str]], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    SUBMISSION: _write_submission,
}
