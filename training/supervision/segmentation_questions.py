"""Balanced spatial questions with one relevance map per hop, from images and their class label maps.

There are two passes over the label maps, with one map in memory at a time. The first pass collects the questions that
a map answers clearly. The second pass draws the relevance maps of the questions that balancing keeps. Answers are
balanced for each wording, so that the question alone hardly predicts its answer; see `question_only_accuracy`.
"""

import csv
import json
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from modeling_qca.image_qca import ORIENTATION, open_encoded

from ..data.images import ImageFolder
from ..data.relevance_maps import Grid, cell_shares, write_maps
from ..data.splits import group_key, parse_group_by
from ..files.progress import track
from .label_maps import UNLABELED, LabelMaps, read_label_maps

# Thresholds for a clear answer, as shares of the picture, of a region or of a side.
CLASS_AREA = 0.025  # of a class that is compared or located
REGION_PRESENCE = 0.06  # of a half of the picture: "there is one"
REGION_MAJORITY = 0.55  # of a ninth of the picture: "it is there"
REGION_LABELED = 0.5  # of a half of the picture: enough is known to say "there is none"
OFFSET = 0.12  # of the picture's side, between two centers of mass
AREA_RATIO = 1.5
COMPONENT_AREA = 0.01  # a region that is counted
SPECK_AREA = 0.002  # a region that is noise; sizes between the two make the count unclear
MAX_REGIONS = 5
FIXED_SHARE = 0.1  # of the rarer answer; below it, the two classes alone predict the answer
BALANCE_KEEPS = 0.6  # share of the questions that the least strict balancing keeps

HALVES = ("left", "right", "top", "bottom")
NINTHS = tuple(
    "-".join(word for word in (vertical, horizontal) if word) or "center"
    for vertical in ("top", "", "bottom")
    for horizontal in ("left", "", "right")
)
_PAIR_KINDS = frozenset({"side", "height", "bigger"})


class RegionTarget(NamedTuple):
    """Target region of a hop: pixels of class `label` (None: any class) in `region` (None: the whole picture)."""

    label: int | None = None
    region: tuple[slice, slice] | None = None

    def mask(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[height, width]"""
        chosen = np.ones(labels.shape, dtype=bool) if self.label is None else labels == self.label
        if self.region is None:
            return chosen
        mask = np.zeros(labels.shape, dtype=bool)
        mask[self.region] = chosen[self.region]
        return mask


class Question(NamedTuple):
    """A question about one image, with the target regions of its two hops."""

    image_id: str
    kind: str
    question: str
    answer: str
    targets: tuple[RegionTarget, RegionTarget]


def make_questions(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    classes: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    grid: Grid = (16, 16),
    questions_per_kind: int = 16,
    like: str | os.PathLike[str] | None = None,
    group_by: str = "image_id",
    seed: int = 0,
) -> dict[str, Any]:
    """Write balanced questions about the labeled images to a new folder that `load_rows` reads.

    The folder holds `train.csv` (image_id, kind, question, answer), `train_relevance.npz` ([n, 2, rows, columns]) and
    `summary.json`. It is renamed into place when complete. Load it with `load_rows(output, images=images)`.

    Args:
        images: folder of the images.
        labels: folder of label PNGs of the same names, aligned with the images at any scale.
        classes: their class names (see `label_maps.read_label_maps`).
        output: the folder to make.
        grid: rows and columns of the relevance maps.
        questions_per_kind: at most this many questions of a kind and answer about an image, before balancing.
        like: a CSV file; keep only questions whose wording is in its column `question`. By default all are kept.
        group_by: groups of images that stay together when the question-only accuracy is measured (see `load_rows`).
        seed: of the choice of questions. The same seed and files give the same folder.

    Returns:
        The content of `summary.json`: counts, and for each kind the question-only accuracy and chance.

    Raises:
        ValueError: `output` exists, an image or label map is missing, unreadable or not aligned, `like` has no
            questions, `group_by` is no grouping of images, or nothing is left.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output}: already exists; remove it or write to another folder")
    _image_divisor(group_by)  # fail before the long part
    wordings = None if like is None else _wordings(Path(like))
    maps = read_label_maps(Path(labels), Path(classes))
    folder = ImageFolder(Path(images))
    generator = random.Random(seed)
    candidates: list[Question] = []
    for stem in track(maps.stems(), "Finding questions"):
        found = image_questions(stem, _read_aligned(maps, stem, folder), maps.names)
        asked = found if wordings is None else (question for question in found if question.question in wordings)
        candidates += _sample(asked, questions_per_kind, generator)
    questions = balance(candidates, generator)
    if not questions:
        raise ValueError(f"{labels}: none of {len(candidates)} questions is left once answers are balanced")
    summary = {
        "images": len({question.image_id for question in questions}),
        "questions": len(questions),
        "seed": seed,
        "kinds": question_only_accuracy(questions, group_by, seed),
    }
    _write(output, questions, maps, grid, summary)
    return summary


def _image_divisor(group_by: str) -> int | None:
    column, divisor = parse_group_by(group_by)
    if column != "image_id":
        raise ValueError(f"group_by keeps images together: `image_id`, or `image_id // 12`, not {group_by!r}")
    return divisor


def _wordings(path: Path) -> frozenset[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            wordings = frozenset(row["question"] for row in csv.DictReader(file))
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"{path}: not a CSV file with a column `question` ({error})") from error
    if not wordings:
        raise ValueError(f"{path}: has no questions")
    return wordings


def image_questions(image_id: str, labels: NDArray[np.int64], names: Mapping[int, str]) -> Iterator[Question]:
    """The questions that the label map [height, width] of one image answers clearly."""
    areas = np.bincount(labels.ravel(), minlength=max(names) + 1) / labels.size
    large = [label for label in names if label != UNLABELED and names[label] and areas[label] >= CLASS_AREA]
    centers = {label: center_of_mass(labels == label) for label in large}
    yield from _exists(image_id, labels, names)
    yield from _where(image_id, labels, names)
    for first, second in permutations(large, 2):
        yield from _placed(image_id, first, second, centers, names)
    for first, second in combinations(sorted(large, key=lambda label: names[label]), 2):
        if max(areas[first], areas[second]) >= AREA_RATIO * min(areas[first], areas[second]):
            text = f"which is bigger the {names[first]} or the {names[second]}"
            answer = names[first if areas[first] > areas[second] else second]
            yield Question(image_id, "bigger", text, answer, (RegionTarget(first), RegionTarget(second)))
    for label in large:
        if count := _count_regions(labels == label):
            text = f"how many separate regions of {names[label]} are in the picture"
            yield Question(image_id, "count", text, str(count), (RegionTarget(label), RegionTarget(label)))


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
    questions: Sequence[Question], group_by: str = "image_id", seed: int = 0
) -> dict[str, dict[str, float]]:
    """The accuracy of predicting the answer from the question alone, for each kind.

    The prediction is the most frequent answer of the wording (of the kind, for a new wording) in one half of the
    images. It is tested on the other half, and the halves then change places.

    Args:
        questions: of several images.
        group_by: `image_id`, or `image_id // 12` to keep neighboring images in one half.
        seed: draws the halves.

    Returns:
        kind -> `questions`, `accuracy`, and `chance`: the accuracy of guessing among the answers of a wording.

    Raises:
        ValueError: `group_by` names another column.
    """
    divisor = _image_divisor(group_by)
    groups = sorted({group_key(question.image_id, divisor) for question in questions})
    first = frozenset(random.Random(seed).sample(groups, len(groups) // 2))
    halves: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        halves[group_key(question.image_id, divisor) in first].append(question)
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


def _exists(image_id: str, labels: NDArray[np.int64], names: Mapping[int, str]) -> Iterator[Question]:
    for half in HALVES:
        region = half_region(half, labels.shape)
        shares = np.bincount(labels[region].ravel(), minlength=max(names) + 1) / labels[region].size
        for label, name in names.items():
            if label == UNLABELED or not name:
                continue
            text = f"is there a {name} in the {half} half of the picture"
            if shares[label] >= REGION_PRESENCE:
                yield Question(image_id, "exists", text, "yes", (RegionTarget(label, region),) * 2)
            elif shares[label] == 0 and shares[UNLABELED] <= 1 - REGION_LABELED:
                yield Question(image_id, "exists", text, "no", (RegionTarget(region=region),) * 2)


def _where(image_id: str, labels: NDArray[np.int64], names: Mapping[int, str]) -> Iterator[Question]:
    height, width = labels.shape
    for index, place in enumerate(NINTHS):
        row, column = divmod(index, 3)
        region = (_third(row, height), _third(column, width))
        shares = np.bincount(labels[region].ravel(), minlength=max(names) + 1) / labels[region].size
        label = int(shares.argmax())
        if label != UNLABELED and shares[label] >= REGION_MAJORITY:
            yield Question(
                image_id,
                "where",
                f"what is at the {place} of the picture",
                names[label],
                (RegionTarget(region=region),) * 2,
            )


def _placed(
    image_id: str,
    first: int,
    second: int,
    centers: Mapping[int, tuple[float, float]],
    names: Mapping[int, str],
) -> Iterator[Question]:
    """Questions whether `first` is to the left of, to the right of, above or below `second`."""
    down, right = (centers[first][axis] - centers[second][axis] for axis in range(2))
    for kind, offset, relations in (
        ("side", right, ("to the left of", "to the right of")),
        ("height", down, ("above", "below")),
    ):
        if abs(offset) >= OFFSET:
            for relation, holds in zip(relations, (offset < 0, offset > 0), strict=True):
                text = f"is the {names[first]} {relation} the {names[second]}"
                yield Question(
                    image_id, kind, text, "yes" if holds else "no", (RegionTarget(first), RegionTarget(second))
                )


def center_of_mass(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Center of mass (down, right) as shares of the sides."""
    height, width = mask.shape
    down, right = (sums @ (np.arange(len(sums)) + 0.5) / sums.sum() for sums in (mask.sum(axis=1), mask.sum(axis=0)))
    return down / height, right / width


def _count_regions(mask: NDArray[np.bool_]) -> int | None:
    """The number of connected regions (neighbors by side or corner); None if it is unclear or too high."""
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(regions.ravel())[1:] / mask.size
    unclear = ((areas > SPECK_AREA) & (areas < COMPONENT_AREA)).any()
    count = int((areas >= COMPONENT_AREA).sum())
    return None if unclear or count > MAX_REGIONS else count


def half_region(name: str, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of one of `HALVES` of a picture of `shape` (height, width)."""
    height, width = shape
    return {
        "left": (slice(0, height), slice(0, width // 2)),
        "right": (slice(0, height), slice(width // 2, width)),
        "top": (slice(0, height // 2), slice(0, width)),
        "bottom": (slice(height // 2, height), slice(0, width)),
    }[name]


def _third(index: int, size: int) -> slice:
    return slice(size * index // 3, size * (index + 1) // 3)


def _sample(questions: Iterable[Question], limit: int, generator: random.Random) -> list[Question]:
    """At most `limit` questions of each kind and answer."""
    groups: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.kind, question.answer].append(question)
    return [question for group in groups.values() for question in generator.sample(group, min(limit, len(group)))]


def _read_aligned(maps: LabelMaps, stem: str, folder: ImageFolder) -> NDArray[np.int64]:
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


def _relevance(questions: Sequence[Question], maps: LabelMaps, grid: Grid) -> Iterator[NDArray[np.float32]]:
    """[2, rows, columns] of each question. The questions of an image follow one another, so each map is read once."""
    stem, labels = "", np.empty((0, 0), np.int64)
    for question in track(questions, "Drawing relevance maps"):
        if question.image_id != stem:
            stem, labels = question.image_id, maps.read(question.image_id)
        yield np.stack([cell_shares(target.mask(labels), grid) for target in question.targets])


def _write(
    output: Path, questions: Sequence[Question], maps: LabelMaps, grid: Grid, summary: Mapping[str, Any]
) -> None:
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with open(part / "train.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(Question._fields[:4])
            table.writerows(question[:4] for question in questions)
        write_maps(part / "train_relevance.npz", _relevance(questions, maps, grid), len(questions), (2, *grid))
        (part / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        os.replace(part, output)
    except BaseException:
        shutil.rmtree(part)
        raise
