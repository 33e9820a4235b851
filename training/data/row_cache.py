"""Rows written to disk as Arrow, under a fingerprint of the files they come from, and mapped into memory.

`datasets` encodes the rows of a generator value by value. Here the numbers of relevance maps go to Arrow as whole
arrays, which is several times faster.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from filelock import FileLock
from numpy.typing import NDArray

from ..files.atomic_write import atomic_write
from ..files.progress import track
from ..files.run_files import RUN
from .images import SUFFIXES, ImageCheck, image_key
from .readers.hub import HubTable
from .readers.memory import InMemory
from .schema import FEATURES, Reader, Row

logger = logging.getLogger(__name__)
BATCH = 1000  # rows that are encoded at once
LONGEST_NAME = 1000  # characters of an image's name or fault in a message

_OUTPUT_MARKS = (RUN, "pyvenv.cfg")  # of a folder that a program writes: a run, a virtual environment
_SCHEMA_VERSION = 4  # raise it when a reader's rows change, so that cached rows are written again


def cached_rows(
    reader: Reader, split: str, on_bad_image: str, cache: Path, skipped: dict[str, str] | None = None
) -> datasets.Dataset:
    """The rows of `reader` as Arrow on disk, written once for the present state of their files.

    Rows of a list or a table in memory stay in memory.

    Args:
        skipped: gets the place and the fault of each skipped row, instead of a warning.

    Raises:
        ValueError: a row is malformed. The message names the place, or at least the data.
    """
    if isinstance(reader, InMemory) and not isinstance(reader.table, datasets.Dataset):
        rows = list(generate_rows(reader.shards(), reader, on_bad_image, None, skipped))
        if not rows:
            raise ValueError(f"{reader.name}: has no rows whose image can be read")
        return datasets.Dataset(_in_memory(rows, row_features(reader)), split=_split(split))
    fingerprint, folder = _fingerprint(reader, on_bad_image), cache / "qca_rows"
    table, report = folder / f"{fingerprint}.arrow", folder / f"{fingerprint}-skipped.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{fingerprint}.lock"):  # the processes of a run write it once
        if not table.exists():
            _write(reader, on_bad_image, table, report)
    _tell_of(json.loads(report.read_text()), skipped)
    mapped = datasets.table.MemoryMappedTable.from_file(str(table))
    return datasets.Dataset(mapped, split=_split(split), fingerprint=fingerprint)


def _write(reader: Reader, on_bad_image: str, table: Path, report: Path) -> None:
    rows = generate_rows(reader.shards(), reader, on_bad_image, report)
    try:
        with atomic_write(table) as unfinished:
            _write_batches(track(rows, "Reading rows"), row_features(reader), unfinished)
    except Exception as error:
        if type(error) is ValueError:  # from a reader, with the place; errors of other libraries lack it
            raise
        raise ValueError(f"{_name(reader)}: {type(error).__name__}: {error}") from error


def streamed_rows(reader: Reader, on_bad_image: str) -> datasets.IterableDataset:
    """The rows of `reader`, read as they are iterated over."""
    arguments = {"shards": reader.shards(), "reader": reader, "on_bad_image": on_bad_image, "report": None}
    return datasets.IterableDataset.from_generator(generate_rows, features=row_features(reader), gen_kwargs=arguments)


def row_features(reader: Reader) -> datasets.Features:
    """The row schema with the reader's further columns of text."""
    further = getattr(reader, "further_columns", ())
    return datasets.Features({**FEATURES, **{name: datasets.Value("string") for name in further}})


def generate_rows(
    shards: list[str],
    reader: Reader,
    on_bad_image: str,
    report: Path | None,
    collected: dict[str, str] | None = None,
) -> Iterator[Row]:
    """The rows whose image can be read. The others raise, or are skipped.

    Skipped rows are listed in the file `report`, in `collected`, or in a warning.
    """
    check = ImageCheck()
    skipped = []
    images: dict[str, str] = {}
    for shard in shards:
        for place, row in reader.rows(shard):
            reason = check.reason(row["image"])
            if reason is None:
                image, image_id = image_key(row["image"]), row["image_id"]
                if images.setdefault(image_id, image) != image:
                    raise ValueError(
                        f"{place}: image_id {image_id!r} is of image {image} here, but of {images[image_id]} in an "
                        "earlier row; give every image an id of its own"
                    )
                yield row
            elif on_bad_image == "raise":
                raise ValueError(f"{place}: {_fault(row, reason)}; pass on_bad_image: skip to leave such rows out")
            else:
                skipped.append({"place": place, "fault": _fault(row, reason)})
    if report is None:
        _tell_of(skipped, collected)
    elif not images:
        _tell_of(skipped, collected)
        data = _name(reader) if isinstance(reader, (HubTable, InMemory)) else ", ".join(shards)
        raise ValueError(f"{data}: has no rows" + (" whose image can be read" if skipped else ""))
    else:
        with atomic_write(report) as unfinished:
            unfinished.write_text(json.dumps(skipped))


def _fault(row: Row, reason: str) -> str:
    if row["image"] is None:
        return reason
    return f"image {image_key(row['image'])[:LONGEST_NAME]} cannot be read: {reason[:LONGEST_NAME]}"


def _tell_of(skipped: list[dict[str, str]], collected: dict[str, str] | None) -> None:
    if collected is not None:
        collected.update((entry["place"], entry["fault"]) for entry in skipped)
    elif skipped:
        lines = "\n".join(f"  {entry['place']}: {entry['fault']}" for entry in skipped)
        logger.warning("skipped %d rows, their images cannot be read:\n%s", len(skipped), lines)


def _name(reader: Reader) -> str:
    return reader.name if isinstance(reader, InMemory) else str(reader.data)


def _split(name: str) -> datasets.NamedSplit:
    return datasets.NamedSplit(re.sub(r"\W", "_", name))


def _fingerprint(reader: Reader, on_bad_image: str) -> str:
    """Digest of the options and of the names, sizes and times of the files that the rows depend on."""
    described = reader.fingerprint() if isinstance(reader, InMemory) else reader
    digest = blake2b(f"{_SCHEMA_VERSION} {described} {on_bad_image}".encode(), digest_size=16)
    if isinstance(reader, HubTable):
        digest.update(reader.fingerprint().encode())
    for source in reader.sources():
        if not source.exists():
            raise ValueError(f"{source}: no such file or folder")
        for path in sorted(source.iterdir()) if source.is_dir() else [source]:
            if _is_left_out(path):
                continue
            with suppress(OSError):  # a link to nothing or to itself
                stat = path.stat()
                digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
        for image, stat in _images_in_subfolders(source):
            digest.update(f"{image} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _images_in_subfolders(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The images below the top level of `folder`, in the order of their folders and names; none of a file."""
    known = {os.path.realpath(folder)}
    for place, subfolders, names in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(subfolders)}
        subfolders[:] = [name for name, path in real.items() if path not in known and not _is_left_out(Path(path))]
        known.update(real.values())  # a link to a folder above has no end
        if place == str(folder):
            continue
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                path = os.path.join(place, name)
                with suppress(OSError):  # a link to nothing or to itself
                    yield os.path.abspath(path), os.stat(path)


def _is_left_out(path: Path) -> bool:
    """Whether `path` is a folder that holds no images of rows: a hidden one, or the output of a program."""
    if not os.path.isdir(path):
        return False
    return path.name.startswith(".") or any(os.path.exists(path / name) for name in _OUTPUT_MARKS)


def _in_memory(rows: Iterable[Row], features: datasets.Features) -> datasets.table.Table:
    """A table of all `rows`."""
    batches = [_batch(batch, features) for batch in _batches(rows)]
    return datasets.table.InMemoryTable(pyarrow.Table.from_batches(batches, features.arrow_schema))


def _write_batches(rows: Iterable[Row], features: datasets.Features, path: Path) -> None:
    """Write `rows` to a file, with one batch in memory at a time."""
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, features.arrow_schema) as writer:
        for batch in _batches(rows):
            writer.write_batch(_batch(batch, features))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        yield batch


def _batch(rows: list[Row], features: datasets.Features) -> pyarrow.RecordBatch:
    columns = []
    for field in features.arrow_schema:
        values = [row.get(field.name) for row in rows]
        if field.name == "image":
            values = [features["image"].encode_example(value) for value in values]
        columns.append(_nested(values) if field.name == "relevance" else pyarrow.array(values, field.type))
    return pyarrow.RecordBatch.from_arrays(columns, schema=features.arrow_schema)


def _nested(relevance: list[NDArray[np.float32] | None]) -> pyarrow.Array:
    """Maps [T, rows, columns] of any shapes, or None, as lists of lists of lists."""
    maps = [np.asarray(each, dtype=np.float32) for each in relevance if each is not None]
    hops, rows, columns = (
        np.array([each.shape[axis] for each in maps], dtype=np.int64) for axis in range(3)
    )  # of each row that has maps
    numbers = np.concatenate([each.ravel() for each in maps]) if maps else np.empty(0, np.float32)
    lines = pyarrow.ListArray.from_arrays(_offsets(np.repeat(columns, hops * rows)), numbers)
    grids = pyarrow.ListArray.from_arrays(_offsets(np.repeat(rows, hops)), lines)
    missing = np.array([each is None for each in relevance])
    lengths = np.zeros(len(relevance), dtype=np.int64)
    lengths[~missing] = hops
    return pyarrow.ListArray.from_arrays(_offsets(lengths), grids, mask=pyarrow.array(missing))


def _offsets(lengths: NDArray[np.int64]) -> pyarrow.Array:
    return pyarrow.array(np.concatenate([[0], np.cumsum(lengths)]), pyarrow.int32())
