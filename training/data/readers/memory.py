"""Data that is in memory already: a table of `datasets`, a DataFrame or a list of dicts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ..images import ImageFolder
from ..schema import Record, Row
from .columns import RecordConverter
from .hub import table_records


@dataclass(frozen=True)
class InMemory:
    """A `Dataset`, `IterableDataset`, `DatasetDict`, DataFrame or list of dicts.

    Args:
        data: the object.
        split: a key of a `DatasetDict`; the others have only `train`.
        images: folder of the images, where the image column holds file names.
        columns, answer_separator, further_columns: as for `Table`.

    Raises:
        ValueError: the object is of another kind, or has no such split.
    """

    data: Any
    split: str
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_separator: str | None = None
    further_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.data, datasets.DatasetDict | datasets.IterableDatasetDict):
            if self.split not in self.data:
                raise ValueError(f"{self.name}: no split {self.split!r}, only {', '.join(map(str, self.data))}")
        elif self.split != "train":
            raise ValueError(f"{self.name} is one table: cut it with validation_ratio, or give a DatasetDict")

    @property
    def name(self) -> str:
        """The object in messages."""
        return f"the {type(self.data).__name__}"

    @property
    def table(self) -> Any:
        """The object of this split."""
        return self.data[self.split] if isinstance(self.data, dict) else self.data

    def shards(self) -> list[str]:
        """One shard."""
        return ["0"]

    def sources(self) -> list[Path]:
        """The folder of images, where there is one."""
        return [self.images] if self.images else []

    def fingerprint(self) -> str:
        """The fingerprint of a `Dataset`, with the options."""
        return f"{self.table._fingerprint} {self.images} {self.columns} {self.answer_separator}"

    def rows(self, shard: str) -> Iterator[tuple[str, Row]]:
        """(place, row) of the records in their order."""
        folder = ImageFolder(self.images) if self.images else None
        converter = RecordConverter(
            self.name, self.columns, folder, self.answer_separator, further=self.further_columns
        )
        for index, record in enumerate(self._records()):
            if not isinstance(record, Mapping):
                raise ValueError(f"{self.name} row {index}: a row is a dict of columns, not {record!r:.80}")
            yield from converter.rows(record, f"{self.split}-{index}", f"{self.name} row {index}")

    def _records(self) -> Iterator[Record]:
        table = self.table
        if isinstance(table, datasets.Dataset | datasets.IterableDataset):
            yield from table_records(table)
        elif isinstance(table, list | tuple):
            yield from table
        elif hasattr(table, "to_dict") and hasattr(table, "notna"):  # a DataFrame, without importing pandas
            yield from table.astype(object).where(table.notna(), None).to_dict("records")
        else:
            raise ValueError(
                f"{self.name} is no data: give a folder, a file, a Dataset, a DataFrame or a list of dicts"
            )
