"""Windows of a picture: overlapping squares (in shares of the sides) of half and of a quarter of each side.

Everything is measured on one grid of `CELLS` x `CELLS` cells. All windows and all patch grids align with it.
"""

import numpy as np
from numpy.typing import NDArray

CELLS = 32
SIDES = {"half": 2, "quarter": 4}  # the picture's side, divided by the side of a window


def window_starts(side: str) -> NDArray[np.int64]:
    """First row and column of each window in cells, [W, 2]: W is 9 for `half` and 49 for `quarter`."""
    length = CELLS // SIDES[side]
    starts = np.arange(0, CELLS - length + 1, length // 2)
    return np.stack(np.meshgrid(starts, starts, indexing="ij"), axis=-1).reshape(-1, 2)


def window_boxes(side: str) -> NDArray[np.float64]:
    """(left, top, right, bottom) of each window as shares of the sides, [W, 4]."""
    top_left = window_starts(side)[:, ::-1] / CELLS
    return np.concatenate([top_left, top_left + 1 / SIDES[side]], axis=1)


def window_cells(side: str) -> NDArray[np.bool_]:
    """The cells of each window, [W, CELLS, CELLS]."""
    length = CELLS // SIDES[side]
    cells = np.zeros((len(window_starts(side)), CELLS, CELLS), dtype=bool)
    for window, (row, column) in zip(cells, window_starts(side), strict=True):
        window[row : row + length, column : column + length] = True
    return cells


def tiles(side: str) -> NDArray[np.int64]:
    """The windows that cover the picture without overlap, in raster order."""
    return np.flatnonzero((window_starts(side) % (CELLS // SIDES[side]) == 0).all(axis=1))


def on_cells(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """A map on a square grid [..., n * n] spread over the cells [..., CELLS, CELLS]; the sum stays."""
    side = round(values.shape[-1] ** 0.5)
    repeats = CELLS // side
    maps = values.reshape(*values.shape[:-1], side, side) / repeats**2
    return maps.repeat(repeats, axis=-2).repeat(repeats, axis=-1)


def choose(values: NDArray[np.floating], side: str, count: int) -> NDArray[np.int64]:
    """The `count` windows that hold most of maps [Q, CELLS, CELLS], one after another: [Q, count].

    What a window holds does not count for those after it. Ties go to the earlier window.
    """
    cells = window_cells(side).reshape(len(window_starts(side)), -1)
    rest, chosen = values.reshape(len(values), -1).astype(np.float32), np.empty((len(values), count), np.int64)
    for number in range(count):
        held = rest @ cells.T.astype(np.float32)  # [Q, W]
        np.put_along_axis(held, chosen[:, :number], -1, axis=1)
        chosen[:, number] = held.argmax(axis=1)
        rest = np.where(cells[chosen[:, number]], 0, rest)
    return chosen


def held_share(target: NDArray[np.floating], side: str, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of targets [Q, CELLS, CELLS] inside the union of the chosen windows [Q, count]: [Q]."""
    union = window_cells(side)[chosen].any(axis=1)
    total = target.sum(axis=(1, 2), dtype=np.float64)
    return (target * union).sum(axis=(1, 2), dtype=np.float64) / np.maximum(total, np.finfo(np.float64).tiny)
