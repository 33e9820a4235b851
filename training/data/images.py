"""Images of a data set: found in a folder by name, checked once, and read from a row."""

import io
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_qca.image_qca import open_encoded, open_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})

# What a row stores: a path, or the encoded bytes with the name they had. `fault` says why the bytes are missing.
StoredImage = str | Mapping[str, Any]


class ImageFolder:
    """A folder in which images are named by path relative to it, or by file name without its suffix.

    Args:
        folder: the folder.
        beside: a second folder that paths may be relative to, such as that of the table.
    """

    def __init__(self, folder: Path, beside: Path | None = None) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of images")
        self.folder = folder.resolve()
        self.beside = None if beside is None else beside.resolve()
        self._found: dict[str, str] = {}  # many rows ask about one image

    def find(self, name: str) -> str:
        """The path of the image called `name`; if there is none, the path at which it was expected.

        A name may repeat the folder (`images/a.png` in the folder `images`) and may have backslashes.

        Raises:
            ValueError: `name` fits several files.
        """
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> str:
        path = self.folder / name
        if path.suffix.lower() in SUFFIXES or "/" in name or "\\" in name:
            return str(self._existing(name) or path)
        names = self._names_by_stem.get(name, [])
        if len(names) > 1:
            raise ValueError(f"{path}: fits {' and '.join(sorted(names))}; give the suffix")
        return str(self.folder / names[0]) if names else str(path)

    def _existing(self, name: str) -> Path | None:
        plain = name.replace("\\", "/")
        within = Path(plain)
        candidates = [self.folder / name, self.folder / within]
        if within.parts[0] == self.folder.name:
            candidates.append(self.folder.parent / within)
        if self.beside is not None:
            candidates.append(self.beside / within)
        return next((path for path in candidates if path.is_file()), None)

    @cached_property
    def _names_by_stem(self) -> dict[str, list[str]]:
        """File names by name without suffix; a file of another kind of image is found by its whole name."""
        stems: dict[str, list[str]] = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                stems.setdefault(stem if suffix.lower() in SUFFIXES else entry.name, []).append(entry.name)
        return stems


def image_files(folder: Path) -> Iterator[Path]:
    """The image files directly in `folder`, in no order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield Path(entry.path)


class ImageCheck:
    """Says why an image cannot be read. It reads each image once, however many rows show it."""

    def __init__(self) -> None:
        self._reasons: dict[str, str | None] = {}

    def reason(self, image: StoredImage | None) -> str | None:
        """None for an image that can be read to its end, otherwise the reason."""
        if image is None:
            return "no image"
        key = image_key(image)
        if key not in self._reasons:
            self._reasons[key] = _fault(image)
        return self._reasons[key]


def image_key(image: StoredImage | Image.Image) -> str:
    """A text that tells one image from another: its path, or a digest of its bytes or of its pixels."""
    if isinstance(image, str):
        return image
    if isinstance(image, Image.Image):
        return blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    return blake2b(image["bytes"], digest_size=16).hexdigest() if image.get("bytes") else str(image.get("path"))


def blank_image() -> dict[str, Any]:
    """A gray picture, as a row stores it."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, "PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def read_image(row: Mapping[str, Any]) -> Image.Image:
    """The picture of a row, upright and in RGB. Its image is stored as `{"path", "bytes"}`, or decoded.

    Raises:
        ValueError: the image cannot be read. The message names the file and the question.
    """
    stored = row["image"]
    path, content = (None, stored) if isinstance(stored, Image.Image) else (stored["path"], stored["bytes"])
    try:
        return open_image(Path(path) if content is None else content)
    except ValueError as error:
        raise ValueError(
            f"Image {path or row['image_id']} of question {row['question_id']} cannot be read: {error.__cause__}"
        ) from error


def _fault(image: StoredImage) -> str | None:
    if not isinstance(image, str) and image.get("fault"):
        return image["fault"]
    encoded = (None if isinstance(image, str) else image.get("bytes")) or image_key(image)
    try:
        with open_encoded(encoded) as opened:
            if opened.mode not in _EIGHT_BIT_MODES:  # whether its range of values is known
                open_image(encoded if isinstance(encoded, bytes) else Path(encoded))
            # JPEG decodes its whole stream at an eighth of the size: as strict, several times faster.
            opened.draft("L", (1, 1))
            opened.load()
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # of a damaged file, decoders raise almost anything
        return str(error) or type(error).__name__
    return None
