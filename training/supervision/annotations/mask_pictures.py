"""Masks as pictures: one for each question, or one of class numbers for each picture."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.images import image_files
from ..label_maps import read_label_maps
from ..regions import Mask
from .export import Annotation, Export, fixed


def read_masks(path: Path, classes: Path | None) -> Export:
    """Masks in a folder of PNGs that cover their whole pictures at any scale.

    Without `classes`, the mask of a question is called `<question_id>.png`, or `<question_id>_hop<n>.png` for each
    hop. It has two values, and 0 is outside. With `classes`, `<image>.png` holds class numbers, and each class is an
    object (see `label_maps.read_label_maps`).

    Raises:
        ValueError: the folder has no masks, or one is not as described. The message names it.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of masks")
    return _question_masks(path) if classes is None else _label_maps(path, classes)


def _question_masks(folder: Path) -> Export:
    export = Export()
    for file in sorted(image_files(folder)):
        if file.suffix.lower() != ".png":
            raise ValueError(f"{file}: a mask is a PNG; other formats change its values")
        named = re.fullmatch(r"(.+?)(?:_hop([1-9]\d*))?", file.stem)
        assert named is not None  # of any name
        hop = int(named[2]) if named[2] else 1
        annotation = Annotation(str(file), None, "", fixed(_read_mask(file)), question_id=named[1], hop=hop)
        export.annotations.append(annotation)
    if not export.annotations:
        raise ValueError(f"{folder}: no masks (*.png)")
    return export


def _read_mask(file: Path) -> Mask:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image if image.mode in ("1", "L", "P", "I;16", "I") else image.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file}: the mask cannot be read: {error}") from error
    values = np.unique(pixels)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        raise ValueError(
            f"{file}: has {len(values)} values from {values[0]} to {values[-1]}; the mask of a question has 0 and one "
            "other. For pictures of class numbers pass --classes"
        )
    if not pixels.any():
        raise ValueError(f"{file}: the mask chooses no pixel; remove it if its question has no target region")
    return Mask.from_array(pixels > 0)


def _label_maps(folder: Path, classes: Path) -> Export:
    maps = read_label_maps(folder, classes)
    export = Export()
    for stem in maps.stems():
        labels = maps.read(stem)
        for number in np.unique(labels[labels > 0]):
            mask = Mask.from_array(labels == number)
            place = f"{folder / stem}.png class {number}"
            size = (mask.width, mask.height)
            export.annotations.append(Annotation(place, stem, maps.names[int(number)], fixed(mask), size))
    return export
