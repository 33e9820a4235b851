"""What is to be answered, in one SQLite file: each image once, each question once, and the pairs of both.

If every question is asked about every image, the file lists the names of the images instead of the pairs. One image
may have several names. Rows with the same image and name count once.

The file is written once, before the first answer. A resumed run and every process read the same list, whatever has
happened to the source since. Memory does not grow with the number of rows.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..data.images import image_key
from ..files.atomic_write import atomic_write
from .sources import SourceRow

QUESTIONS_AT_ONCE = 1000
TABLES = """
CREATE TABLE images (id INTEGER PRIMARY KEY, key TEXT UNIQUE, image_id TEXT, path TEXT, content BLOB, fault TEXT);
CREATE TABLE names (id INTEGER PRIMARY KEY, image INTEGER, image_id TEXT, UNIQUE (image, image_id));
CREATE TABLE questions (id INTEGER PRIMARY KEY, question_id TEXT, question TEXT UNIQUE);
CREATE TABLE pairs (id INTEGER PRIMARY KEY, image INTEGER, image_id TEXT, question INTEGER, question_id TEXT);
"""


class Pair(NamedTuple):
    """
    Args:
        row: number of the pair in the output, from 0.
        place: of its image among those of the batch.
    """

    row: int
    place: int
    image_id: str
    question_id: str
    question: str


class ImageBatch(NamedTuple):
    """
    Args:
        names: of the images, for messages.
        images: what `open_image` takes, or None where the row has no image.
        faults: place -> why that image could not be had, known from its source.
        pairs: the questions about the images, those of one image together.
    """

    names: list[str]
    images: list[Any]
    faults: dict[int, str]
    pairs: list[Pair]


class WorkList:
    """Reads the file. It can be pickled, and opens the file again in each process.

    Args:
        file: of [`write_work_list`].
    """

    def __init__(self, file: Path):
        self.file = file

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file}

    @cached_property
    def num_images(self) -> int:
        return self._count("images")

    @cached_property
    def num_pairs(self) -> int:
        """Also those about images that cannot be read."""
        return self._count("pairs") if self._listed else self._count("names") * self._count("questions")

    def questions(self) -> Iterator[list[tuple[str, str]]]:
        """(id, text) of the distinct questions, `QUESTIONS_AT_ONCE` at a time."""
        rows = self._database.execute("SELECT question_id, question FROM questions ORDER BY id")
        while chunk := rows.fetchmany(QUESTIONS_AT_ONCE):
            yield chunk

    def read(self, start: int, stop: int) -> ImageBatch:
        """The images number `start` to `stop`, and all questions about them."""
        query = "SELECT image_id, path, content, fault FROM images WHERE id >= ? AND id < ? ORDER BY id"
        stored = self._database.execute(query, (start, stop)).fetchall()
        faults = {place: fault for place, (_, _, _, fault) in enumerate(stored) if fault is not None}
        images = [content if content is not None else path and Path(path) for _, path, content, _ in stored]
        names = [path or image_id for image_id, path, _, _ in stored]
        if self._listed:
            query = (
                "SELECT pairs.id, image - ?, image_id, pairs.question_id, questions.question FROM pairs "
                "JOIN questions ON questions.id = pairs.question WHERE image >= ? AND image < ? "
                "ORDER BY image, pairs.id"
            )
            found = self._database.execute(query, (start, start, stop))
            return ImageBatch(names, images, faults, list(map(Pair._make, found)))
        asked = self._asked
        query = "SELECT id, image - ?, image_id FROM names WHERE image >= ? AND image < ? ORDER BY image, id"
        pairs = [
            Pair(name * len(asked) + number, place, image_id, question_id, question)
            for name, place, image_id in self._database.execute(query, (start, start, stop))
            for number, (question_id, question) in enumerate(asked)
        ]
        return ImageBatch(names, images, faults, pairs)

    @cached_property
    def _listed(self) -> bool:
        """Whether the pairs are listed; otherwise every question is asked about every image."""
        return self._count("pairs") > 0

    @cached_property
    def _asked(self) -> list[tuple[str, str]]:
        return [question for chunk in self.questions() for question in chunk]

    @cached_property
    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)

    def _count(self, table: str) -> int:
        return self._database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


def write_work_list(file: Path, rows: Iterable[SourceRow], questions: Sequence[tuple[str, str]] | None) -> None:
    """
    Write the list, completely or not at all.

    Images inside of the source (as bytes) are copied into the file.

    Args:
        questions: (id, text) of those asked about every image; None if each row brings its own.

    Raises:
        ValueError: see `source_rows`; or there are no rows.
    """
    with atomic_write(file) as unfinished:
        database = sqlite3.connect(unfinished)
        try:
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES)
            if questions is not None:
                database.executemany("INSERT INTO questions VALUES (?, ?, ?)", ((None, *each) for each in questions))
            _insert(database, rows, listed=questions is None)
            database.execute("CREATE INDEX pairs_of_image ON pairs (image, id)")
            database.commit()
        finally:
            database.close()


def _insert(database: sqlite3.Connection, rows: Iterable[SourceRow], listed: bool) -> None:
    images = names = texts = number = 0
    for number, row in enumerate(rows, start=1):
        key = row.place if row.image is None else image_key(row.image)
        image = (images, key, row.image_id, *_stored(row))
        images += database.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?)", image).rowcount
        if listed:
            text = (texts, row.place, row.question)
            texts += database.execute("INSERT OR IGNORE INTO questions VALUES (?, ?, ?)", text).rowcount
            database.execute(
                "INSERT INTO pairs SELECT ?, images.id, ?, questions.id, ? FROM images, questions "
                "WHERE images.key = ? AND questions.question = ?",
                (number - 1, row.image_id, row.question_id, key, row.question),
            )
        else:
            query = "INSERT OR IGNORE INTO names SELECT ?, id, ? FROM images WHERE key = ?"
            names += database.execute(query, (names, row.image_id, key)).rowcount
    if not number:
        raise ValueError("there is no image to answer questions about")


def _stored(row: SourceRow) -> tuple[str | None, bytes | None, str | None]:
    """Path, content and fault of the image of a row."""
    if row.image is None:
        return None, None, "no image"
    if isinstance(row.image, str):
        return row.image, None, None
    return row.image.get("path"), row.image.get("bytes"), row.image.get("fault")
