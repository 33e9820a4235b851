"""Pictures of a table: their size as stored and upright, and how exports name them."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote

from modeling_qca.image_qca import ORIENTATION, open_encoded

from ...data.images import SUFFIXES, StoredImage, image_key
from ..regions import SIDEWAYS, Size

_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts it before the name of an uploaded file
_ROBOFLOW = re.compile(r"(.+)_(jpe?g|png|webp|bmp)\.rf\.[0-9a-f]+", re.IGNORECASE)
_Fit: TypeAlias = tuple[bool, int]  # whether suffixes are the same, and the folders in common


@dataclass(frozen=True)
class Picture:
    """The size of a picture as it is shown (`size`) and in its file (`stored`), and its EXIF orientation."""

    size: Size
    stored: Size
    orientation: int = 1


def open_picture(image: StoredImage) -> Picture:
    """The sizes of a picture, from the header of its file.

    Raises:
        ValueError: it cannot be read.
    """
    encoded = (None if isinstance(image, str) else image.get("bytes")) or image_key(image)
    try:
        with open_encoded(encoded) as opened:
            stored, orientation = opened.size, int(opened.getexif().get(ORIENTATION, 1))
    except Exception as error:  # of a damaged file, decoders raise almost anything
        raise ValueError(f"image {str(image_key(image))[:300]} cannot be read: {error}") from error
    orientation = orientation if 1 <= orientation <= 8 else 1
    return Picture(stored[::-1] if orientation in SIDEWAYS else stored, stored, orientation)


class PictureNames:
    """Finds the picture of a table that an export means.

    Args:
        keys: `image_key` of each picture -> the name that the table has for it.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._parts = {key: (_parts(key), _parts(name)) for key, name in keys.items()}
        self._by_name = _grouped((name, key) for key, parts in self._parts.items() for name in _last(parts))
        self._by_stem = _grouped((_stem(name), key) for key, parts in self._parts.items() for name in _last(parts))

    def find(self, names: Collection[str], unmarked: Iterable[str] = ()) -> dict[str, str]:
        """Name -> key of its picture, for the names of an export whose picture the table has.

        A name is a path, a URL, a file name or a file name without its suffix. The prefix of an upload to Label Studio
        and the suffix of Roboflow do not matter. If names of different files fit one picture, the one with the same
        suffix and the longest common path counts.

        Args:
            names: the names of pictures with annotations.
            unmarked: further names, which may fit a picture better.

        Raises:
            ValueError: several pictures fit a name, or names of different files fit a picture equally well.
        """
        fits: dict[str, list[tuple[_Fit, str]]] = {}
        for name in dict.fromkeys((*names, *unmarked)):
            fitting, fit = self._fit(name)
            if len(fitting) > 1 and name in names:
                raise ValueError(
                    f"{name!r} of the export fits {' and '.join(sorted(fitting)[:3])}; give paths to both"
                )
            for key in fitting:
                fits.setdefault(key, []).append((fit, name))
        keys: dict[str, str] = {}
        for key, named in fits.items():
            best_fit, _ = max(named)
            best = [name for fit, name in named if fit == best_fit]
            for first, second in product(best, best):
                if first in names and not _is_same_file(first, second):
                    raise ValueError(
                        f"{first!r} and {second!r} of the export both fit the picture {key}; remove one from the "
                        "export, or write the path of the picture in the table"
                    )
            keys |= {name: key for _, name in named if any(_is_same_file(name, other) for other in best)}
        return keys

    def _fit(self, name: str) -> tuple[list[str], _Fit]:
        """The keys of the pictures that fit a name best, and how well they fit."""
        parts = _parts(name)
        for last in _variants(parts[-1]) if parts else ():
            exact = self._by_name.get(last)
            shared = {
                key: max(_common(own, (*parts[:-1], last)) for own in self._parts[key])
                for key in exact or self._by_stem.get(_stem(last)) or ()
            }
            if shared:
                best = max(shared.values())
                return [key for key in shared if shared[key] == best], (bool(exact), best)
        return [], (False, 0)


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path or URL, and of a path in a query: `/data/local-files/?d=photos/a.jpg`."""
    path, question_mark, query = unquote(name).replace("\\", "/").partition("?")
    if question_mark:
        path = query.removeprefix("d=") if query.startswith("d=") else path
    return tuple(part for part in PurePosixPath(path).parts if part not in ("/", ".", ".."))


def _last(paths: Iterable[tuple[str, ...]]) -> set[str]:
    return {parts[-1] for parts in paths if parts}


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in SUFFIXES else name


def _variants(name: str) -> Iterator[str]:
    yield name
    if upload := _UPLOAD.fullmatch(name):
        yield upload[1]
    if exported := _ROBOFLOW.fullmatch(_stem(name)):
        yield f"{exported[1]}.{exported[2]}"


def _common(own: tuple[str, ...], parts: tuple[str, ...]) -> int:
    count = 0
    for mine, other in zip(reversed(own[:-1]), reversed(parts[:-1]), strict=False):
        if mine != other:
            break
        count += 1
    return count


def _is_same_file(first: str, second: str) -> bool:
    """Whether one name can be the end of the other, with or without the suffix of the file."""
    (*folders, name), (*others, other) = _parts(first), _parts(second)
    if other not in (name, _stem(name)) and name != _stem(other):
        return False
    return all(mine == theirs for mine, theirs in zip(reversed(folders), reversed(others), strict=False))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for name, key in pairs:
        groups.setdefault(name, set()).add(key)
    return groups
