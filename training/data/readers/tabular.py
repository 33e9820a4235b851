"""Rows from tables with a folder of images: CSV, TSV, Excel, JSON, JSON lines and Parquet files.

Columns are found by their usual names or by a mapping from the row schema's names.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..images import ImageFolder
from ..relevance_maps import count_maps, read_maps
from ..schema import Record, Row
from .columns import REQUIRED, RecordConverter
from .table_files import SUFFIXES, read_records


@dataclass(frozen=True)
class Table:
    """A folder with `<split>.csv`, `.tsv`, `.xlsx`, `.jsonl`, `.json` or `.parquet`, or one such file.

    `<split>-*.parquet` are shards. Maps are read from a `relevance` column or from `<table>_relevance.npz` beside the
    table (see `relevance_maps`), which numbers the rows from 0, without the header and blank rows.

    Args:
        data: the folder or file.
        split: `train`, `validation` or what the files are called. A single file has only `train`.
        images: folder of the images; default `images` beside the table, or else the table's own folder.
        columns: column of a schema name: `{"answers": "label", "question_type": "kind"}`.
        answer_separator: splits an answer into a set of answers (`","` for DAQUAR).
        further_columns: columns of text that rows have beside the schema, such as one that `group_by` names.
        relevance_filter: keeps maps whose entry in another array of the npz file equals this: `{"tier": "strict"}`.
        encoding: of a text file; see `table_files.read_records` for the default.
        required: as for `RecordConverter`.
    """

    data: Path
    split: str
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_separator: str | None = None
    further_columns: tuple[str, ...] = ()
    relevance_filter: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    required: Collection[str] = field(default=REQUIRED, repr=False)

    def shards(self) -> list[str]:
        """The table's files."""
        return [str(path) for path in self.files()]

    def sources(self) -> list[Path]:
        """All files that the rows depend on: tables, maps and the folder of images."""
        files = self.files()
        return [*files, *(path for path in map(map_file, files) if path.exists()), self.image_folder(files[0])]

    def rows(self, shard: str) -> Iterator[tuple[str, Row]]:
        """(place, row) of one file."""
        path = Path(shard)
        folder = ImageFolder(self.image_folder(path), beside=path.parent)
        converter = RecordConverter(
            str(path),
            self.columns,
            folder,
            self.answer_separator,
            required=self.required,
            further=self.further_columns,
        )
        maps = _Maps(map_file(path), self.relevance_filter)
        count = 0
        for index, (place, record) in enumerate(self.records(path)):
            count = index + 1
            relevance = maps.take(index)
            for where, row in converter.rows(record, f"{path.stem}-{index}", place):
                if relevance is not None:
                    if row["relevance"] is not None:
                        raise ValueError(f"{place}: has a map in its column and in {maps.path}; keep one")
                    row["relevance"] = relevance
                yield where, row
        maps.finish(path, count)

    def files(self) -> list[Path]:
        """The files of this split."""
        if self.data.is_file():
            if self.split != "train":
                raise ValueError(f"{self.data} is one file: cut it with validation_ratio, or give a folder of splits")
            return [self.data]
        whole = [path for suffix in SUFFIXES if (path := self.data / f"{self.split}{suffix}").exists()]
        files = whole or sorted(self.data.glob(f"{self.split}-*.parquet"))
        if len(whole) > 1:
            raise ValueError(f"{self.data}: both {whole[0].name} and {whole[1].name}; keep one")
        if not files:
            names = ", ".join(f"{self.split}{suffix}" for suffix in SUFFIXES)
            cut = "; set validation_ratio to cut it from the training rows" if self.split == "validation" else ""
            raise ValueError(f"{self.data}: no {self.split}.csv; a table is one of {names}{cut}")
        return files

    def records(self, path: Path) -> Iterator[tuple[str, Record]]:
        """(place, column -> value) of the records of one file."""
        return read_records(path, self.split, self.encoding)

    def image_folder(self, file: Path) -> Path:
        """The folder of the images that one file names."""
        if self.images is not None:
            return self.images
        beside = file.parent / "images"
        return beside if beside.is_dir() else file.parent


class _Maps:
    """The maps beside a table, taken row by row."""

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


def map_file(table: Path) -> Path:
    """Where the relevance maps of a table file lie."""
    return table.with_name(f"{table.stem}_relevance.npz")
