"""Linear readers of frozen features: a score of each patch for each thing, and an answer from the scores.

I pictures, W windows of a crop (1 for the whole picture), n patches of a window, D features, K things, Q questions.

For a fixed wording, a hop's dot product is a linear score of the patch. It is fitted here in closed form to the maps.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from .pictures import HALVES, Pictures, half_cells
from .windows import CELLS, SIDES, choose, held_share, on_cells, tiles, window_starts

WINDOWS = {  # glance and windows -> the side of the windows
    ("whole112", "half112"): "half",
    ("whole112", "quarter112"): "quarter",
    ("whole224", "half224"): "half",
    ("whole224", "quarter112"): "quarter",
}
CHOICES = ("question", "chance", "cls attention", "shuffled question", "true region")
COUNTS = (1, 2)  # windows
SHARPNESS = (1.0, 2.0, 4.0, 8.0)  # of the map that chooses; the one that is right most often in training is taken
STRONGEST = 4  # patches whose mean score is an input of the answer
RIDGE = 1e-3  # of the mean variance


def patch_cells(side: str | None, grid: int) -> NDArray[np.int64]:
    """The flat numbers of the cells of each patch, [W, n, cells of a patch]; `side` None is the whole picture."""
    starts = np.zeros((1, 2), int) if side is None else window_starts(side)
    length = CELLS if side is None else CELLS // SIDES[side]
    step = length // grid
    rows = np.arange(length).reshape(grid, step)
    local = rows[:, None, :, None] * CELLS + rows[None, :, None, :]  # [grid, grid, step, step]
    return (starts @ [CELLS, 1])[:, None, None] + local.reshape(1, grid * grid, step * step)


@dataclass
class Scores:
    """Scores [I, W, n, K] of the patches of a crop, and the cells of each patch."""

    values: NDArray[np.float32]
    cells: NDArray[np.int64]

    def in_half(self, half: str) -> NDArray[np.bool_]:
        """The patches [W, n] whose center lies in the half."""
        return half_cells(half).ravel()[self.cells].mean(axis=-1) > 0.5


def fit_scores(
    features: NDArray[np.floating], side: str | None, pictures: Pictures, train: NDArray[np.int64]
) -> Scores:
    """Ridge regression of the maps on the features [I, W, n, D] of the training pictures, applied to all pictures."""
    cells = patch_cells(side, round(features.shape[2] ** 0.5))
    width = features.shape[-1]
    maps = pictures.maps.reshape(len(features), -1, CELLS * CELLS)
    products, moments, count = np.zeros((width + 1, width + 1)), np.zeros((width + 1, maps.shape[1])), 0
    for picture in train:
        patches = _with_one(features[picture])
        target = maps[picture][:, cells].mean(axis=-1).reshape(maps.shape[1], -1)
        products += patches.T @ patches
        moments += patches.T @ target.T
        count += len(patches)
    products[:width, :width] += np.eye(width) * RIDGE * count
    weights = np.linalg.solve(products, moments).astype(np.float32)
    scores = [(_with_one(each) @ weights).reshape(*cells.shape[:2], -1) for each in features]
    return Scores(np.stack(scores), cells)


def _with_one(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """[W, n, D] -> [W * n, D + 1]"""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float32)
    return np.concatenate([flat, np.ones((len(flat), 1), np.float32)], axis=1)


@dataclass
class Part:
    """One seed, and the part of the split that it tests.

    `train` and `test` are rows of questions. `features` are those of `cache_features`.
    """

    pictures: Pictures
    features: dict[str, NDArray[np.float16]]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    seed: int
    _scores: dict[str, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = self.pictures.questions
        self.picture = np.array([each.picture for each in asked])
        self.thing = np.array([each.thing for each in asked])
        self.half = np.array([HALVES.index(each.half) for each in asked])
        self.present = np.array([each.present for each in asked])
        cells = np.stack([half_cells(half) for half in HALVES])[self.half]
        self.target = self.pictures.maps[self.picture, self.thing] * cells  # [Q, CELLS, CELLS]

    def scores(self, crop: str) -> Scores:
        """Of the crop's patches, fitted once. `<crop>_low` are the features of the first layers."""
        if crop not in self._scores:
            side = next((side for side in ("half", "quarter") if crop.startswith(side)), None)
            pictures = np.unique(self.picture[self.train])
            self._scores[crop] = fit_scores(self.features[crop], side, self.pictures, pictures)
        return self._scores[crop]


def read(part: Part, scores: Scores, windows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Inputs of the answer [Q, 4] from the asked half: strongest score, mean of the strongest, mean, and whether any.

    `windows` [Q, count] are those that are seen; None: all.
    """
    found = np.zeros((len(part.picture), 4))
    inside = np.stack([scores.in_half(half) for half in HALVES])
    for row, (picture, thing, half) in enumerate(zip(part.picture, part.thing, part.half, strict=True)):
        seen = slice(None) if windows is None else windows[row]
        values = scores.values[picture, seen, :, thing][inside[half][seen]]
        if len(values):
            values = np.sort(values)[::-1]
            found[row] = values[0], values[:STRONGEST].mean(), values.mean(), 1
    return found


def right(part: Part, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whether each test question is answered right by a logistic regression of its thing on the inputs [Q, F]."""
    answered = np.zeros(len(part.present))
    for thing in np.unique(part.thing):
        train, test = (rows[part.thing[rows] == thing] for rows in (part.train, part.test))
        scaler = StandardScaler().fit(inputs[train])
        model = LogisticRegression().fit(scaler.transform(inputs[train]), part.present[train])
        if len(test):
            answered[test] = model.predict(scaler.transform(inputs[test])) == part.present[test]
    return answered[part.test]


def relevance(part: Part, crop: str, sharpness: float) -> NDArray[np.float32]:
    """The map [Q, CELLS, CELLS] that chooses windows: a softmax of the thing's score in the asked half."""
    scores = part.scores(crop)
    values = scores.values
    if values.shape[1] > 1:  # windows: the maps of those that do not overlap, side by side
        side = "half" if crop.startswith("half") else "quarter"
        values, cells = values[:, tiles(side)], scores.cells[tiles(side)]
    else:
        cells = scores.cells
    picked = values.reshape(len(values), -1, values.shape[-1])[part.picture, :, part.thing]  # [Q, patches]
    flat = cells.reshape(-1, cells.shape[-1])
    inside = np.stack([half_cells(half).ravel()[flat].mean(axis=1) > 0.5 for half in HALVES])[part.half]
    scaled = np.where(inside, sharpness * picked / values.std(axis=(0, 1, 2))[part.thing][:, None], -np.inf)
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    maps = np.zeros((len(shares), CELLS * CELLS), np.float32)
    maps[:, flat] = shares[:, :, None] / flat.shape[1]
    return maps.reshape(-1, CELLS, CELLS)


def chosen_by_question(part: Part, crop: str, side: str) -> NDArray[np.int64]:
    """The windows [Q, most] that the map of the question chooses, with the sharpness that is best in training."""
    shown = part.train[part.present[part.train]]
    found = {}
    for sharpness in SHARPNESS:
        windows = choose(relevance(part, crop, sharpness), side, max(COUNTS))
        found[sharpness] = held_share(part.target[shown], side, windows[shown, :1]).mean(), windows
    return max(found.values(), key=lambda each: each[0])[1]


def chosen_as_windows(part: Part, crop: str, side: str) -> NDArray[np.int64]:
    """The windows [Q, most] in the asked half with the highest scores, fitted on the mean features of each window."""
    pictures = np.unique(part.picture[part.train])
    means = np.stack([each.mean(axis=1, keepdims=True, dtype=np.float32) for each in part.features[crop]])
    scores = fit_scores(means, side, part.pictures, pictures)  # a window is one patch
    inside = np.stack([scores.in_half(half)[:, 0] for half in HALVES])[part.half]  # [Q, W]
    values = np.where(inside, scores.values[part.picture, :, 0, part.thing], -np.inf)
    return values.argsort(axis=1)[:, ::-1][:, : max(COUNTS)]


def choices(part: Part, glance: str, side: str) -> dict[str, NDArray[np.int64]]:
    """The windows [Q, most] of each of `CHOICES`."""
    rng, most = np.random.default_rng(part.seed), max(COUNTS)
    question = chosen_by_question(part, glance, side)
    chance = rng.random((len(question), len(window_starts(side)))).argsort(axis=1)[:, :most]
    cls = choose(on_cells(part.features[f"{glance}_cls"].astype(np.float32)), side, most)[part.picture]
    true = choose(part.target[_targets_to_show(part, rng)], side, most)
    found = (question, chance, cls, question[_other_question(part, rng)], true)
    return dict(zip(CHOICES, found, strict=True))


def _targets_to_show(part: Part, rng: np.random.Generator) -> NDArray[np.int64]:
    """The question whose target stands for the true region of each question.

    It is its own. If the thing is absent, it is a training question about the same thing and half, so that the place
    of the windows does not tell the answer.
    """
    taken = np.arange(len(part.present))
    shown = part.train[part.present[part.train]]
    for row in np.flatnonzero(~part.present):
        same_thing = shown[part.thing[shown] == part.thing[row]]
        alike = same_thing[part.half[same_thing] == part.half[row]]
        taken[row] = rng.choice(alike if len(alike) else same_thing)
    return taken


def _other_question(part: Part, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each question another one about its picture; itself if there is none."""
    others = np.arange(len(part.picture))
    for picture in np.unique(part.picture):
        same = rng.permutation(np.flatnonzero(part.picture == picture))
        others[same] = np.roll(same, 1)
    return others


def holds(part: Part, side: str, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whether windows [Q, count] hold at least half of each test question's target; NaN if the thing is absent."""
    held = held_share(part.target[part.test], side, windows[part.test]) >= 0.5
    return np.where(part.present[part.test], held, np.nan)


def points(part: Part, crop: str) -> NDArray[np.float64]:
    """Whether the largest value of the question's map lies on each test question's target; NaN if it is absent."""
    maps = relevance(part, crop, 1.0)[part.test].reshape(len(part.test), -1)
    largest = maps == maps.max(axis=1, keepdims=True)  # the cells of one patch
    hit = (largest * part.target[part.test].reshape(len(part.test), -1)).sum(axis=1) > 0
    return np.where(part.present[part.test], hit, np.nan)
