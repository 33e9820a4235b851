"""What people mark and correct in a data set, in a folder that is a data set too.

The folder holds the table `train.jsonl` with its map file, the marked objects and the work of the annotators. Several
annotators may work in one folder: every change reads and writes these files while it holds a lock.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from ..data.answers import count_answers, majority_answer
from ..data.images import read_image
from ..data.relevance_maps import Grid, cell_shares
from ..files.atomic_write import atomic_write
from ..files.run_files import write_json
from .marked_objects import OBJECTS_FILE, MarkedObject, read_objects, write_objects
from .object_maps import HopObjects, draw_hop_maps, objects_by_hop
from .object_matching import LabelMatcher

TABLE, MAPS, WORK = "train.jsonl", "train_relevance.npz", "annotators.json"
GIVEN_FILE = "given_objects.jsonl"
GRID: Grid = (16, 16)
Maps = NDArray[np.float32]


class Counts(NamedTuple):
    """How far the work is: all questions, those somebody saved, those with maps, and marked objects."""

    questions: int
    saved: int
    with_maps: int
    objects: int


class AnnotationFolder:
    """
    Args:
        folder: of the annotations; made if it is missing, otherwise the work goes on.
        rows: all rows of the data set, images not decoded. Their maps are kept until objects replace them.
        hops: number of maps of a question.
        given: objects that were marked elsewhere. Each is taken over once, so one that annotators removed stays
            removed. Their image is an image id.

    Raises:
        ValueError: two rows have one question id, the folder has annotations of a question that `rows` does not have,
            or a file of the folder is damaged.
    """

    def __init__(self, folder: Path, rows: datasets.Dataset, hops: int, given: Iterable[MarkedObject] = ()):
        self.folder, self.hops, self._pictures = (
            folder,
            hops,
            rows.select_columns(["image", "image_id", "question_id"]),
        )
        self.questions: list[dict[str, Any]] = rows.remove_columns(["image", "relevance"]).to_list()
        self._index = {row["question_id"]: index for index, row in enumerate(self.questions)}
        if len(self._index) < len(self.questions):
            raise ValueError("two rows have one question_id: give every question an id of its own")
        self._about: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(self.questions):
            self._about[row["image_id"]].append(index)
        self._given_maps = dict(_fitted_maps(rows["relevance"], hops))
        self._grid: Grid = next(iter(self._given_maps.values())).shape[1:] if self._given_maps else GRID
        self._size = lru_cache(maxsize=None)(lambda image_id: self.picture(image_id).size)
        self._draw = lru_cache(maxsize=None)(self._drawn)
        folder.mkdir(parents=True, exist_ok=True)
        self._images = {image_id: self._place_image(image_id) for image_id in self._about}
        self._lines = [self._line(index, row["answers"]) for index, row in enumerate(self.questions)]
        self._lock = FileLock(folder / ".lock")
        with self._changed() as work:
            self._check(work)
            self._take_over(given)
            self.counts = self._write(work)

    def picture(self, image_id: str) -> Image.Image:
        """The picture, upright and in RGB."""
        return read_image(self._pictures[self._about[image_id][0]])

    def objects(self, image_id: str) -> list[MarkedObject]:
        """The objects of a picture, by all annotators."""
        return [item for item in self._objects() if item.image == image_id]

    def labels(self, index: int) -> list[str]:
        """The labels in use that a question names, in its order."""
        mentions = LabelMatcher(item.label for item in self._objects()).mentions(self.questions[index]["question"])
        return [label for mention in mentions for label in sorted(mention.labels)]

    def naming(self, index: int, label: str) -> int:
        """The number of questions about the picture of question `index` that name `label`."""
        matcher, about = LabelMatcher([label]), self._about[self.questions[index]["image_id"]]
        return sum(bool(matcher.mentions(self.questions[other]["question"])) for other in about)

    def answer(self, index: int) -> str:
        """The most frequent answer to a question, as annotators corrected it."""
        row = self.questions[index]
        with self._lock:
            answers = self._corrected(self._work()).get(row["question_id"], row["answers"])
        return majority_answer(answers, normalize=False) or ""

    def open_next(self, annotator: str, order: Iterable[int]) -> int | None:
        """
        The question that `annotator` works on next, and that nobody else is given meanwhile; None if all are saved.

        It is the one that was left open, or the first in `order` that nobody saved. At the end come the questions that
        were skipped, the longest skipped first, and then those that others left open.
        """
        with self._changed() as work:
            if work["open"].get(annotator) in self._index:
                return self._index[work["open"][annotator]]
            skipped, elsewhere = work["skipped"].get(annotator, []), list(work["open"].values())
            fresh = (self.questions[index]["question_id"] for index in order)
            late = {*skipped, *elsewhere}
            ordered = chain(
                (name for name in fresh if name not in late),
                (name for name in skipped if name not in elsewhere),
                elsewhere,
            )
            question_id = next((name for name in ordered if name in self._index and name not in work["saved"]), None)
            if question_id is None:
                return None
            work["open"][annotator] = question_id
            return self._index[question_id]

    def open(self, index: int, annotator: str) -> None:
        """Give `annotator` this question next, such as one saved before."""
        with self._changed() as work:
            work["open"][annotator] = self.questions[index]["question_id"]

    def skip(self, index: int, annotator: str) -> None:
        """Leave a question for later."""
        with self._changed() as work:
            self._close(work, index, annotator)
            work["skipped"].setdefault(annotator, []).append(self.questions[index]["question_id"])

    def save(
        self,
        index: int,
        annotator: str,
        answer: str,
        added: Sequence[MarkedObject] = (),
        removed: Sequence[MarkedObject] = (),
    ) -> Counts:
        """
        Store the work on a question, and write table and maps anew.

        Args:
            answer: the right answer, also if it is the one of the table.
            added: objects marked in its picture. One that the question does not name serves the questions that do,
                and the last hop of this one. So does one whose hop a mark of this question alone has.
            removed: objects of its picture that are wrong, by whomever.

        Raises:
            ValueError: the answer is empty, or an object has no label.
        """
        answer, row = answer.strip(), self.questions[index]
        if not answer:
            raise ValueError("the right answer is empty")
        if not all(item.label.strip() for item in added):
            raise ValueError("a marked object has no name")
        with self._changed() as work:
            kept = [item for item in self._objects() if item not in removed]
            signed = [replace(item, annotator=annotator, image=row["image_id"]) for item in added]
            write_objects(self.folder / OBJECTS_FILE, dict.fromkeys([*kept, *signed]))
            objects = self._objects()
            marked = [item for item in objects if item.image == row["image_id"]]
            matcher = LabelMatcher(item.label for item in objects)
            hops = objects_by_hop(row["question"], row["question_id"], marked, matcher)
            unserved = {item.label for item in added} - _labels(hops)
            saved = work["saved"].setdefault(row["question_id"], {})
            also = sorted(unserved.union(saved.get(annotator, {}).get("also", ())))
            saved[annotator] = {
                "answer": answer if answer != majority_answer(row["answers"], normalize=False) else None,
                "also": also,
                "question": row["question"],
                "image_id": row["image_id"],
            }
            self._close(work, index, annotator)
            self.counts = self._write(work)
            return self.counts

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """The work of all annotators, which is written back at the end of the block."""
        with self._lock:
            work = self._work()
            before = json.dumps(work)
            yield work
            if json.dumps(work) != before:
                write_json(self.folder / WORK, work)

    def _work(self) -> dict[str, Any]:
        """
        `open`: annotator -> question id. `skipped`: annotator -> question ids. `saved`: question id -> annotator ->
        the corrected `answer`, or None for that of the table, the labels that only the last hop looks at (`also`), and
        its `question` and `image_id`.
        """
        path = self.folder / WORK
        if not path.exists():
            return {"open": {}, "skipped": {}, "saved": {}}
        try:
            work = json.loads(path.read_text(encoding="utf-8"))
            if not {"open", "skipped", "saved"} <= work.keys():
                raise ValueError("it lacks `open`, `skipped` or `saved`")
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not the work of annotators: {error}") from error
        return work

    def _objects(self) -> list[MarkedObject]:
        return list(read_objects(self.folder / OBJECTS_FILE))

    def _take_over(self, given: Iterable[MarkedObject]) -> None:
        path, objects = self.folder / GIVEN_FILE, self.folder / OBJECTS_FILE
        given = list(dict.fromkeys(given))
        if objects.exists() and not path.exists():  # an older version took them over without writing down which
            write_objects(path, given)
        taken = list(read_objects(path)) if path.exists() else []
        known = set(taken)
        new = [item for item in given if item not in known]
        if new or not objects.exists():
            before = self._objects() if objects.exists() else []
            write_objects(objects, dict.fromkeys([*before, *new]))
            write_objects(path, [*taken, *new])

    def _check(self, work: Mapping[str, Any]) -> None:
        for question_id, by_annotator in work["saved"].items():
            row = self.questions[self._index[question_id]] if question_id in self._index else {}
            for entry in by_annotator.values():
                if any(row.get(name) != entry[name] for name in ("question", "image_id")):
                    raise ValueError(
                        f"{self.folder}: has annotations of question {question_id}, {entry['question']!r} about "
                        f"{entry['image_id']}, which the data does not have: write to another folder"
                    )

    def _close(self, work: dict[str, Any], index: int, annotator: str) -> None:
        question_id = self.questions[index]["question_id"]
        work["open"].pop(annotator, None)
        work["skipped"][annotator] = [other for other in work["skipped"].get(annotator, []) if other != question_id]

    def _place_image(self, image_id: str) -> str:
        """The path of a picture relative to the folder, into which a picture without a file is written."""
        stored = self._pictures[self._about[image_id][0]]["image"]
        if stored["bytes"] is None:
            path = Path(stored["path"]).resolve()
        else:
            with Image.open(BytesIO(stored["bytes"])) as image:
                suffix = image.format.lower()
            name = blake2b(stored["bytes"], digest_size=16).hexdigest()
            path = self.folder.resolve() / "images" / f"{name}.{suffix}"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                with atomic_write(path) as unfinished:
                    unfinished.write_bytes(stored["bytes"])
        return Path(os.path.relpath(path, self.folder.resolve())).as_posix()

    def _write(self, work: Mapping[str, Any]) -> Counts:
        lines = list(self._lines)
        for question_id, answers in self._corrected(work).items():
            index = self._index[question_id]
            lines[index] = self._line(index, answers)
        objects = self._objects()
        maps = self._maps(objects, work)
        with atomic_write(self.folder / TABLE) as unfinished:
            unfinished.write_text("\n".join([*lines, ""]), encoding="utf-8")
        if maps:
            rows = sorted(maps)
            mask = np.stack([maps[row] for row in rows]).astype(np.float16)
            with atomic_write(self.folder / MAPS) as unfinished:
                np.savez_compressed(unfinished, mask=mask, row=np.array(rows))
        else:
            (self.folder / MAPS).unlink(missing_ok=True)
        return Counts(len(self.questions), len(work["saved"]), len(maps), len(objects))

    def _line(self, index: int, answers: Sequence[Mapping[str, Any]]) -> str:
        row = self.questions[index]
        return json.dumps({"image": self._images[row["image_id"]], **row, "answers": answers}, ensure_ascii=False)

    def _maps(self, objects: Sequence[MarkedObject], work: Mapping[str, Any]) -> dict[int, Maps]:
        """Row number -> [T, rows, columns] of the rows that have a map."""
        maps = dict(self._given_maps)
        matcher = LabelMatcher(item.label for item in objects)
        of_image: dict[str, list[MarkedObject]] = defaultdict(list)
        for item in objects:
            of_image[item.image].append(item)
        for image_id, marked in of_image.items():
            for index in self._about.get(image_id, ()):
                row = self.questions[index]
                hops = objects_by_hop(row["question"], row["question_id"], marked, matcher)
                by_annotator = work["saved"].get(row["question_id"], {}).values()
                also = {label for entry in by_annotator for label in entry["also"]} - _labels(hops)
                if further := tuple(item for item in marked if item.label in also and item.question_id is None):
                    unmarked = [HopObjects("", ())] * (self.hops - 1 - len(hops))
                    hops = [*hops, *unmarked, HopObjects(", ".join(sorted(also)), further)]
                if hops:
                    maps[index] = self._draw(image_id, tuple(hops))
        return maps

    def _corrected(self, work: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """Question id -> votes, of the questions whose answer an annotator changed. Other annotators confirmed it."""
        votes: dict[str, list[dict[str, Any]]] = {}
        for question_id, by_annotator in work["saved"].items():
            given = [entry["answer"] for entry in by_annotator.values()]
            if given.count(None) < len(given):
                own = majority_answer(self.questions[self._index[question_id]]["answers"], normalize=False)
                votes[question_id] = count_answers(own if answer is None else answer for answer in given)
        return votes

    def _drawn(self, image_id: str, hops: tuple[HopObjects, ...]) -> Maps:
        return draw_hop_maps(hops, self._size(image_id), self._grid, self.hops)


def _labels(hops: Iterable[HopObjects]) -> set[str]:
    return {item.label for hop in hops for item in hop.objects}


def _fitted_maps(relevance: Iterable[Any], hops: int) -> Iterator[tuple[int, Maps]]:
    """(row number, [hops, rows, columns]) of the rows that have maps, all on the grid of the first."""
    grid: Grid | None = None
    for index, given in enumerate(relevance):
        if given:
            maps = np.asarray(given, dtype=np.float32)
            grid = grid or maps.shape[1:]
            chosen = [*maps, *[maps[-1]] * hops][: max(hops, len(maps))][-hops:]
            yield index, np.stack([one if one.shape == grid else cell_shares(one, grid) for one in chosen])
