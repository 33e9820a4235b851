"""Drawn scenes with small objects, and questions about them.

A scene has `SIZE` pixels a side. Its objects have diameters of 16 to 48 pixels and lie inside the cells of a lattice,
so that neither a half nor a window cuts one. Things that are asked for differ in color and in shape. For each of them
one distractor shares its color and another one its shape.
"""

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from modeling_qca.training.files.progress import track
from modeling_qca.training.supervision.image_questions import HALVES
from modeling_qca.training.supervision.scenes import COLORS, SHAPES, SceneObject, draw_ground, draw_object

from .pictures import Pictures, balanced, candidate, half_cells
from .windows import CELLS

SIZE, LATTICE = 1024, 16  # pixels, cells a side
RADII = (8, 24)  # pixels
THINGS = tuple(zip(COLORS, SHAPES, strict=True))  # "red circle", "green square", ...
COPIES = (0, 1, 1, 2, 2)  # of each thing in a scene, equally likely; one half in two shows it
QUESTIONS_PER_SCENE = 8


def scene_pictures(folder: Path, scenes: int, seed: int = 0) -> Pictures:
    """Draw scenes to `folder`, and ask whether a thing is in a half, balanced for each thing and half.

    Scenes, questions and file names follow from `seed`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    words = tuple(" ".join(thing) for thing in THINGS)
    maps, paths, candidates = np.zeros((scenes, len(THINGS), CELLS, CELLS), np.float32), [], []
    for scene in track(range(scenes), "Drawing scenes"):
        image, maps[scene] = draw_small_objects(place_objects(rng), rng)
        paths.append(folder / f"seed{seed}_scene{scene}.png")
        image.save(paths[-1], compress_level=1)
        asked = [(thing, half) for thing in range(len(THINGS)) for half in HALVES]
        for thing, half in rng.sample(asked, QUESTIONS_PER_SCENE):
            answer = "yes" if maps[scene, thing][half_cells(half)].any() else "no"
            candidates.append(candidate(scene, thing, words[thing], half, answer))
    return Pictures(paths, [str(path) for path in paths], maps, balanced(candidates, seed), words)


def place_objects(rng: random.Random) -> list[SceneObject]:
    """The things, some more than once, and the distractors, in different cells of the lattice."""
    looks = [thing for thing in THINGS for _ in range(rng.choice(COPIES))]
    for color, shape in THINGS:
        looks.append((color, rng.choice([other for other in SHAPES if other != shape])))
        looks.append((rng.choice([other for other in COLORS if other != color]), shape))
    cells = rng.sample(range(LATTICE**2), len(looks))
    placed = zip(looks, cells, strict=True)
    return [SceneObject(shape, color, *divmod(cell, LATTICE)) for (color, shape), cell in placed]


def draw_small_objects(objects: list[SceneObject], rng: random.Random) -> tuple[Image.Image, NDArray[np.float32]]:
    """The scene, and the share of each cell that shows each of `THINGS`: [things, CELLS, CELLS]."""
    image, cell = draw_ground(SIZE, rng), SIZE // LATTICE
    drawing = ImageDraw.Draw(image)
    shown = [Image.new("RGB", image.size) for _ in THINGS]
    for item in objects:
        radius = rng.uniform(*RADII)
        slack = cell / 2 - radius - 1
        x, y = ((place + 0.5) * cell + rng.uniform(-slack, slack) for place in (item.column, item.row))
        draw_object(drawing, item, x, y, radius)
        if (item.color, item.shape) in THINGS:
            thing = THINGS.index((item.color, item.shape))
            draw_object(ImageDraw.Draw(shown[thing]), item, x, y, radius)
    masks = np.stack([np.asarray(each).any(axis=-1) for each in shown])
    return image, masks.reshape(len(THINGS), CELLS, SIZE // CELLS, CELLS, -1).mean(axis=(2, 4), dtype=np.float32)
