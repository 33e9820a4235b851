"""GQA (Hudson and Manning, CVPR 2019) in its official form, with the boxes of its scene graphs as relevance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson
import numpy as np
from numpy.typing import NDArray

from ..answers import count_answers
from ..images import ImageFolder
from ..relevance_maps import Grid, cell_shares

Box = tuple[int, int, int, int]
_OFFICIAL_SPLITS = {"validation": "val"}


@dataclass(frozen=True)
class GQA:
    """A folder with `<split>_<subset>_questions.json` and `<split>_sceneGraphs.json`.

    A row's relevance has two maps: the objects its question refers to, then the objects its answer refers to (the
    share of each cell that their boxes cover). If only one of them refers to objects, its map is used for
    both; if neither does, the row has no map.

    Args:
        data: the folder.
        split: `train`, `validation` (`val` in the official names), `testdev`, ...
        images: folder of `<image id>.jpg`; default `<data>/images`.
        subset: `balanced` or `all`; the parts of `train_all_questions/` are read as shards.
        scene_graphs: False for splits that have none; then no row has a map.
        relevance_grid: rows and columns of the maps.
    """

    data: Path
    split: str
    images: Path | None = None
    subset: str = "balanced"
    scene_graphs: bool = True
    relevance_grid: Grid = (16, 16)

    def shards(self) -> list[str]:
        """The files of questions."""
        name = f"{self._official_split}_{self.subset}_questions"
        files = sorted((self.data / name).glob("*.json")) or [self.data / f"{name}.json"]
        if not files[0].exists():
            raise ValueError(f"{files[0]}: no such file of questions")
        return [str(path) for path in files]

    def sources(self) -> list[Path]:
        """The files of questions, the scene graphs and the folder of images."""
        files = [Path(shard) for shard in self.shards()] + [self._image_folder()]
        return [*files, self._graph_file()] if self.scene_graphs else files

    def rows(self, shard: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, row) of one file's questions."""
        graphs = _read_boxes(self._graph_file()) if self.scene_graphs else {}
        folder = ImageFolder(self._image_folder())
        for index, (question_id, question) in enumerate(_read_entries(Path(shard))):
            place = f"{shard} question {question_id} (row {index})"
            yield (
                place,
                {
                    "image": folder.find(f"{question['imageId']}.jpg"),
                    "image_id": question["imageId"],
                    "question": question["question"],
                    "question_id": question_id,
                    "question_type": question.get("types", {}).get("structural", ""),
                    "answers": count_answers([question["answer"]] if "answer" in question else []),
                    "relevance": self._relevance(question, graphs, place) if self.scene_graphs else None,
                },
            )

    def _relevance(
        self, question: Mapping[str, Any], graphs: Mapping[str, "SceneBoxes"], place: str
    ) -> NDArray[np.float32] | None:
        if question["imageId"] not in graphs:
            raise ValueError(f"{place}: {self._graph_file()} has no scene graph of image {question['imageId']}")
        scene = graphs[question["imageId"]]
        referred = [_objects(question.get("annotations", {}).get(part, {})) for part in ("question", "answer")]
        if unknown := set().union(*referred) - scene.boxes.keys():
            raise ValueError(f"{place}: refers to object {min(unknown)}, which its scene graph does not have")
        maps = [scene.rasterize(names, self.relevance_grid) for names in referred]
        drawn = [relevance for relevance in maps if relevance.any()]
        return np.stack([drawn[0], drawn[-1]]) if drawn else None

    @property
    def _official_split(self) -> str:
        return _OFFICIAL_SPLITS.get(self.split, self.split)

    def _graph_file(self) -> Path:
        path = self.data / f"{self._official_split}_sceneGraphs.json"
        if not path.exists():
            raise ValueError(f"{path}: no such file; pass scene_graphs: false for a split without scene graphs")
        return path

    def _image_folder(self) -> Path:
        return self.images or self.data / "images"


@dataclass(frozen=True)
class SceneBoxes:
    """Size of an image and the boxes (left, top, width, height; pixels) of its objects."""

    width: int
    height: int
    boxes: Mapping[str, Box]

    def rasterize(self, names: set[str], grid: Grid) -> NDArray[np.float32]:
        """[rows, columns]: the share of each cell that the union of the named boxes covers."""
        mask = np.zeros((self.height, self.width), dtype=bool)
        for left, top, width, height in map(self.boxes.__getitem__, names):
            mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
        return cell_shares(mask, grid)


def _objects(annotation: Mapping[str, str]) -> set[str]:
    """Object ids of an annotation, which maps spans of words to an id or to several joined by commas."""
    return {name for names in annotation.values() for name in names.split(",")}


def _read_boxes(path: Path) -> dict[str, SceneBoxes]:
    return {
        image_id: SceneBoxes(
            graph["width"],
            graph["height"],
            {name: (entry["x"], entry["y"], entry["w"], entry["h"]) for name, entry in graph["objects"].items()},
        )
        for image_id, graph in _read_entries(path)
    }


def _read_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a JSON file's outer object, one in memory at a time."""
    with open(path, "rb") as file:
        try:
            yield from ijson.kvitems(file, "", use_float=True)
        except ijson.JSONError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
