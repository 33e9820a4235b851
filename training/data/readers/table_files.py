"""The records of one table file: CSV, TSV, Excel, JSON, JSON lines or Parquet.

A place is numbered as the program that shows the file numbers it: rows of CSV and Excel from 1, which is the header;
lines of JSON lines from 1; rows of JSON and Parquet from 0.
"""

import codecs
import csv
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ijson
import pyarrow
import pyarrow.parquet as parquet

from ..schema import Record
from .cells import is_empty

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".xlsx", ".jsonl", ".json", ".parquet")
_LARGEST_CELL = 64 * 2**20  # characters; an image as base64 is one cell
_DELIMITERS = ",;\t|"


def read_records(path: Path, split: str, encoding: str | None = None) -> Iterator[tuple[str, Record]]:
    """(place, column -> value) of the records of a file.

    Args:
        path: the file.
        split: the sheet of a workbook that has several.
        encoding: of a text file; by default UTF-8, UTF-16 with its mark, or Windows-1252 for CSV, with a warning.

    Raises:
        ValueError: the file cannot be read, or a record is malformed. The message names the file and row.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _csv_records(path, encoding)
    if suffix == ".xlsx":
        return _as_records(_sheet_rows(path, split), path)
    if suffix == ".jsonl":
        return _json_line_records(path, encoding)
    if suffix == ".json":
        return _json_records(path)
    if suffix == ".parquet":
        return _parquet_records(path)
    advice = "save it as .xlsx" if suffix in (".xls", ".ods", ".xlsm") else f"a table is {', '.join(SUFFIXES)}"
    raise ValueError(f"{path}: {advice}")


def read_lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """The lines of a text in `encoding`, in UTF-8, or in UTF-16 with its mark.

    Raises:
        ValueError: the text is in another encoding.
    """
    with open(path, newline="", encoding=encoding or _marked_encoding(path)) as file:
        try:
            yield from file
        except UnicodeError as error:
            raise ValueError(
                f"{path}: is not text in {file.encoding.upper().removesuffix('-SIG')} ({error}): save it as UTF-8, or "
                "pass `encoding`"
            ) from error


def _csv_records(path: Path, encoding: str | None) -> Iterator[tuple[str, Record]]:
    csv.field_size_limit(_LARGEST_CELL)
    lines = read_lines(path, encoding or _csv_encoding(path))
    first = next(lines, "")
    named = re.fullmatch(r"sep=(.)\s*", first)  # written by Excel, which does not show it
    if named:
        first = next(lines, "")
    bare = re.sub(r'"[^"]*"', "", first)
    delimiter = named[1] if named else max(_DELIMITERS, key=bare.count)
    return _as_records(_csv_rows(path, _chain(first, lines), delimiter), path)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _csv_rows(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)  # strict: an open quote must not swallow later rows
    number = 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"{path} row {number}: a quotation mark is open or stray: {error}") from error
        if row is None:
            return
        yield row
        number += 1


def _sheet_rows(path: Path, split: str) -> Iterator[Sequence[Any]]:
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError(
            f"{path}: reading Excel files needs openpyxl: pip install 'modeling-qca[tables]', or save it as CSV"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # of a damaged file, zip and XML readers raise almost anything
        raise ValueError(f"{path}: cannot be read as an Excel file: {error}") from error
    names = [name for name in book.sheetnames if name == split] or book.sheetnames
    if len(names) > 1:
        raise ValueError(f"{path}: has the sheets {', '.join(names)}; call one of them {split}, or keep one")
    sheet, width = book[names[0]], 0
    sheet.reset_dimensions()  # the size that the file states may be too small
    for row in sheet.iter_rows(values_only=True):
        width = max(width, len(row))
        yield (*row, *(None,) * (width - len(row)))  # a row ends with its last cell
    book.close()


def _as_records(rows: Iterator[Sequence[Any]], path: Path) -> Iterator[tuple[str, Record]]:
    """Records of rows of cells, of which the first that is not blank is the header. Blank rows are left out."""
    header: list[str] | None = None
    for number, row in enumerate(rows, start=1):
        if all(map(is_empty, row)):
            continue
        if header is None:
            header = _header(row, path)
            continue
        if len(row) < len(header) or not all(map(is_empty, row[len(header) :])):
            raise ValueError(
                f"{path} row {number}: has {len(row)} columns, but the header has {len(header)}; put quotation marks "
                "around a cell that holds the delimiter"
            )
        yield f"{path} row {number}", {name: cell for name, cell in zip(header, row, strict=False) if name}


def _header(row: Sequence[Any], path: Path) -> list[str]:
    names = ["" if is_empty(cell) else str(cell) for cell in row]
    while not names[-1]:
        names.pop()
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: column {twice[0]!r} occurs twice; rename one")
    return names


def _json_line_records(path: Path, encoding: str | None) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(read_lines(path, encoding), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not a line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a line must be a JSON object")
        yield place, record


def _json_records(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON list, one in memory at a time."""
    with open(path, "rb") as file:
        try:
            for index, record in enumerate(ijson.items(file, "item", use_float=True)):
                if not isinstance(record, dict):
                    raise ValueError(f"{path} row {index}: an entry of the list must be a JSON object")
                yield f"{path} row {index}", record
        except ijson.JSONError as error:
            raise ValueError(f"{path}: not a list of JSON objects: {error}") from error


def _parquet_records(path: Path) -> Iterator[tuple[str, Record]]:
    index = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for record in batch.to_pylist():
                yield f"{path} row {index}", record
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error


def _marked_encoding(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(4)
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _csv_encoding(path: Path) -> str:
    """The encoding of a table that a spreadsheet saved: UTF-8, UTF-16 with its mark, or Windows-1252."""
    if (marked := _marked_encoding(path)) == "utf-16":
        return marked
    try:
        with open(path, encoding="utf-8-sig") as file:
            while file.read(2**20):
                pass
        return marked
    except UnicodeDecodeError:
        pass
    try:
        with open(path, encoding="cp1252") as file:
            example = next(line for line in file if not line.isascii()).strip()
            while file.read(2**20):
                pass
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is text in neither UTF-8 nor Windows-1252: pass `encoding`") from None
    logger.warning(
        "%s is not UTF-8: it is read as Windows-1252 (%.80s); pass `encoding` if that is wrong", path, example
    )
    return "cp1252"
