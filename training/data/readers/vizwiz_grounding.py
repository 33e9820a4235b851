"""VizWiz-VQA-Grounding (Chen, Anjum and Gurari, CVPR 2022): questions of blind people and where the answer is seen."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_qca.image_qca import ORIENTATION, open_encoded

from ..images import ImageFolder
from ..relevance_maps import Grid, cell_shares
from .cells import cell_answers

_OFFICIAL_SPLITS = {"validation": "val"}
_ASPECT_TOLERANCE = 0.03  # between the sides of a mask and those of its image


@dataclass(frozen=True)
class VizWizGrounding:
    """A folder with `<split>_grounding.json` and the masks of the answers.

    Args:
        data: the folder.
        split: `train` or `validation` (`val` in the official names). The test split has no answers.
        images: folder of the images; default `<data>/<split>`.
        maps: folder of the masks; default `<data>/binary_masks_png/<split>`.
        relevance_grid: rows and columns of the maps.
    """

    data: Path
    split: str
    images: Path | None = None
    maps: Path | None = None
    relevance_grid: Grid = (16, 16)

    def shards(self) -> list[str]:
        """The file of questions."""
        path = self.data / f"{self._official_split}_grounding.json"
        if not path.exists():
            raise ValueError(f"{path}: no such file of questions")
        return [str(path)]

    def sources(self) -> list[Path]:
        """The file of questions, the folder of images and the folder of masks."""
        return [Path(self.shards()[0]), self._image_folder(), self._mask_folder()]

    def rows(self, shard: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, row) of each question. Its one map is the share of each cell that the mask of the answer covers."""
        folder, masks = ImageFolder(self._image_folder()), self._mask_folder()
        if not masks.is_dir():
            raise ValueError(f"{masks}: no such folder of masks; name it with the option maps")
        for name, entry in _read_entries(Path(shard)).items():
            place = f"{shard} image {name}"
            if not isinstance(entry, dict) or "question" not in entry or "answers" not in entry:
                raise ValueError(f"{place}: needs `question` and `answers`; the test split has no answers")
            image = folder.find(name)
            mask = _read_mask(masks / f"{Path(name).stem}.png", Path(image))
            yield (
                place,
                {
                    "image": image,
                    "image_id": Path(name).stem,
                    "question": entry["question"],
                    "question_id": Path(name).stem,
                    "question_type": str(entry.get("answer_type") or ""),
                    "answers": cell_answers(entry["answers"], None, place),
                    "relevance": cell_shares(mask, self.relevance_grid)[None] if mask.any() else None,
                },
            )

    @property
    def _official_split(self) -> str:
        return _OFFICIAL_SPLITS.get(self.split, self.split)

    def _image_folder(self) -> Path:
        return self.images or self.data / self._official_split

    def _mask_folder(self) -> Path:
        return self.maps or self.data / "binary_masks_png" / self._official_split


def _read_entries(path: Path) -> dict[str, Any]:
    """File name of an image -> its one question; the file has a few megabytes."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: must be an object from image names to questions")
    return entries


def _read_mask(path: Path, image: Path) -> NDArray[np.bool_]:
    """[height, width] of the upright image."""
    try:
        with Image.open(path) as opened:
            mask = np.asarray(opened.convert("L")) > 0
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: mask of the answer cannot be read: {error}") from error
    try:
        with open_encoded(image) as opened:
            width, height = opened.size
            if opened.getexif().get(ORIENTATION) in (5, 6, 7, 8):  # stored on its side
                width, height = height, width
    except (OSError, ValueError):
        return mask  # the image itself is reported when it is read
    ratio = (mask.shape[1] / mask.shape[0]) / (width / height)
    if not 1 - _ASPECT_TOLERANCE <= ratio <= 1 + _ASPECT_TOLERANCE:
        raise ValueError(f"{path}: has {mask.shape[1]} x {mask.shape[0]} pixels, but its image {width} x {height}")
    return mask
