"""The images to answer questions about: one file, a folder, a glob, or data with a row for each image or question."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..data.formats import checked_options, make_reader
from ..data.images import SUFFIXES, StoredImage
from ..data.readers.cells import cell_text
from ..data.readers.columns import find_columns
from ..data.readers.table_files import SUFFIXES as TABLE_SUFFIXES
from ..data.readers.table_files import read_lines, read_records

TAR = ".tar"


class SourceRow(NamedTuple):
    """
    Args:
        place: file and row, for messages.
        image: as it is stored; None if the row has none.
        question, question_id: empty where every question is asked about every image.
    """

    place: str
    image: StoredImage | None
    image_id: str
    question: str
    question_id: str


def source_rows(
    images: str, split: str | None, options: Mapping[str, Any], with_questions: bool
) -> Iterator[SourceRow]:
    """
    The rows of `images`, one at a time.

    Args:
        images: an image, a folder of images (also in its folders), a glob of images or of tables, or `data` of
            `load_rows`: a table, a WebDataset, a Hub data set. A folder is read as data if `split` or `options` are
            given. No column of answers is needed.
        split: of the data, `train` by default.
        options: of `load_rows`, such as `format`, `images` and `columns`.
        with_questions: whether each row must have a question of its own.

    Raises:
        ValueError: there is nothing there, or a row is malformed. The message names the place.
    """
    options, path = dict(checked_options(options)), Path(images)
    if split is None and not options and path.is_dir():
        return _image_rows(_image_files(path), path, with_questions)
    if split is None and not options and not path.exists() and glob.has_magic(images):
        found = sorted(name for name in glob.iglob(images, recursive=True) if Path(name).is_file())
        if found and all(Path(name).suffix.lower() in (*TABLE_SUFFIXES, TAR) for name in found):
            return (row for name in found for row in _data_rows(name, split, {}, with_questions))
        folders = [os.path.dirname(name) for name in found]
        return _image_rows(map(Path, found), Path(os.path.commonpath(folders or ["."])), with_questions)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _image_rows([path], path.parent, with_questions)
    return _data_rows(images, split, options, with_questions)


def read_questions(file: Path) -> list[tuple[str, str]]:
    """
    The questions to ask about every image, each with its id.

    Args:
        file: a text file with a question on each line, or a table (CSV, JSON lines, Parquet, Excel) with the column
            `question` and perhaps `question_id`.

    Returns:
        (id, question) of each. Without ids, questions are numbered from 1.

    Raises:
        ValueError: the file has no questions, asks one twice, or gives two the same id.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file of questions")
    if file.suffix.lower() in TABLE_SUFFIXES:
        rows = []
        for place, record in read_records(file, "train"):
            columns = find_columns(record, {}, str(file), ("question",))
            rows.append((place, record[columns["question"]], record.get(columns.get("question_id", ""))))
    else:
        lines = enumerate(read_lines(file), start=1)
        rows = [(f"{file} line {number}", line, None) for number, line in lines if line.strip()]
    questions: dict[str, str] = {}
    for number, (place, question, question_id) in enumerate(rows, start=1):
        text = cell_text(question, place, "question")
        name = question_id if isinstance(question_id, str) and question_id else cell_text(question_id, place, "id")
        name = name or str(number)
        if not text:
            raise ValueError(f"{place}: has no `question`")
        if name in questions or text in questions.values():
            raise ValueError(f"{place}: its {'id' if name in questions else 'question'} occurs twice; remove one")
        questions[name] = text
    if not questions:
        raise ValueError(f"{file}: has no questions; write one on each line")
    return list(questions.items())


def _data_rows(data: str, split: str | None, options: dict[str, Any], with_questions: bool) -> Iterator[SourceRow]:
    suffix = Path(data).suffix.lower()
    format = options.pop("format", "webdataset" if suffix == TAR else "table")
    required = ("image", "question") if with_questions else ("image",)
    reader = make_reader(format, data, split or "train", options, required)
    for shard in reader.shards():
        for place, row in reader.rows(shard):
            yield SourceRow(place, row["image"], row["image_id"] or place, row["question"], row["question_id"])


def _image_rows(files: Iterable[Path], folder: Path, with_questions: bool) -> Iterator[SourceRow]:
    """
    Raises:
        ValueError: the images alone have no questions.
    """
    if with_questions:
        raise ValueError(
            f"{folder}: images alone have no questions: pass a file of them with --questions. To read a folder as "
            "data, name its split with --split"
        )
    return (SourceRow(str(file), str(file.absolute()), file.relative_to(folder).as_posix(), "", "") for file in files)


def _image_files(folder: Path) -> Iterator[Path]:
    """
    The image files in `folder` and in its folders, by name. Links to folders are not followed.

    Raises:
        ValueError: a folder cannot be read.
    """
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(parent) / name


def _refuse(error: OSError) -> None:
    raise ValueError(
        f"{error.filename}: this folder cannot be read ({error.strerror}): make it readable, or move it away"
    ) from error
