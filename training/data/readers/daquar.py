"""DAQUAR (Malinowski and Fritz, NIPS 2014): questions about indoor photos, as text pairs or as a table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from ..schema import Record
from .table_files import read_lines
from .tabular import Table

_IMAGE = re.compile(r"\s*(?:\b(?:in|on|of)\s+)?(?:\b(?:the|this)\s+)?\b(image\d+)\s*\?*$")
_OFFICIAL_SPLITS = {"validation": "test"}


@dataclass(frozen=True)
class DAQUAR(Table):
    """A folder with the official `qa.<classes>.raw.<split>.txt`, or with a table as in `Table`; or one such file.

    The text alternates lines: `what is on the table in the image3 ?`, then `cup, plate`. Answers are sets. The split
    `validation` is `test` in the official names. Other options are those of `Table`.
    """

    answer_separator: str | None = ","

    def files(self) -> list[Path]:
        """The text file of this split, or else the tables."""
        found = sorted(self.data.glob(f"qa.*.{_OFFICIAL_SPLITS.get(self.split, self.split)}.txt"))
        if len(found) > 1:
            raise ValueError(f"{self.data}: {found[0].name} and {found[1].name}; give one of them as data")
        return found or super().files()

    def records(self, path: Path) -> Iterator[tuple[str, Record]]:
        """(place; question, answer and image) of each pair of lines."""
        return _pairs(path, self.encoding) if path.suffix == ".txt" else super().records(path)


def _pairs(path: Path, encoding: str | None) -> Iterator[tuple[str, Record]]:
    lines = (line.strip() for line in read_lines(path, encoding))
    for index, (question, answer) in enumerate(zip_longest(lines, lines)):
        image = _IMAGE.search(question)
        if image is None:
            raise ValueError(f"{path} line {2 * index + 1}: a question ends with its image, as in `... image3 ?`")
        if not answer:
            raise ValueError(f"{path} line {2 * index + 2}: the answer is missing")
        record = {"question": question[: image.start()], "answer": answer, "image_id": image[1]}
        yield f"{path} line {2 * index + 1}", record
