"""Generated scenes: colored shapes on textured backgrounds, with questions that need the picture.

Every object lies inside one cell of a `GRID` x `GRID` grid, so relevance maps are exact. Answers are balanced within
each wording, so the question alone does not predict the answer.
"""

import csv
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..files.progress import track

GRID = 5
CELL = 32  # pixels
COLORS = {"red": (214, 40, 40), "green": (40, 170, 60), "blue": (45, 85, 225), "yellow": (240, 205, 40)}
SHAPES = ("circle", "square", "triangle", "star")
MAX_COUNT = 3
QUESTIONS_PER_SCENE = 8

# scenes with small objects
SMALL_GRID = 16
SMALL_CELL = 64  # pixels
SMALL_RADII = (8, 24)  # pixels
SMALL_MAP = 64  # cells a side of the relevance maps
MORE_COLORS = {"orange": (240, 130, 30), "purple": (140, 60, 180), "white": (245, 245, 245), "black": (15, 15, 15)}
SMALL_COLORS = COLORS | MORE_COLORS
SIZES = {"16 to 26 pixels": 80 / 3, "27 to 37 pixels": 112 / 3, "38 to 48 pixels": 48.0}  # and the largest diameter


@dataclass(frozen=True)
class SceneObject:
    shape: str
    color: str
    row: int
    column: int


@dataclass(frozen=True)
class SceneQuestion:
    """`targets`: the objects that each of two hops should attend to; empty if there is no such object."""

    kind: str
    text: str
    answer: str
    targets: tuple[tuple[SceneObject, ...], tuple[SceneObject, ...]]


def draw_scene(objects: list[SceneObject], rng: random.Random) -> Image.Image:
    """RGB image of `GRID * CELL` pixels a side."""
    ground = draw_ground(GRID * CELL, rng)
    drawing = ImageDraw.Draw(ground)
    for item in objects:
        radius = rng.uniform(11, 14)
        slack = min(CELL / 2 - radius - 1, 2)
        x = (item.column + 0.5) * CELL + rng.uniform(-slack, slack)
        y = (item.row + 0.5) * CELL + rng.uniform(-slack, slack)
        draw_object(drawing, item, x, y, radius)
    return ground


def draw_ground(size: int, rng: random.Random) -> Image.Image:
    """A textured RGB image of `size` pixels a side."""
    noise = np.random.default_rng(rng.getrandbits(32))
    base = noise.uniform(60, 200, size=3)
    texture = noise.normal(0, 30, size=(size // 8, size // 8, 3))
    ground = Image.fromarray(np.clip(base + texture, 0, 255).astype(np.uint8))
    return ground.resize((size, size), Image.Resampling.BILINEAR)


def draw_object(
    drawing: ImageDraw.ImageDraw, item: SceneObject, x: float, y: float, radius: float, colors: Any = None
) -> None:
    """Draw the shape of `item` around (`x`, `y`), in `colors` (fill and outline) or else in its own."""
    color, outline = colors or (SMALL_COLORS[item.color], (20, 20, 20))
    if item.shape == "circle":
        drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=outline)
    elif item.shape == "square":
        half = 0.85 * radius
        drawing.rectangle((x - half, y - half, x + half, y + half), fill=color, outline=outline)
    else:
        points = 3 if item.shape == "triangle" else 10
        radii = [radius * (0.42 if item.shape == "star" and i % 2 else 1) for i in range(points)]
        angles = [2 * np.pi * i / points - np.pi / 2 for i in range(points)]
        corners = [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
        drawing.polygon(corners, fill=color, outline=outline)


def random_objects(rng: random.Random) -> list[SceneObject]:
    """Two to five objects in different cells."""
    cells = rng.sample(range(GRID * GRID), rng.randint(2, 5))
    return [SceneObject(rng.choice(SHAPES), rng.choice(list(COLORS)), *divmod(cell, GRID)) for cell in cells]


def possible_questions(objects: list[SceneObject]) -> Iterator[SceneQuestion]:
    """The questions that this scene answers unambiguously."""
    of_shape = {shape: tuple(item for item in objects if item.shape == shape) for shape in SHAPES}
    of_color = {color: tuple(item for item in objects if item.color == color) for color in COLORS}
    for shape, found in of_shape.items():
        if len(found) == 1:
            yield SceneQuestion("attribute", f"what color is the {shape}", found[0].color, (found, found))
        if len(found) <= MAX_COUNT:
            yield SceneQuestion("count", f"how many {shape}s are there", str(len(found)), (found, found))
        for color in COLORS:
            matches = tuple(item for item in found if item.color == color)
            answer = "yes" if matches else "no"
            yield SceneQuestion("exists", f"is there a {color} {shape}", answer, (matches, matches))
        for other, others in of_shape.items():
            if other != shape and len(found) == len(others) == 1 and found[0].column != others[0].column:
                answer = "yes" if found[0].column < others[0].column else "no"
                yield SceneQuestion("compare", f"is the {shape} to the left of the {other}", answer, (found, others))
    for color, found in of_color.items():
        if len(found) == 1:
            yield SceneQuestion("attribute", f"what shape is the {color} object", found[0].shape, (found, found))


class BalancedChoice:
    """Picks questions so that the answers of each wording stay equally frequent, and all kinds of questions occur."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.kinds: Counter[str] = Counter()
        self.answers: dict[str, Counter[str]] = {}

    def pick(self, objects: list[SceneObject], count: int) -> list[SceneQuestion]:
        candidates = list(possible_questions(objects))
        self.rng.shuffle(candidates)
        chosen: list[SceneQuestion] = []
        while candidates and len(chosen) < count:
            best = min(candidates, key=self._excess)
            candidates.remove(best)
            if self._excess(best)[0] > 0:
                break
            self.kinds[best.kind] += 1
            self.answers.setdefault(best.text, Counter())[best.answer] += 1
            chosen.append(best)
        return chosen

    def _excess(self, question: SceneQuestion) -> tuple[int, int]:
        """How much more frequent the answer is than the rarest one of its wording, and the count of the kind."""
        seen = self.answers.get(question.text, Counter())
        rarest = min(seen[answer] for answer in answers_of(question))
        return max(seen[question.answer] - rarest - 1, 0), self.kinds[question.kind]


def answers_of(question: SceneQuestion) -> tuple[str, ...]:
    """All answers the wording of `question` can have."""
    if question.kind == "count":
        return tuple(str(count) for count in range(MAX_COUNT + 1))
    if question.kind == "attribute":
        return tuple(COLORS) if question.text.startswith("what color") else SHAPES
    return ("yes", "no")


def relevance_maps(question: SceneQuestion) -> np.ndarray:
    """`[2, GRID, GRID]` float32: 1 on the cells of the targets of the first and the second hop."""
    maps = np.zeros((2, GRID, GRID), dtype=np.float32)
    for hop, items in enumerate(question.targets):
        for item in items:
            maps[hop, item.row, item.column] = 1
    return maps


def write_scenes(folder: str | os.PathLike, splits: dict[str, int], seed: int) -> None:
    """
    Write a data folder: `images/`, and for each split `<split>.csv` and `<split>_relevance.npz`.

    Args:
        folder: made if absent; files of the same names are replaced.
        splits: number of scenes of each split; no scene is in two.
        seed: of the scenes and questions.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for split, scenes in splits.items():
        choice = BalancedChoice(rng)
        rows: list[tuple[str, str, str, str]] = []
        maps: list[np.ndarray] = []
        for scene in track(range(scenes), f"Drawing {split} scenes"):
            objects = random_objects(rng)
            image_id = f"{split}{scene}"
            draw_scene(objects, rng).save(folder / "images" / f"{image_id}.jpg", quality=90)
            for question in choice.pick(objects, QUESTIONS_PER_SCENE):
                rows.append((image_id, question.kind, question.text, question.answer))
                maps.append(relevance_maps(question))
        _write_table(folder, split, rows, maps)


def write_small_scenes(folder: str | os.PathLike, splits: dict[str, int], seed: int) -> None:
    """
    Write a data folder as [`write_scenes`] does, of scenes that are large and have small objects.

    A scene has `SMALL_GRID * SMALL_CELL` pixels a side and an object of each of `SMALL_COLORS`, with a diameter of 16
    to 48 pixels. A question names the color of one and asks for its shape. So what is asked for is found in a picture
    made smaller, and read at full detail. The kind of a question is the size of its object. The maps show the object.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for split, scenes in splits.items():
        rows: list[tuple[str, str, str, str]] = []
        maps: list[np.ndarray] = []
        for scene in track(range(scenes), f"Drawing {split} scenes"):
            image = draw_ground(SMALL_GRID * SMALL_CELL, rng)
            for color, place in zip(SMALL_COLORS, rng.sample(range(SMALL_GRID**2), len(SMALL_COLORS)), strict=True):
                item = SceneObject(rng.choice(SHAPES), color, *divmod(place, SMALL_GRID))
                radius = rng.uniform(*SMALL_RADII)
                slack = SMALL_CELL / 2 - radius - 1
                x, y = ((at + 0.5) * SMALL_CELL + rng.uniform(-slack, slack) for at in (item.column, item.row))
                draw_object(ImageDraw.Draw(image), item, x, y, radius)
                kind = next(name for name, largest in SIZES.items() if 2 * radius <= largest)
                asked = rng.choice([item.shape, rng.choice([shape for shape in SHAPES if shape != item.shape])])
                rows.append((f"{split}{scene}", kind, f"what shape is the {color} object", item.shape))
                answer = "yes" if asked == item.shape else "no"
                rows.append((f"{split}{scene}", kind, f"is the {color} object a {asked}", answer))
                shown = Image.new("L", image.size)
                draw_object(ImageDraw.Draw(shown), item, x, y, radius, (255, 255))
                target = np.asarray(shown.resize((SMALL_MAP, SMALL_MAP), Image.Resampling.BOX), dtype=np.float32) / 255
                maps += [np.stack([target, target])] * 2
            image.save(folder / "images" / f"{split}{scene}.jpg", quality=90)
        _write_table(folder, split, rows, maps)


def _write_table(folder: Path, split: str, rows: list[tuple[str, str, str, str]], maps: list[np.ndarray]) -> None:
    np.savez_compressed(folder / f"{split}_relevance.npz", row=np.arange(len(rows)), mask=np.stack(maps))
    with open(folder / f"{split}.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "kind", "question", "answer"), *rows])
