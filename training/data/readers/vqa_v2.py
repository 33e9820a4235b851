"""VQA v1 and v2 in their official form: questions and annotations as JSON, images as the COCO folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

import ijson

from ..answers import count_answers
from ..images import ImageFolder

_SUBTYPES = {"train": "train2014", "validation": "val2014"}


@dataclass(frozen=True)
class VQAv2:
    """A folder with `v2_OpenEnded_mscoco_<subtype>_questions.json` and `v2_mscoco_<subtype>_annotations.json`.

    Args:
        data: the folder.
        split: `train`, `validation`, or the data subtype itself. `test2015` and `test-dev2015` have no annotations:
            their rows have no answers.
        images: folder of `COCO_<subtype>_<12 digits>.jpg`; default `<data>/<subtype>`.
    """

    data: Path
    split: str
    images: Path | None = None

    def shards(self) -> list[str]:
        """The file of questions."""
        return [str(self._file(f"*OpenEnded_mscoco_{self._subtype}_questions.json"))]

    def sources(self) -> list[Path]:
        """The JSON files and the folder of images."""
        files = [Path(self.shards()[0]), self._image_folder()]
        return files if self._unlabeled() else [*files, self._annotation_file()]

    def rows(self, shard: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, row) of the questions in the order of their file."""
        annotations = {} if self._unlabeled() else _annotations(self._annotation_file())
        folder = ImageFolder(self._image_folder())
        for index, question in enumerate(read_items(Path(shard), "questions.item")):
            place = f"{shard} question {question['question_id']}"
            question_type, answers = annotations.get(question["question_id"], ("", ()))
            if not answers and not self._unlabeled():
                raise ValueError(f"{place}: {self._annotation_file()} has no answers to it")
            name = f"COCO_{self._image_subtype}_{question['image_id']:012d}.jpg"
            yield (
                f"{place} (row {index})",
                {
                    "image": folder.find(name),
                    "image_id": str(question["image_id"]),
                    "question": question["question"],
                    "question_id": str(question["question_id"]),
                    "question_type": question_type,
                    "answers": count_answers(answers),
                    "relevance": None,
                },
            )

    @property
    def _subtype(self) -> str:
        return _SUBTYPES.get(self.split, self.split)

    @property
    def _image_subtype(self) -> str:
        return self._subtype.replace("test-dev", "test")

    def _unlabeled(self) -> bool:
        return self._subtype.startswith("test")

    def _annotation_file(self) -> Path:
        return self._file(f"*mscoco_{self._subtype}_annotations.json")

    def _image_folder(self) -> Path:
        within = (self.images or self.data) / self._image_subtype
        return within if within.is_dir() else self.images or within

    def _file(self, pattern: str) -> Path:
        found = sorted(self.data.glob(pattern))
        if len(found) != 1:
            raise ValueError(f"{self.data}: {len(found)} files fit {pattern}; there must be one")
        return found[0]


def read_items(path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """The items of one list of a JSON file, one in memory at a time.

    Raises:
        ValueError: the file is not JSON, naming it.
    """
    with open(path, "rb") as file:
        try:
            yield from ijson.items(file, prefix, use_float=True)
        except ijson.JSONError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error


def _annotations(path: Path) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Question type and answers by question id; each text is held once, some 250 bytes a question."""
    return {
        annotation["question_id"]: (
            intern(annotation["question_type"]),
            tuple(intern(answer["answer"]) for answer in annotation["answers"]),
        )
        for annotation in read_items(path, "annotations.item")
    }
