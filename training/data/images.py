"""Images of a data set: found in a folder by name, and read once to see that they can be."""

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from modeling_qca.image_qca import open_encoded

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# What a row stores: a path, or the encoded bytes with the name they had.
StoredImage = str | Mapping[str, Any]


class ImageFolder:
    """A folder in which images are named by path relative to it, or by file name without its suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of images")
        self.folder = folder.resolve()

    def find(self, name: str) -> str:
        """The path of the image called `name`; where there is none, the path at which it was expected.

        Raises:
            ValueError: `name` fits several files.
        """
        path = self.folder / name
        if path.suffix.lower() in SUFFIXES:
            return str(path)
        names = self._names_by_stem.get(name, [])
        if len(names) > 1:
            raise ValueError(f"{path}: fits {' and '.join(sorted(names))}; give the suffix")
        return str(self.folder / names[0]) if names else str(path)

    @cached_property
    def _names_by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for path in image_files(self.folder):
            stems.setdefault(path.stem, []).append(path.name)
        return stems


def image_files(folder: Path) -> Iterator[Path]:
    """The image files directly in `folder`, in no order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield Path(entry.path)


class ImageCheck:
    """Says why an image cannot be read, reading each image once however many rows show it."""

    def __init__(self) -> None:
        self._reasons: dict[str, str | None] = {}

    def reason(self, image: StoredImage) -> str | None:
        """None for an image that can be read to its end, else what is wrong with it."""
        key = image_key(image)
        if key not in self._reasons:
            self._reasons[key] = _fault(image)
        return self._reasons[key]


def image_key(image: StoredImage) -> str:
    """What tells one image from another: its path, or a digest of its bytes."""
    if isinstance(image, str):
        return image
    return blake2b(image["bytes"], digest_size=16).hexdigest() if image.get("bytes") else str(image.get("path"))


def _fault(image: StoredImage) -> str | None:
    encoded = None if isinstance(image, str) else image.get("bytes")
    try:
        with open_encoded(encoded or image_key(image)) as opened:
            # JPEG decodes its whole stream at an eighth of the size: as strict, several times faster.
            opened.draft("L", (1, 1))
            opened.load()
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # of a damaged file, decoders raise almost anything
        return str(error) or type(error).__name__
    return None
