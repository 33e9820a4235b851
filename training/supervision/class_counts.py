"""Pixel counts of the classes of a label map, from which areas, shares of regions and relevance maps follow.

The sides of the picture are cut at every pixel where a cell of the grid, a half or a third begins or ends. Inside one
of the resulting blocks, all pixels count alike, so the label map itself is read once.
"""

import numpy as np
from numpy.typing import NDArray

from ..data.relevance_maps import Grid, overlap

Region = tuple[slice, slice]
"""Rows and columns of a part of the picture. Its edges are those of cells, halves or thirds."""


class ClassCounts:
    """The number of pixels of each class in each block of a label map.

    Args:
        labels: [height, width] of class numbers.
        classes: number of classes, that is, the largest class number plus one.
        grid: rows and columns of the relevance maps.
    """

    def __init__(self, labels: NDArray[np.integer], classes: int, grid: Grid = (1, 1)) -> None:
        (self._rows, down), (self._columns, across) = (
            _blocks(size, cells) for size, cells in zip(labels.shape, grid, strict=True)
        )
        shape = (len(self._rows), len(self._columns), classes)
        index = (down * (shape[1] * classes))[:, None] + across * classes
        index += labels
        counts = np.bincount(index.ravel(), minlength=int(np.prod(shape)))
        self._counts = counts.reshape(shape)  # [row blocks, column blocks, classes]
        self._down = overlap(grid[0], labels.shape[0])[:, self._rows]  # [rows, row blocks]
        self._across = overlap(grid[1], labels.shape[1])[:, self._columns]

    def shares(self, region: Region | None = None) -> NDArray[np.float64]:
        """[classes]: the share of each class in `region`, or in the whole picture."""
        counts = self._inside(region).sum(axis=(0, 1))
        return counts / counts.sum()

    def cell_shares(self, label: int | None, region: Region | None) -> NDArray[np.float32]:
        """[rows, columns]: the share of each cell that class `label` (None: any class) covers in `region`."""
        counts = np.zeros(self._counts.shape[:2])
        inside = self._inside(region)
        counts[self._blocks_of(region)] = inside.sum(axis=2) if label is None else inside[..., label]
        return (self._down @ counts @ self._across.T).astype(np.float32)

    def _inside(self, region: Region | None) -> NDArray[np.int64]:
        return self._counts[self._blocks_of(region)]

    def _blocks_of(self, region: Region | None) -> Region:
        if region is None:
            return slice(None), slice(None)
        down, across = (
            slice(*np.searchsorted(starts, (part.start, part.stop)))
            for starts, part in zip((self._rows, self._columns), region, strict=True)
        )
        return down, across


def _blocks(size: int, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first pixel of each block of a side of `size` pixels, and the number of the block of each pixel."""
    edges = np.arange(cells) * (size / cells)
    thirds = [size * part // 3 for part in range(3)]
    starts = np.unique(np.concatenate([np.floor(edges), np.ceil(edges), [*thirds, size // 2]]).astype(np.int64))
    starts = starts[starts < size]
    return starts, np.searchsorted(starts, np.arange(size), side="right") - 1
