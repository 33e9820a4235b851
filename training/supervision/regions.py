"""Regions of a picture: boxes, polygons and masks, in pixels of the upright picture (EXIF rotation applied).

x runs to the right and y down from the upper left corner. Pixel n of a row covers x from n to n + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..data.relevance_maps import cell_shares

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

Point: TypeAlias = tuple[float, float]
Coverage: TypeAlias = NDArray[np.float32]
"""[height, width]: the share in [0, 1] of each cell that a region covers."""

_LINES_PER_CELL = 8  # lines at which a polygon is measured; exact across, sampled down
_TURNED = {  # EXIF orientation -> (x, y) of the upright picture from x, y, width and height of the stored one
    1: lambda x, y, w, h: (x, y),
    2: lambda x, y, w, h: (w - x, y),
    3: lambda x, y, w, h: (w - x, h - y),
    4: lambda x, y, w, h: (x, h - y),
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations of pictures that are stored on their side."""


@dataclass(frozen=True)
class Box:
    """A rectangle from (left, top) to (right, bottom)."""

    left: float
    top: float
    right: float
    bottom: float

    def coverage(self, size: Size, canvas: Size) -> Coverage:
        """Its share of each cell of a canvas over a picture of `size`, exactly."""
        across = _interval_shares(np.array([self.left, self.right]) * (canvas[0] / size[0]), canvas[0])
        down = _interval_shares(np.array([self.top, self.bottom]) * (canvas[1] / size[1]), canvas[1])
        return np.outer(down, across).astype(np.float32)

    def scaled(self, x: float, y: float) -> "Box":
        """The box with its coordinates times x and y."""
        return Box(self.left * x, self.top * y, self.right * x, self.bottom * y)

    def turned(self, orientation: int, size: Size) -> "Box":
        """From a stored picture of `size` to the upright one, by its EXIF orientation."""
        (x0, y0), (x1, y1) = (_turn(corner, orientation, size) for corner in self.corners())
        return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))

    def corners(self) -> tuple[Point, Point]:
        """Its upper left and its lower right corner."""
        return (self.left, self.top), (self.right, self.bottom)


@dataclass(frozen=True)
class Polygon:
    """The union of closed outlines. A point is inside an outline that surrounds it an odd number of times."""

    outlines: tuple[tuple[Point, ...], ...]

    def coverage(self, size: Size, canvas: Size) -> Coverage:
        """Its share of each cell of a canvas over a picture of `size`; exact for upright edges on cell borders."""
        scale = (canvas[0] / size[0], canvas[1] / size[1])
        return np.max([_inside(np.array(outline) * scale, canvas) for outline in self.outlines], axis=0)

    def scaled(self, x: float, y: float) -> "Polygon":
        """The polygon with its coordinates times x and y."""
        return Polygon(tuple(tuple((px * x, py * y) for px, py in outline) for outline in self.outlines))

    def turned(self, orientation: int, size: Size) -> "Polygon":
        """From a stored picture of `size` to the upright one, by its EXIF orientation."""
        return Polygon(tuple(tuple(_turn(p, orientation, size) for p in outline) for outline in self.outlines))

    def corners(self) -> tuple[Point, Point]:
        """The upper left and the lower right corner of the box around it."""
        xs, ys = zip(*(point for outline in self.outlines for point in outline), strict=True)
        return (min(xs), min(ys)), (max(xs), max(ys))


@dataclass(frozen=True)
class Mask:
    """Chosen pixels of a picture, as COCO encodes runs: by columns, beginning with pixels that are not chosen.

    Args:
        height, width: of the mask, which covers the whole picture at any scale.
        counts: lengths of the runs.
    """

    height: int
    width: int
    counts: tuple[int, ...]

    @classmethod
    def from_array(cls, chosen: NDArray[np.bool_]) -> "Mask":
        """Encode [height, width]."""
        values = np.asarray(chosen, dtype=bool).T.ravel()
        borders = np.flatnonzero(np.diff(values, prepend=False)).tolist()
        edges = [0, *borders, values.size]
        height, width = chosen.shape
        return cls(height, width, tuple(end - start for start, end in pairwise(edges)))

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """[height, width]"""
        values = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(values, self.counts).reshape(self.width, self.height).T

    def coverage(self, size: Size, canvas: Size) -> Coverage:
        """Its share of each cell of the canvas; a mask covers the picture at its own scale."""
        return cell_shares(self.array, canvas[::-1])

    def scaled(self, x: float, y: float) -> "Mask":
        """The mask itself, because it covers a picture of any size."""
        return self

    def turned(self, orientation: int, size: Size) -> "Mask":
        """From a stored picture to the upright one, by its EXIF orientation."""
        array = self.array.T if orientation in SIDEWAYS else self.array
        flipped_across, flipped_down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
        return Mask.from_array(array[:: -1 if flipped_down else 1, :: -1 if flipped_across else 1])

    def corners(self) -> tuple[Point, Point]:
        """The corners of the mask, not of its chosen pixels."""
        return (0, 0), (self.width, self.height)


Region: TypeAlias = Box | Polygon | Mask


def rotated_box(left: float, top: float, width: float, height: float, degrees: float, pivot: Point) -> Polygon:
    """A rectangle turned clockwise, as it looks on the screen, about `pivot`."""
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    return Polygon((rotated(corners, degrees, pivot),))


def ellipse(center: Point, radii: Point, degrees: float = 0, points: int = 96) -> Polygon:
    """An ellipse as a polygon of the same area, turned clockwise about its center."""
    angles = np.arange(points) * (2 * np.pi / points)
    scale = np.sqrt(2 * np.pi / (points * np.sin(2 * np.pi / points)))  # of the polygon to the area of the ellipse
    outline = [(center[0] + radii[0] * scale * np.cos(a), center[1] + radii[1] * scale * np.sin(a)) for a in angles]
    return Polygon((rotated(outline, degrees, center),))


def rotated(points: Sequence[Point], degrees: float, pivot: Point) -> tuple[Point, ...]:
    """Points turned clockwise, as it looks on the screen, about `pivot`."""
    cosine, sine = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    offsets = [(x - pivot[0], y - pivot[1]) for x, y in points]
    return tuple((pivot[0] + x * cosine - y * sine, pivot[1] + x * sine + y * cosine) for x, y in offsets)


def _inside(points: NDArray[np.floating], canvas: Size) -> Coverage:
    """The share of each cell inside one outline [points, 2], measured along horizontal lines."""
    heights = (np.arange(_LINES_PER_CELL * canvas[1]) + 0.5) / _LINES_PER_CELL
    crossings: list[list[float]] = [[] for _ in heights]
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, last = np.searchsorted(heights, sorted((y0, y1)))
        for line in range(first, last):
            crossings[line].append(x0 + (heights[line] - y0) / (y1 - y0) * (x1 - x0))
    shares = np.zeros((len(heights), canvas[0]))
    for line, found in enumerate(crossings):
        for interval in np.sort(found).reshape(-1, 2):
            shares[line] += _interval_shares(interval, canvas[0])
    return shares.reshape(canvas[1], _LINES_PER_CELL, canvas[0]).mean(axis=1).astype(np.float32)


def _turn(point: Point, orientation: int, size: Size) -> Point:
    return _TURNED[orientation](*point, *size)


def _interval_shares(interval: NDArray[np.floating], cells: int) -> NDArray[np.float64]:
    """[cells]: the share of each unit cell that an interval covers."""
    edges = np.arange(cells)
    return (np.minimum(edges + 1, interval[1]) - np.maximum(edges, interval[0])).clip(0, 1)
