"""The questions of a table on disk, with the number of their row."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.formats import checked_options, make_reader
from ..data.images import ImageFolder, StoredImage, image_key
from ..data.readers.columns import RecordConverter
from ..data.readers.tabular import Table, map_file
from ..data.schema import Record

SPLITS = ("train", "validation")
NEEDED = ("image", "question")  # a question without an answer has its map too


@dataclass(frozen=True)
class AskedQuestion:
    """A question: the number of its row as maps count it, its image, and the wanted cells of its record."""

    row: int
    place: str
    text: str
    question_id: str
    image: StoredImage
    image_name: str
    record: Record = field(default_factory=dict)

    @property
    def image_key(self) -> str:
        """Tells one picture from another."""
        return image_key(self.image)


@dataclass(frozen=True)
class AskedTable:
    """A file of questions."""

    path: Path
    questions: Sequence[AskedQuestion]

    @property
    def map_file(self) -> Path:
        """Where its relevance maps belong."""
        return map_file(self.path)


def read_tables(
    data: str | Path, options: Mapping[str, Any], splits: Collection[str] = SPLITS, columns: Collection[str] = ()
) -> list[AskedTable]:
    """The table files of `data`, with their questions.

    Args:
        data: a folder or file, as for `load_rows`.
        options: those of the format `table`.
        splits: which files; a split without a file is left out.
        columns: further columns whose cells are kept, where a table has them.

    Raises:
        ValueError: `data` is no table, has none of the splits, or a row is malformed.
    """
    options = dict(checked_options(options))
    if (name := options.pop("format", "table")) != "table":
        raise ValueError(f"maps are written beside tables, but the data has the format {name!r}; export it as a table")
    tables, faults = [], []
    for split in splits:
        table = make_reader("table", data, split, dict(options))
        assert isinstance(table, Table)
        try:
            files = table.files()
        except ValueError as error:
            faults.append(error)
            continue
        tables += [AskedTable(path, _read(table, path, columns)) for path in files]
    if not tables:
        raise faults[0]
    return tables


def _read(table: Table, path: Path, columns: Collection[str]) -> list[AskedQuestion]:
    folder = ImageFolder(table.image_folder(path), beside=path.parent)
    converter = RecordConverter(str(path), table.columns, folder, table.answer_separator, required=NEEDED)
    questions = []
    for row, (place, record) in enumerate(table.records(path)):
        asked = list(converter.rows(record, f"{path.stem}-{row}", place))
        if len(asked) != 1:
            raise ValueError(f"{place}: holds {len(asked)} questions; maps need a table with one question a row")
        found = asked[0][1]
        if found["image"] is None:
            raise ValueError(f"{place}: has no image")
        kept = {name: record[name] for name in columns if name in record}
        questions.append(
            AskedQuestion(row, place, found["question"], found["question_id"], found["image"], found["image_id"], kept)
        )
    return questions
