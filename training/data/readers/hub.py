"""Data sets of the Hub, and tables of `datasets` in general."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ..images import ImageFolder
from ..schema import Record, Row
from .columns import REQUIRED, RecordConverter, find_columns
from .conversations import LAYOUTS


@dataclass(frozen=True)
class HubTable:
    """A data set of the Hub (or a local folder that `datasets.load_dataset` reads), its columns mapped to the schema.

    Args:
        data: id of the data set.
        split: its split.
        configuration: its configuration, where it has several.
        revision: commit, branch or tag.
        images: folder of the images, where its image column holds file names.
        columns, answer_separator, further_columns: as for `Table`.
        streaming: read it over the network instead of downloading it.
        required: as for `RecordConverter`.
    """

    data: str
    split: str
    configuration: str | None = None
    revision: str | None = None
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_separator: str | None = None
    further_columns: tuple[str, ...] = ()
    streaming: bool = False
    required: Collection[str] = field(default=REQUIRED, repr=False)

    def shards(self) -> list[str]:
        """Numbers of the data set's shards."""
        return [str(index) for index in range(self._table().num_shards if self.streaming else 1)]

    def sources(self) -> list[Path]:
        """Local folders that the rows depend on."""
        return [self.images] if self.images else []

    def fingerprint(self) -> str:
        """The fingerprint that `datasets` gives to the downloaded table."""
        return self._table()._fingerprint

    def rows(self, shard: str) -> Iterator[tuple[str, Row]]:
        """(place, row) of one shard."""
        table = self._table()
        if not any(layout in (table.features or {}) for layout in LAYOUTS):
            find_columns(table.features or next(iter(table), {}), self.columns, self.data, self.required)
        shards = len(self.shards())
        folder = ImageFolder(self.images) if self.images else None
        converter = RecordConverter(
            self.data,
            self.columns,
            folder,
            self.answer_separator,
            required=self.required,
            further=self.further_columns,
        )
        part = table.shard(shards, int(shard)) if shards > 1 else table
        for index, record in enumerate(table_records(part)):
            place = f"{self.data} {self.split} row {index}" + (f" of shard {shard}" if shards > 1 else "")
            yield from converter.rows(record, f"{shard}-{index}", place)

    def _table(self) -> Any:
        """
        Raises:
            ValueError: it cannot be loaded. The message names the data set.
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


def table_records(table: Any) -> Iterator[Record]:
    """The records of a table of `datasets`, its images not decoded and its class labels as names."""
    features = table.features or {}
    classes = {name: feature for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    stored = datasets.Image(decode=False)
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, stored)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(stored))
    for record in table:
        yield {**record, **{name: _class_name(feature, record[name]) for name, feature in classes.items()}}


def _class_name(feature: datasets.ClassLabel, value: int | None) -> str | None:
    return None if value is None or value < 0 else feature.int2str(value)  # a negative number means no label
