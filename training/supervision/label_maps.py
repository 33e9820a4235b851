"""Class label maps of a segmentation: PNGs of class numbers, or COCO-panoptic PNGs of segment numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import image_files

UNLABELED = 0
_UNNAMED_IS_FINE = frozenset({0, 255})  # the numbers that data sets use for "no class" and "ignore"


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label PNGs and the names of their classes.

    Args:
        folder: one PNG per image, of the image's file name without suffix.
        names: class number -> name. Pixels of 0, of 255 and of a class with an empty name are unlabeled.
        segments: PNG name without suffix -> segment number -> class number, for COCO-panoptic maps.
    """

    folder: Path
    names: Mapping[int, str]
    segments: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def stems(self) -> list[str]:
        """The names of the maps without suffix, sorted.

        Raises:
            ValueError: the folder is missing or holds no PNG.
        """
        found = sorted(path.stem for path in image_files(self.folder) if path.suffix == ".png")
        if not found:
            raise ValueError(f"{self.folder}: no label maps (*.png)")
        return found

    def read(self, stem: str) -> NDArray[Any]:
        """[height, width] of class numbers; 0 is unlabeled.

        Raises:
            ValueError: the file cannot be read, its pixels are colors without segments, or a class has no name.
        """
        path = self.folder / f"{stem}.png"
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: label map cannot be read: {error}") from error
        if pixels.ndim != 2 and not self.segments:
            raise ValueError(f"{path}: its pixels are colors, not class numbers; pass the panoptic JSON as `classes`")
        numbers = _segment_numbers(pixels, path) if self.segments else pixels
        if numbers.dtype == np.uint8:  # a table is several times faster than sorting
            table = np.zeros(256, dtype=np.uint8 if max(self.names) < 256 else np.int64)
            for number in np.flatnonzero(np.bincount(numbers.ravel(), minlength=256)):
                table[number] = self._class_of(int(number), stem, path)
            return table[numbers]
        found, inverse = np.unique(numbers, return_inverse=True)
        classes = np.array([self._class_of(int(number), stem, path) for number in found], dtype=np.int64)
        return classes[inverse].reshape(numbers.shape)

    def _class_of(self, number: int, stem: str, path: Path) -> int:
        if self.segments and number != UNLABELED:
            if number not in self.segments.get(stem, {}):
                raise ValueError(f"{path}: segment {number} is not in the panoptic JSON")
            number = self.segments[stem][number]
        if number not in self.names and number not in _UNNAMED_IS_FINE:
            raise ValueError(f"{path}: class {number} has no name")
        return number if self.names.get(number) else UNLABELED


def read_label_maps(folder: Path, classes: Path) -> LabelMaps:
    """The label maps in `folder`, with the class names in the file `classes`.

    `classes` is a text file whose line n names class n (an empty line leaves the class out), a JSON object
    `{"1": "bed", ...}`, or the JSON of a COCO-panoptic data set.

    Raises:
        ValueError: a file is missing or malformed, or two classes share a name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of label maps")
    if not classes.is_file():
        raise ValueError(f"{classes}: no such file of class names")
    segments: dict[str, dict[int, int]] = {}
    if classes.suffix == ".json":
        try:
            content = json.loads(classes.read_text(encoding="utf-8"))
            if "annotations" in content:
                names = {category["id"]: category["name"] for category in content["categories"]}
                segments = {
                    Path(entry["file_name"]).stem: {part["id"]: part["category_id"] for part in entry["segments_info"]}
                    for entry in content["annotations"]
                }
            else:
                names = {int(number): str(name) for number, name in content.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{classes}: neither {{number: name}} nor COCO-panoptic JSON: {error!r}") from error
    else:
        lines = classes.read_text(encoding="utf-8").splitlines()
        names = {number: line.strip() for number, line in enumerate(lines, start=1)}
    named = [name for name in names.values() if name]
    if not named or len(set(named)) < len(named):
        raise ValueError(f"{classes}: class names must be present and differ")
    return LabelMaps(folder, names, segments)


def _segment_numbers(pixels: NDArray[np.uint8], path: Path) -> NDArray[np.int64]:
    """Panoptic colors [height, width, 3 or 4] -> segment numbers R + 256 G + 256^2 B."""
    if pixels.ndim != 3:
        raise ValueError(f"{path}: a panoptic map has colors, but this PNG has one channel")
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    return red + 256 * green + 65536 * blue
