"""Digests of image files. They tell whether two splits, or a training and an evaluation, show the same images."""

from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets

from .images import image_key


def image_digest(stored: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the encoded content of an image that a row stores as `{"path", "bytes"}`."""
    if stored["bytes"] is not None:
        return blake2b(stored["bytes"], digest_size=8).hexdigest()
    state = Path(stored["path"]).stat()
    return _file_digest(stored["path"], state.st_size, state.st_mtime_ns)


def row_digests(rows: datasets.Dataset) -> list[str]:
    """The digest of the image of each row. Each image is read once, however many rows show it."""
    digests: dict[str, str] = {}
    found = []
    for row in rows.select_columns("image").cast_column("image", datasets.Image(decode=False)):
        key = image_key(row["image"])
        if key not in digests:
            digests[key] = image_digest(row["image"])
        found.append(digests[key])
    return found


def image_digests(rows: datasets.Dataset) -> set[str]:
    """The digests of the images of `rows`."""
    return set(row_digests(rows))


@cache  # training inspects its rows and then remembers their digests
def _file_digest(path: str, size: int, modified: int) -> str:
    return blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
