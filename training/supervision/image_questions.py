"""The questions about one picture that its label map answers clearly, with the target regions of two hops."""

from collections.abc import Iterator, Mapping
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .class_counts import ClassCounts, Region
from .label_maps import UNLABELED

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

HALVES = ("left", "right", "top", "bottom")
NINTHS = tuple(
    "-".join(word for word in (vertical, horizontal) if word) or "center"
    for vertical in ("top", "", "bottom")
    for horizontal in ("left", "", "right")
)


class RegionTarget(NamedTuple):
    """Target region of a hop: pixels of class `label` (None: any class) in `region` (None: the whole picture)."""

    label: int | None = None
    region: Region | None = None

    def mask(self, labels: NDArray[np.integer]) -> NDArray[np.bool_]:
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


def image_questions(image_id: str, labels: NDArray[np.integer], names: Mapping[int, str]) -> Iterator[Question]:
    """The questions that the label map [height, width] of one image answers clearly."""
    counts = ClassCounts(labels, max(names) + 1)
    areas = counts.shares()
    large = [label for label in names if label != UNLABELED and names[label] and areas[label] >= CLASS_AREA]
    masks = {label: labels == label for label in large}
    centers = {label: center_of_mass(mask) for label, mask in masks.items()}
    yield from _exists(image_id, counts, labels.shape, names)
    yield from _where(image_id, counts, labels.shape, names)
    for first, second in permutations(large, 2):
        yield from _placed(image_id, first, second, centers, names)
    for first, second in combinations(sorted(large, key=lambda label: names[label]), 2):
        if max(areas[first], areas[second]) >= AREA_RATIO * min(areas[first], areas[second]):
            text = f"which is bigger the {names[first]} or the {names[second]}"
            answer = names[first if areas[first] > areas[second] else second]
            yield Question(image_id, "bigger", text, answer, (RegionTarget(first), RegionTarget(second)))
    for label in large:
        if count := _count_regions(masks[label]):
            text = f"how many separate regions of {names[label]} are in the picture"
            yield Question(image_id, "count", text, str(count), (RegionTarget(label), RegionTarget(label)))


def _exists(
    image_id: str, counts: ClassCounts, shape: tuple[int, ...], names: Mapping[int, str]
) -> Iterator[Question]:
    for half in HALVES:
        region = half_region(half, shape)
        shares = counts.shares(region)
        for label, name in names.items():
            if label == UNLABELED or not name:
                continue
            text = f"is there a {name} in the {half} half of the picture"
            if shares[label] >= REGION_PRESENCE:
                yield Question(image_id, "exists", text, "yes", (RegionTarget(label, region),) * 2)
            elif shares[label] == 0 and shares[UNLABELED] <= 1 - REGION_LABELED:
                yield Question(image_id, "exists", text, "no", (RegionTarget(region=region),) * 2)


def _where(image_id: str, counts: ClassCounts, shape: tuple[int, ...], names: Mapping[int, str]) -> Iterator[Question]:
    height, width = shape
    for index, place in enumerate(NINTHS):
        row, column = divmod(index, 3)
        region = (_third(row, height), _third(column, width))
        shares = counts.shares(region)
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
    down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1)  # the rest of the picture has no region
    regions, _ = ndimage.label(mask[box], structure=np.ones((3, 3)))
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
