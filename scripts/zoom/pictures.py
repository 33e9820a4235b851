"""Questions about small things in photos with label maps."""

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_qca.training.data.images import ImageFolder
from modeling_qca.training.data.relevance_maps import cell_shares
from modeling_qca.training.files.progress import track
from modeling_qca.training.supervision.image_questions import HALVES, Question, RegionTarget, half_region
from modeling_qca.training.supervision.label_maps import UNLABELED, read_label_maps
from modeling_qca.training.supervision.segmentation_questions import balance

from .windows import CELLS

THINGS = {"door": "door", "car": "car", "window": "window", "vegetation": "plant"}  # class: word in the question
SMALL = (0.002, 0.02)  # share of the half
LABELED = 0.8  # of the half: enough is known to say "there is none"


class Asked(NamedTuple):
    """Whether the thing of index `thing` is in `half` of a picture."""

    picture: int
    thing: int
    half: str
    present: bool


class Pictures(NamedTuple):
    """`paths` and `groups` (kept in one part of a split) of the pictures, the maps of things, and the questions.

    `maps` [pictures, things, CELLS, CELLS]: the share of each cell that shows the thing. `things`: their names.
    """

    paths: list[Path]
    groups: list[str]
    maps: NDArray[np.float32]
    questions: list[Asked]
    things: tuple[str, ...] = ()


def facade_pictures(folder: Path, seed: int = 0) -> Pictures:
    """Questions whether there is a small thing in a half of a photo, balanced for each thing and half.

    `folder` holds `images/`, `labels/`, `classes.txt` and `images.csv` with `image_id`, `sequence` and `full_detail`.
    Photos without full detail are left out.
    """
    with open(folder / "images.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["full_detail"] == "yes"]
    label_maps, images = read_label_maps(folder / "labels", folder / "classes.txt"), ImageFolder(folder / "images")
    numbers = {name: number for number, name in label_maps.names.items()}
    candidates: list[Question] = []
    maps = np.zeros((len(rows), len(THINGS), CELLS, CELLS), np.float32)
    for picture, row in enumerate(track(rows, "Finding small things")):
        labels = label_maps.read(row["image_id"])
        for thing, name in enumerate(THINGS):
            shown = labels == numbers[name]
            maps[picture, thing] = cell_shares(shown, (CELLS, CELLS))
            for half in HALVES:
                region = half_region(half, labels.shape)
                answer = _answer(shown[region].mean(), (labels[region] == UNLABELED).mean())
                if answer is not None:
                    candidates.append(candidate(picture, thing, THINGS[name], half, answer))
    paths = [Path(images.find(row["image_id"])) for row in rows]
    groups, questions = [row["sequence"] for row in rows], balanced(candidates, seed)
    return Pictures(paths, groups, maps, questions, tuple(THINGS.values()))


def candidate(picture: int, thing: int, word: str, half: str, answer: str) -> Question:
    """A question to be balanced."""
    text = f"is there a {word} in the {half} half of the picture"
    return Question(str(picture), f"{thing} {half}", text, answer, (RegionTarget(),) * 2)


def balanced(candidates: list[Question], seed: int) -> list[Asked]:
    """Those of `candidate` whose answers are as often yes as no for each wording; `seed` draws them."""
    questions = []
    for asked in balance(candidates, random.Random(seed)):
        number, half = asked.kind.split()
        questions.append(Asked(int(asked.image_id), int(number), half, asked.answer == "yes"))
    return questions


def _answer(shown: float, unlabeled: float) -> str | None:
    """None: the label map does not answer clearly, or the thing is not small."""
    if SMALL[0] <= shown <= SMALL[1]:
        return "yes"
    return "no" if shown == 0 and unlabeled <= 1 - LABELED else None


def half_cells(half: str) -> NDArray[np.bool_]:
    """[CELLS, CELLS]"""
    cells = np.zeros((CELLS, CELLS), dtype=bool)
    cells[half_region(half, cells.shape)] = True
    return cells


def folds(pictures: Pictures, parts: int, seed: int = 0) -> Iterator[NDArray[np.bool_]]:
    """Masks [questions] of the questions to test on; a group is in one part, and the parts have similar sizes."""
    rng = random.Random(seed)
    counts: dict[str, int] = dict.fromkeys(pictures.groups, 0)
    for asked in pictures.questions:
        counts[pictures.groups[asked.picture]] += 1
    shuffled = rng.sample(sorted(counts), len(counts))
    order = sorted(shuffled, key=lambda group: -counts[group].bit_length())  # large ones first, or parts would differ
    sizes, members = [0] * parts, [set() for _ in range(parts)]
    for group in order:
        smallest = sizes.index(min(sizes))
        sizes[smallest] += counts[group]
        members[smallest].add(group)
    for groups in members:
        yield np.array([pictures.groups[asked.picture] in groups for asked in pictures.questions])
