"""Rows from tables: CSV, JSON lines and Parquet files with a folder of images, and data sets of the Hub.

Columns are found by their usual names or by a mapping from the row schema's names.
"""

import ast
import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from ..answers import count_answers
from ..images import ImageFolder, StoredImage, image_key
from ..relevance_maps import as_hops, count_maps, read_maps

Record = Mapping[str, Any]
Row = dict[str, Any]

USUAL_COLUMNS = {
    "image": ("image", "image_id"),
    "image_id": ("image_id", "image"),
    "question": ("question",),
    "question_id": ("question_id",),
    "question_type": ("question_type", "kind"),
    "answers": ("answers", "answer"),
    "relevance": ("relevance",),
}
_REQUIRED = ("image", "question", "answers")
_SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """A folder with `<split>.csv`, `.jsonl` or `.parquet` (or `<split>-*.parquet` shards), or one such file.

    Maps are read from a `relevance` column or from `<table>_relevance.npz` beside the table (see `relevance_maps`).

    Args:
        data: the folder or file.
        split: `train`, `validation` or what the files are called. A single file has only `train`.
        images: folder of the images; default `images` beside the table, or else the table's own folder.
        columns: column of a schema name: `{"answers": "label", "question_type": "kind"}`.
        answer_separator: splits an answer into a set of answers (`","` for DAQUAR).
        relevance_filter: keeps maps whose entry in another array of the npz file equals this: `{"tier": "strict"}`.
    """

    data: Path
    split: str
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_separator: str | None = None
    relevance_filter: Mapping[str, str] = field(default_factory=dict)

    def shards(self) -> list[str]:
        """The table's files."""
        return [str(path) for path in self.files()]

    def sources(self) -> list[Path]:
        """Everything the rows depend on: tables, maps and the folder of images."""
        files = self.files()
        return [*files, *(path for path in map(_map_file, files) if path.exists()), self._image_folder(files[0])]

    def rows(self, shard: str) -> Iterator[tuple[str, Row]]:
        """(place, row) of one file."""
        path = Path(shard)
        folder = ImageFolder(self._image_folder(path))
        maps = _Maps(_map_file(path), self.relevance_filter)
        count = 0
        for index, record in enumerate(self.records(path)):
            count = index + 1
            place = f"{path} row {index}"
            columns = find_columns(record, self.columns, str(path))
            row = to_row(record, columns, f"{path.stem}-{index}", place, folder, self.answer_separator)
            if (relevance := maps.take(index)) is not None:
                if row["relevance"] is not None:
                    raise ValueError(f"{place}: has a map in its column and in {maps.path}; keep one")
                row["relevance"] = relevance
            yield place, row
        maps.finish(path, count)

    def files(self) -> list[Path]:
        """The files of this split."""
        if self.data.is_file():
            if self.split != "train":
                raise ValueError(f"{self.data} is one file: cut it with validation_ratio, or give a folder of splits")
            return [self.data]
        whole = [path for suffix in _SUFFIXES if (path := self.data / f"{self.split}{suffix}").exists()]
        files = whole or sorted(self.data.glob(f"{self.split}-*.parquet"))
        if len(whole) > 1:
            raise ValueError(f"{self.data}: both {whole[0].name} and {whole[1].name}; keep one")
        if not files:
            raise ValueError(f"{self.data}: no {self.split}.csv, {self.split}.jsonl or {self.split}.parquet")
        return files

    def records(self, path: Path) -> Iterator[Record]:
        """The records of one file, column -> value."""
        if path.suffix == ".csv":
            return _csv_records(path)
        if path.suffix == ".jsonl":
            return _json_records(path)
        if path.suffix == ".parquet":
            return _parquet_records(path)
        raise ValueError(f"{path}: a table is {', '.join(_SUFFIXES)}")

    def _image_folder(self, file: Path) -> Path:
        if self.images is not None:
            return self.images
        beside = file.parent / "images"
        return beside if beside.is_dir() else file.parent


@dataclass(frozen=True)
class HubTable:
    """A data set of the Hub (or a local folder `datasets.load_dataset` reads), its columns mapped to the schema.

    Args:
        data: id of the data set.
        split: its split.
        configuration: its configuration, where it has several.
        revision: commit, branch or tag.
        images: folder of the images, where its image column holds file names.
        columns, answer_separator: as for `Table`.
        streaming: read it over the network instead of downloading it.
    """

    data: str
    split: str
    configuration: str | None = None
    revision: str | None = None
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_separator: str | None = None
    streaming: bool = False

    def shards(self) -> list[str]:
        """Numbers of the data set's shards."""
        return [str(index) for index in range(self._table().num_shards if self.streaming else 1)]

    def sources(self) -> list[Path]:
        """Local folders the rows depend on."""
        return [self.images] if self.images else []

    def fingerprint(self) -> str:
        """What `datasets` tells the downloaded table's content by."""
        return self._table()._fingerprint

    def rows(self, shard: str) -> Iterator[tuple[str, Row]]:
        """(place, row) of one shard."""
        table = self._table()
        columns = find_columns(table.features or next(iter(table), {}), self.columns, self.data)
        features = table.features or {}
        classes = {
            column: feature
            for column in columns.values()
            if isinstance(feature := features.get(column), datasets.ClassLabel)
        }
        if isinstance((table.features or {}).get(columns["image"]), datasets.Image):
            table = table.cast_column(columns["image"], datasets.Image(decode=False))
        shards = len(self.shards())
        folder = ImageFolder(self.images) if self.images else None
        for index, record in enumerate(table.shard(shards, int(shard)) if shards > 1 else table):
            place = f"{self.data} {self.split} row {index}" + (f" of shard {shard}" if shards > 1 else "")
            named = {column: _class_name(feature, record[column]) for column, feature in classes.items()}
            yield place, to_row({**record, **named}, columns, f"{shard}-{index}", place, folder, self.answer_separator)

    def _table(self) -> Any:
        """
        Raises:
            ValueError: it cannot be had; the message names the data set.
        """
        try:
            return datasets.load_dataset(
                self.data, self.configuration, split=self.split, revision=self.revision, streaming=self.streaming
            )
        except (RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
            script = "scripts are no longer supported" in str(error)
            advice = "; `revision: refs/convert/parquet` reads it where the Hub has converted it" if script else ""
            raise ValueError(f"{self.data}: {cause}{advice}") from error


def find_columns(names: Iterable[str], mapping: Mapping[str, str], table: str) -> dict[str, str]:
    """The column of each schema name the table has: the mapped one, or the first of `USUAL_COLUMNS`.

    Raises:
        ValueError: the mapping names an unknown field or a column that is not there, or a required one is missing.
    """
    present = list(names)
    if unknown := mapping.keys() - USUAL_COLUMNS.keys():
        raise ValueError(f"columns: {min(unknown)!r} is none of {', '.join(USUAL_COLUMNS)}")
    columns = {}
    for name, usual in USUAL_COLUMNS.items():
        found = [column for column in ([mapping[name]] if name in mapping else usual) if column in present]
        if found:
            columns[name] = found[0]
        elif name in mapping or name in _REQUIRED:
            wanted = mapping.get(name, " or ".join(usual))
            raise ValueError(f"{table}: no column {wanted} for {name}, only {', '.join(present)}; map it with columns")
    return columns


def to_row(
    record: Record,
    columns: Mapping[str, str],
    default_id: str,
    place: str,
    folder: ImageFolder | None,
    answer_separator: str | None,
) -> Row:
    """One record of a table in the row schema.

    Raises:
        ValueError: the image, question, answer or map is empty or of another kind; the message names `place`.
    """
    image = _stored_image(record[columns["image"]], place, folder)
    question = str(record[columns["question"]] or "").strip()
    if not question:
        raise ValueError(f"{place}: the question is empty")
    names = (record.get(column) for column in (columns.get("image_id", "image_id"), *USUAL_COLUMNS["image_id"]))
    return {
        "image": image,
        "image_id": next(filter(None, map(_name, names)), "") or image_key(image),
        "question": question,
        "question_id": _name(record.get(columns.get("question_id", "question_id"))) or default_id,
        "question_type": str(record[columns["question_type"]] or "") if "question_type" in columns else "",
        "answers": _answers(record[columns["answers"]], answer_separator, place),
        "relevance": _relevance(record.get(columns.get("relevance", "relevance")), place),
    }


def _name(value: Any) -> str:
    """`value` as text, "" where it is null, blank or no name but a picture."""
    text = "" if value is None or isinstance(value, Mapping) else str(value)
    return text if text.strip() else ""


def _relevance(value: Any, place: str) -> NDArray[np.float32] | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, (str, Mapping)):
        raise ValueError(f"{place}: a relevance map is lists of numbers, not {value!r:.80}; put maps in an npz file")
    return as_hops(value, place)


def _stored_image(value: Any, place: str, folder: ImageFolder | None) -> StoredImage:
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return {"path": value.get("path"), "bytes": value["bytes"]}
        value = value.get("path")
    if not value or not isinstance(value, (str, int)):
        raise ValueError(f"{place}: no image")
    return folder.find(str(value)) if folder else str(value)


def _answers(value: Any, separator: str | None, place: str) -> list[dict[str, Any]]:
    """An answer, several, or the schema's own (or VQA's) list of {"answer", ...} as the schema's list."""
    if isinstance(value, str) and _is_list(value):
        raise ValueError(
            f"{place}: the answer {value!r:.80} is a list written as text: keep it as a list in JSON lines or "
            "Parquet, or write its members side by side and name what is between them (`answer_separator`)"
        )
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        given = str(value).split(separator) if separator else [str(value)]
    elif isinstance(value, list) and all(isinstance(answer, str) for answer in value):
        given = value
    elif isinstance(value, list) and all(map(_is_counted, value)):
        given = [answer["answer"] for answer in value for _ in range(answer.get("count", 1))]
    else:
        raise ValueError(
            f"{place}: an answer is a text, a list of texts or a list of {{answer, count}}, not {value!r}"
        )
    given = [answer.strip() for answer in given]
    if not given or not all(given):
        raise ValueError(f"{place}: the answer is empty")
    return count_answers(given)


def _class_name(feature: datasets.ClassLabel, value: int | None) -> str | None:
    return None if value is None or value < 0 else feature.int2str(value)  # below 0 there is no label


def _is_list(text: str) -> bool:
    """Whether `text` is a list as Python, JSON or numpy write one."""
    try:
        return text.strip().startswith("[") and isinstance(ast.literal_eval(text.strip()), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _is_counted(answer: Any) -> bool:
    return (
        isinstance(answer, Mapping)
        and isinstance(answer.get("answer"), str)
        and isinstance(answer.get("count", 1), int)
    )


class _Maps:
    """The maps beside a table, taken in step with its rows."""

    def __init__(self, path: Path, where: Mapping[str, str]) -> None:
        self.path = path
        if where and not path.exists():
            raise ValueError(f"{path}: no such file for relevance_filter")
        self._maps = read_maps(path, where) if path.exists() else iter(())
        self._next = next(self._maps, None)

    def take(self, row: int) -> NDArray[np.float32] | None:
        if self._next is None or self._next[0] != row:
            return None
        relevance = self._next[1]
        self._next = next(self._maps, None)
        return relevance

    def finish(self, table: Path, rows: int) -> None:
        if self._next is not None:
            raise ValueError(f"{self.path}: has a map for row {self._next[0]}, but {table} has {rows} rows")
        if self.path.exists():
            count, numbered = count_maps(self.path)
            if not numbered and count != rows:
                raise ValueError(f"{self.path}: has {count} maps and no `row`, but {table} has {rows} rows")


def _map_file(table: Path) -> Path:
    return table.with_name(f"{table.stem}_relevance.npz")


def _csv_records(path: Path) -> Iterator[Record]:
    records = csv.DictReader(read_lines(path), strict=True)  # or a quote left open would swallow the rows after it
    for index in itertools.count():
        try:
            record = next(records, None)
        except csv.Error as error:
            raise ValueError(f"{path} row {index}: a quotation mark is open or stray: {error}") from error
        if record is None:
            return
        if None in record or None in record.values():
            raise ValueError(f"{path} row {index}: has another number of columns than the header")
        yield record


def _json_records(path: Path) -> Iterator[Record]:
    for index, line in enumerate(read_lines(path)):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} row {index}: not a line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path} row {index}: a line must be a JSON object")
        yield record


def _parquet_records(path: Path) -> Iterator[Record]:
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text in UTF-8.

    Raises:
        ValueError: it is in another encoding; the message names it.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not text in UTF-8 ({error.reason})") from error
