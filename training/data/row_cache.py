"""Rows written to disk as Arrow, under a fingerprint of the files they come from."""

import json
import logging
import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import datasets

from ..files.atomic_write import atomic_write
from .images import ImageCheck, image_key
from .readers.hub import HubTable
from .readers.memory import InMemory
from .schema import FEATURES, Reader, Row

logger = logging.getLogger(__name__)
LONGEST_NAME = 1000  # characters of an image's name or fault in a message

_SCHEMA_VERSION = 3  # raise it when a reader's rows change, so that cached rows are written again


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
        return datasets.Dataset.from_list(rows, FEATURES, split=_split(split))
    fingerprint = _fingerprint(reader, on_bad_image)
    report = cache / f"skipped-{fingerprint}.json"
    arguments = {"shards": reader.shards(), "reader": reader, "on_bad_image": on_bad_image, "report": report}
    cache.mkdir(parents=True, exist_ok=True)
    try:
        rows = datasets.Dataset.from_generator(
            generate_rows,
            FEATURES,
            str(cache),
            gen_kwargs=arguments,
            fingerprint=fingerprint,
            split=_split(split),
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        if type(cause) is ValueError:  # from a reader, with the place; errors of other libraries lack it
            raise cause from None
        raise ValueError(f"{_name(reader)}: {type(cause).__name__}: {cause}") from cause
    _tell_of(json.loads(report.read_text()), skipped)
    return rows


def streamed_rows(reader: Reader, on_bad_image: str) -> datasets.IterableDataset:
    """The rows of `reader`, read as they are iterated over."""
    arguments = {"shards": reader.shards(), "reader": reader, "on_bad_image": on_bad_image, "report": None}
    return datasets.IterableDataset.from_generator(generate_rows, features=FEATURES, gen_kwargs=arguments)


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
            stat = path.stat()
            digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
