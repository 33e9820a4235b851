"""Digests of image files. They tell whether an evaluation shows images that a run was trained on."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets

from .images import image_key


def image_digest(stored: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the encoded content of an image that a row stores as `{"path", "bytes"}`."""
    content = Path(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"]
    return blake2b(content, digest_size=8).hexdigest()


def image_digests(rows: datasets.Dataset) -> set[str]:
    """The digests of the images of `rows`. Each image is read once, however many rows show it."""
    digests: dict[str, str] = {}
    for row in rows.select_columns("image").cast_column("image", datasets.Image(decode=False)):
        key = image_key(row["image"])
        if key not in digests:
            digests[key] = image_digest(row["image"])
    return set(digests.values())
