"""VQA-HAT (Das et al., EMNLP 2016): human attention maps, a folder of PNGs named by the question's id, over VQA."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images import image_files
from ..relevance_maps import Grid, cell_shares
from .vqa_v2 import VQAv2


@dataclass(frozen=True)
class VQAHat:
    """The questions of VQA v1 (or v2) that have a human attention map.

    Args:
        data, split, images: as for `VQAv2`, which reads the questions and annotations.
        maps: folder of `<question_id>.png` or, with several people per question, `<question_id>_<n>.png`, which are
            averaged. Brightness is attention.
        relevance_grid: rows and columns the maps are averaged to.
    """

    data: Path
    split: str
    maps: Path
    images: Path | None = None
    relevance_grid: Grid = (16, 16)

    def shards(self) -> list[str]:
        """The file of questions."""
        return self._questions().shards()

    def sources(self) -> list[Path]:
        """The JSON files, the folder of images and the folder of maps."""
        return [*self._questions().sources(), self.maps]

    def rows(self, shard: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, row) of each question that has a map."""
        files = self._files_by_question()
        for place, row in self._questions().rows(shard):
            if row["question_id"] in files:
                maps = np.stack([_read_map(path, self.relevance_grid) for path in files[row["question_id"]]])
                yield place, {**row, "relevance": maps.mean(axis=0, keepdims=True)}

    def _questions(self) -> VQAv2:
        return VQAv2(self.data, self.split, self.images)

    def _files_by_question(self) -> Mapping[str, list[Path]]:
        if not self.maps.is_dir():
            raise ValueError(f"{self.maps}: no such folder of attention maps")
        files: dict[str, list[Path]] = {}
        for path in sorted(image_files(self.maps)):
            named = re.fullmatch(r"(\d+)(_\d+)?", path.stem)
            if named is None:
                raise ValueError(f"{path}: the map of a question is called <question_id>.png or <question_id>_<n>.png")
            files.setdefault(named[1], []).append(path)
        return files


def _read_map(path: Path, grid: Grid) -> NDArray[np.float32]:
    try:
        with Image.open(path) as image:
            return cell_shares(np.asarray(image.convert("L"), dtype=np.float32) / 255, grid)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: attention map cannot be read: {error}") from error
