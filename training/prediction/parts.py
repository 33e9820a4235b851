"""The finished parts of a prediction: one file for the answers about every `PART_IMAGES` images.

A part is written completely or not at all, so a stopped run goes on with the parts that are missing. At the end the
parts are merged in the order of the rows.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files.atomic_write import atomic_write
from ..files.run_files import write_json
from .work_list import WorkList

PART_IMAGES = 128
SETTINGS, WORK_LIST = "settings.json", "work_list.sqlite"


def changed_settings(before: dict[str, Any], settings: dict[str, Any]) -> str:
    """The names of the settings that differ from those of the run before, for messages; empty if there are none."""
    now = json.loads(json.dumps(settings))
    return ", ".join(sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)))


class Parts:
    """
    The folder of unfinished work beside the output.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.work_list = WorkList(folder / WORK_LIST)

    def open(self, settings: dict[str, Any]) -> None:
        """
        Start the folder, or go on with it.

        Raises:
            ValueError: it was started with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / SETTINGS
        before = json.loads(file.read_text()) if file.exists() else None
        if before is None:
            write_json(file, settings)
        elif changed := changed_settings(before, settings):
            raise ValueError(
                f"{self.folder} was begun with another {changed}: repeat the command as it was, or remove the folder "
                "to begin anew"
            )

    @property
    def count(self) -> int:
        """The number of parts, finished or not."""
        return -(-self.work_list.num_images // PART_IMAGES)

    def missing(self) -> list[int]:
        """The numbers of the parts that are not finished."""
        return [number for number in range(self.count) if not self._file(number).exists()]

    def images(self, number: int) -> range:
        """The numbers of the images of a part."""
        return range(number * PART_IMAGES, min((number + 1) * PART_IMAGES, self.work_list.num_images))

    def write(self, number: int, rows: list[tuple[int, dict[str, Any]]], faults: list[dict[str, Any]]) -> None:
        """
        Args:
            rows: number in the output, and content, of each row.
            faults: `image`, `reason` and `rows` (how many are not answered) of each image that cannot be read.
        """
        with atomic_write(self._file(number)) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            for row, record in rows:
                file.write(json.dumps([row, record]) + "\n")
            for fault in faults:
                file.write(json.dumps(fault) + "\n")

    def merge(self) -> tuple[sqlite3.Connection, list[dict[str, Any]]]:
        """
        All rows, sorted on disk; and the images that cannot be read.

        Raises:
            RuntimeError: a row is missing or there twice.
        """
        file = self.folder / "merged.sqlite"
        file.unlink(missing_ok=True)
        merged = sqlite3.connect(file)
        merged.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        merged.execute("CREATE TABLE answers (id INTEGER PRIMARY KEY, record TEXT)")
        faults: list[dict[str, Any]] = []
        try:
            for number in range(self.count):
                merged.executemany("INSERT INTO answers VALUES (?, ?)", self._rows(number, faults))
        except sqlite3.IntegrityError as error:
            raise RuntimeError(f"{self._file(number)}: a row is there twice: {error}") from error
        merged.commit()
        answered = merged.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
        expected = self.work_list.num_pairs - sum(fault["rows"] for fault in faults)
        if answered != expected:
            raise RuntimeError(f"{self.folder}: has {answered} answers where there must be {expected}")
        return merged, faults

    def _rows(self, number: int, faults: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
        with self._file(number).open(encoding="utf-8") as file:
            for line in file:
                content = json.loads(line)
                if isinstance(content, dict):
                    faults.append(content)
                else:
                    yield content[0], json.dumps(content[1])

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.jsonl"
