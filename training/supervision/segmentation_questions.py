"""Balanced spatial questions with one relevance map per hop, from images and their class label maps.

There are two passes over the label maps, with one map of each process in memory at a time. The first pass collects the
questions that a map answers clearly. The second pass draws the relevance maps of the questions that balancing keeps.
Answers are balanced for each wording, so that the question alone hardly predicts its answer; see
`question_only_accuracy`.
"""

import csv
import json
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_qca.image_qca import ORIENTATION, open_encoded

from ..data.images import ImageFolder
from ..data.relevance_maps import Grid, write_maps
from ..data.splits import group_key, parse_group_by
from ..files.processes import map_in_order
from .class_counts import ClassCounts
from .image_questions import Question, RegionTarget, image_questions
from .image_table import ImageTable
from .label_maps import LabelMaps, read_label_maps

FIXED_SHARE = 0.1  # of the rarer answer; below it, the two classes alone predict the answer
BALANCE_KEEPS = 0.6  # share of the questions that the least strict balancing keeps
_PAIR_KINDS = frozenset({"side", "height", "bigger"})


def make_questions(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    classes: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    grid: Grid = (16, 16),
    questions_per_kind: int = 16,
    like: str | os.PathLike[str] | None = None,
    image_table: str | os.PathLike[str] | None = None,
    group_by: str = "image_id",
    seed: int = 0,
) -> dict[str, Any]:
    """Write balanced questions about the labeled images to a new folder that `load_rows` reads.

    The folder holds `train.csv` (image_id, kind, question, answer, and the columns of `image_table`),
    `train_relevance.npz` ([n, 2, rows, columns]) and `summary.json`. It is renamed into place when complete. Load it
    with `load_rows(output, images=images)`.

    Args:
        images: folder of the images.
        labels: folder of label PNGs of the same names, aligned with the images at any scale.
        classes: their class names (see `label_maps.read_label_maps`).
        output: the folder to make.
        grid: rows and columns of the relevance maps.
        questions_per_kind: at most this many questions of a kind and answer about an image, before balancing.
        like: a CSV file; keep only questions whose wording is in its column `question`. By default all are kept.
        image_table: a table with a row for each image (see `image_table.ImageTable`); the questions about an image get
            its columns.
        group_by: groups of images that stay together when the question-only accuracy is measured: `image_id`,
            `image_id // 12`, or a column of `image_table`.
        seed: of the choice of questions. The same seed and files give the same folder.

    Returns:
        The content of `summary.json`: counts, and for each kind the question-only accuracy and chance.

    Raises:
        ValueError: `output` exists, an image or label map is missing, unreadable or not aligned, `like` has no
            questions, `image_table` lacks an image, `group_by` is no grouping of images, or nothing is left.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output}: already exists; remove it or write to another folder")
    wordings = None if like is None else _wordings(Path(like))
    maps = read_label_maps(Path(labels), Path(classes))
    stems = maps.stems()
    further = _further_columns(stems, image_table)
    groups = _groups(further, group_by)
    find = _QuestionFinder(maps, ImageFolder(Path(images)), wordings)
    generator = random.Random(seed)
    candidates: list[Question] = []
    for found in map_in_order(find, stems, "Finding questions"):
        candidates += _sample(found, questions_per_kind, generator)
    questions = balance(candidates, generator)
    if not questions:
        raise ValueError(f"{labels}: none of {len(candidates)} questions is left once answers are balanced")
    summary = {
        "images": len({question.image_id for question in questions}),
        "questions": len(questions),
        "seed": seed,
        "kinds": question_only_accuracy(questions, groups, seed),
    }
    _write(output, questions, further, _relevance(questions, maps, grid), grid, summary)
    return summary


def _further_columns(stems: Sequence[str], table: str | os.PathLike[str] | None) -> dict[str, dict[str, str]]:
    """The columns that the questions about each image get from `table`, in one order."""
    if table is None:
        return {stem: {} for stem in stems}
    described = ImageTable(Path(table))
    if taken := set(described.columns) & {*Question._fields, "question_id", "question_type", "answers", "relevance"}:
        raise ValueError(f"{table}: a column of images cannot be called {min(taken)!r}; rename it")
    return {stem: described.row(stem) for stem in stems}


def _groups(further: Mapping[str, Mapping[str, str]], group_by: str) -> dict[str, str]:
    """The group of each image."""
    column, divisor = parse_group_by(group_by)
    columns = ["image_id", *next(iter(further.values()))]
    if column not in columns:
        raise ValueError(
            f"group_by keeps images together: `image_id`, `image_id // 12`, or a column of the table of images, not "
            f"{group_by!r}; the columns are {', '.join(columns)}"
        )
    return {stem: group_key({"image_id": stem, **of}[column], divisor) for stem, of in further.items()}


def _wordings(path: Path) -> frozenset[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            wordings = frozenset(row["question"] for row in csv.DictReader(file))
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"{path}: not a CSV file with a column `question` ({error})") from error
    if not wordings:
        raise ValueError(f"{path}: has no questions")
    return wordings


def balance(candidates: Iterable[Question], generator: random.Random) -> list[Question]:
    """The questions to keep so that no wording predicts its answer, in the order of `candidates`.

    The k most frequent answers of a wording are cut to the count of the k-th; rarer answers stay. k is the largest for
    which these answers keep `BALANCE_KEEPS` of what the best k >= 2 would keep. Two kinds of wordings are dropped:
    those with one answer, and pairs of classes whose rarer answer has a share below `FIXED_SHARE`.
    """
    candidates = list(candidates)
    wordings: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, question in enumerate(candidates):
        wordings[question.question][question.answer].append(index)
    kept: list[int] = []
    for wording in sorted(wordings):
        answers = wordings[wording]
        counts = sorted(map(len, answers.values()), reverse=True)
        kind = candidates[next(iter(answers.values()))[0]].kind
        if len(counts) < 2 or (kind in _PAIR_KINDS and counts[-1] < FIXED_SHARE * sum(counts)):
            continue
        keeps = {count: k * count for k, count in enumerate(counts, start=1) if k > 1}
        limit = min(count for count in keeps if keeps[count] >= BALANCE_KEEPS * max(keeps.values()))
        for answer in sorted(answers):
            kept += generator.sample(answers[answer], min(limit, len(answers[answer])))
    return [candidates[index] for index in sorted(kept)]


def question_only_accuracy(
    questions: Sequence[Question], groups: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """The accuracy of predicting the answer from the question alone, for each kind.

    The prediction is the most frequent answer of the wording (of the kind, for a new wording) in one half of the
    images. It is tested on the other half, and the halves then change places.

    Args:
        questions: of several images.
        groups: the group of each image; a group stays in one half. By default each image is alone.
        seed: draws the halves.

    Returns:
        kind -> `questions`, `accuracy`, and `chance`: the accuracy of guessing among the answers of a wording.
    """
    group_of = {question.image_id: question.image_id for question in questions} if groups is None else groups
    present = sorted({group_of[question.image_id] for question in questions})
    first = frozenset(random.Random(seed).sample(present, len(present) // 2))
    halves: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        halves[group_of[question.image_id] in first].append(question)
    right: Counter[str] = Counter()
    for fitted, tried in (halves, halves[::-1]):
        predict = _majorities(fitted)
        right.update(question.kind for question in tried if predict(question) == question.answer)
    answers: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        answers[question.question].add(question.answer)
    totals = Counter(question.kind for question in questions)
    chance: dict[str, float] = defaultdict(float)
    for question in questions:
        chance[question.kind] += 1 / len(answers[question.question])
    return {
        kind: {"questions": total, "accuracy": right[kind] / total, "chance": chance[kind] / total}
        for kind, total in sorted(totals.items())
    }


def _majorities(questions: Iterable[Question]) -> Callable[[Question], str | None]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        counts[question.question][question.answer] += 1
        counts[question.kind][question.answer] += 1

    def predict(question: Question) -> str | None:
        seen = counts.get(question.question) or counts.get(question.kind)
        return min(seen, key=lambda answer: (-seen[answer], answer)) if seen else None

    return predict


def _sample(questions: Iterable[Question], limit: int, generator: random.Random) -> list[Question]:
    """At most `limit` questions of each kind and answer."""
    groups: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.kind, question.answer].append(question)
    return [question for group in groups.values() for question in generator.sample(group, min(limit, len(group)))]


def _read_aligned(maps: LabelMaps, stem: str, folder: ImageFolder) -> NDArray[np.integer]:
    labels = maps.read(stem)
    path = folder.find(stem)
    try:
        with open_encoded(path) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION) in (5, 6, 7, 8):  # stored on its side
                width, height = height, width
    except Exception as error:  # of a damaged file, decoders raise almost anything
        raise ValueError(f"{path}: the image of label map {stem}.png cannot be read: {error}") from error
    ratio = (labels.shape[1] / labels.shape[0]) / (width / height)
    if not 0.97 <= ratio <= 1.03:
        raise ValueError(f"{path}: is {width}x{height}, but its label map is {labels.shape[1]}x{labels.shape[0]}")
    return labels


@dataclass(frozen=True)
class _QuestionFinder:
    """The questions that an image answers clearly; only those with one of `wordings`, if given."""

    maps: LabelMaps
    folder: ImageFolder
    wordings: frozenset[str] | None

    def __call__(self, stem: str) -> list[Question]:
        found = image_questions(stem, _read_aligned(self.maps, stem, self.folder), self.maps.names)
        return [question for question in found if self.wordings is None or question.question in self.wordings]


@dataclass(frozen=True)
class _MapPainter:
    """The relevance maps [questions, 2, rows, columns] of the questions about one image."""

    maps: LabelMaps
    grid: Grid

    def __call__(self, targets: tuple[str, list[tuple[RegionTarget, RegionTarget]]]) -> NDArray[np.float16]:
        stem, hops = targets
        counts = ClassCounts(self.maps.read(stem), max(self.maps.names) + 1, self.grid)
        return np.array([[counts.cell_shares(*target) for target in pair] for pair in hops], dtype=np.float16)


def _relevance(questions: Sequence[Question], maps: LabelMaps, grid: Grid) -> Iterator[NDArray[np.float16]]:
    """[2, rows, columns] of each question. The questions of an image follow one another, so each map is read once."""
    by_image = groupby(questions, key=lambda question: question.image_id)
    targets = [(stem, [question.targets for question in asked]) for stem, asked in by_image]
    for drawn in map_in_order(_MapPainter(maps, grid), targets, "Drawing relevance maps"):
        yield from drawn


def _write(
    output: Path,
    questions: Sequence[Question],
    further: Mapping[str, Mapping[str, str]],
    relevance: Iterator[NDArray[np.float16]],
    grid: Grid,
    summary: Mapping[str, Any],
) -> None:
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with open(part / "train.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([*Question._fields[:4], *next(iter(further.values()))])
            table.writerows([*question[:4], *further[question.image_id].values()] for question in questions)
        write_maps(part / "train_relevance.npz", relevance, len(questions), (2, *grid))
        (part / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        os.replace(part, output)
    except BaseException:
        shutil.rmtree(part)
        raise
