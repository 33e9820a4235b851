"""From the marked objects of a picture and a question to one relevance map for each hop."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.relevance_maps import Grid, cell_shares
from .marked_objects import MarkedObject
from .object_matching import LabelMatcher
from .regions import Coverage, Size

LONGEST_SIDE = 512  # cells of the canvas on which objects are united, at most one for each pixel


class HopObjects(NamedTuple):
    """What one hop should attend to: the words that name it, and its objects; none if the picture has none."""

    words: str
    objects: tuple[MarkedObject, ...]


def objects_by_hop(
    question: str, question_id: str, objects: Sequence[MarkedObject], matcher: LabelMatcher
) -> list[HopObjects]:
    """What the question asks about, in the order of the hops.

    All objects of the picture that the question names serve it. Those that are marked for this question replace the
    others of their label. They replace all others if one states a hop or lacks a label, or if the question names none
    of them. The label named first is the first hop, unless its objects state a hop. A label that the question names
    and the picture does not have gives a hop without objects.

    Args:
        question: its text.
        question_id: its identifier in the table.
        objects: those of its picture.
        matcher: of all labels of the data set.

    Returns:
        An empty list if no hop has an object.
    """
    own = [item for item in objects if item.question_id == question_id]
    shared = [item for item in objects if item.question_id is None]
    mentions = matcher.mentions(question)
    by_words = all(item.label and item.hop is None for item in own)
    if own and not (by_words and any(item.label in mention.labels for item in own for mention in mentions)):
        return _filled((item.hop or 1, HopObjects(item.label, (item,))) for item in own)
    named: list[tuple[int, HopObjects]] = []
    for order, mention in enumerate(mentions, start=1):
        mine, others = (tuple(item for item in of if item.label in mention.labels) for of in (own, shared))
        found = mine or others
        stated = {item.hop for item in found if item.hop is not None}
        for hop in sorted(stated) or [order]:
            members = tuple(item for item in found if item.hop in (None, hop))
            named.append((hop, HopObjects(mention.words, members)))
    return _filled(named) if any(hop.objects for _, hop in named) else []


def draw_hop_maps(hops: Sequence[HopObjects], size: Size, grid: Grid, count: int) -> NDArray[np.float32]:
    """[count, rows, columns]: the share of each cell that the objects of each hop cover.

    With fewer hops than `count`, the last one is repeated. With more, the last map holds the rest.

    Args:
        hops: see `objects_by_hop`; a hop without objects has a map of zeros, which training leaves out.
        size: width and height of the upright picture, in pixels.
        grid: rows and columns.
        count: number of maps.
    """
    groups = [hop.objects for hop in hops]
    if len(groups) > count:
        groups = [*groups[: count - 1], tuple(item for group in groups[count - 1 :] for item in group)]
    maps = [draw_objects(group, size, grid) for group in groups]
    return np.stack([*maps, *maps[-1:] * (count - len(maps))])


@lru_cache(maxsize=16384)  # questions about a picture name the same objects
def draw_objects(objects: tuple[MarkedObject, ...], size: Size, grid: Grid) -> NDArray[np.float32]:
    """[rows, columns]: the share of each cell that the union of the objects covers, as a mean over annotators."""
    scale = min(1.0, LONGEST_SIDE / max(size))
    canvas = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    unions: dict[str, Coverage] = {}
    for item in objects:
        covered = item.region.coverage(size, canvas)
        unions[item.annotator] = np.maximum(unions.get(item.annotator, 0), covered)
    if not unions:
        return np.zeros(grid, dtype=np.float32)
    return np.mean([cell_shares(union, grid) for union in unions.values()], axis=0)


def _filled(numbered: Iterable[tuple[int, HopObjects]]) -> list[HopObjects]:
    """The hops from 1 to the last; those of one number are one, and a missing one has no objects."""
    hops: dict[int, HopObjects] = {}
    for number, hop in numbered:
        known = hops.get(number, HopObjects("", ()))
        words = ", ".join(filter(None, dict.fromkeys((*known.words.split(", "), hop.words))))
        hops[number] = HopObjects(words, known.objects + hop.objects)
    return [hops.get(number, HopObjects("", ())) for number in range(1, max(hops) + 1)]
