"""Relevance maps for questions that have none, from the regions of the objects that they name."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from ...data.answers import majority_answer
from ...data.relevance_maps import Grid, cell_shares
from ..object_matching import PHOTO, LabelMatcher, Mention, split_words
from .question_words import object_words
from .word_regions import learn_word_regions, principal_components, shown_labels

logger = logging.getLogger(__name__)


def add_word_maps(
    rows: datasets.Dataset,
    words: Sequence[str],
    read_features: Callable[[list[str]], torch.Tensor],
    grid: Grid,
    hops: int,
) -> datasets.Dataset:
    """
    `rows` with maps where they have none: the regions of the objects that a question names, in its order.

    The maps that rows have stay. Their hops without a target are filled if all objects that the question names are in
    `words`; otherwise nobody knows which hop is whose. With one such object and equal maps, they are also its mark.

    Args:
        rows: training rows. Their questions and answers tell what a picture shows.
        words: names of objects.
        read_features: gives [I, P + N, E], prefix tokens first, of the images with some ids.
        grid: rows and columns of the N patches.
        hops: number of maps of a question.

    Raises:
        ValueError: no row without a map has a question that names one of the words.
    """
    asked, given = _AskedRows(rows, sorted(set(words))), rows["relevance"][:]
    if not any(
        asked.shown[picture, labels].any() for picture, labels in zip(asked.pictures, asked.named, strict=True)
    ):
        raise ValueError(
            f"`object_words`: none of {len(rows):,} training questions names {', '.join(asked.words[:10])}: list the "
            "objects that your questions name"
        )
    marks = _certain_marks(asked, given, grid)
    patches = principal_components(read_features(asked.images)[:, -grid[0] * grid[1] :].float())
    learned = learn_word_regions(patches, asked.shown, marks) * asked.shown[..., None]
    filled: list[Any] = []
    for picture, labels, complete, maps in zip(asked.pictures, asked.named, asked.complete, given, strict=True):
        regions = [marks.get((picture, label), learned[picture, label]) for label in labels]
        certain = complete or not np.any(maps)
        filled.append(_fill(maps, regions, grid, hops) if regions and certain else maps)
    before, after = (sum(maps is not None for maps in of) for of in (given, filled))
    logger.warning(
        "`object_words`: %d of %d training questions get relevance maps learned from the words of all questions; %d "
        "have their own",
        *(after - before, len(rows), before),
    )
    return rows.remove_columns("relevance").add_column("relevance", filled, feature=rows.features["relevance"])


class _AskedRows:
    """What the questions of rows name, and which labels the pictures are said to show.

    Attributes:
        words: the labels.
        images: ids of the images.
        pictures: number of the image of each row.
        named: numbers of the labels that each question names, in its order.
        complete: whether the question names no other object.
        shown: [I, K], see `shown_labels`.
    """

    def __init__(self, rows: datasets.Dataset, words: list[str]):
        self.words, matcher = words, LabelMatcher(words)
        ids, questions = rows["image_id"][:], rows["question"][:]
        self.images = sorted(set(ids))
        number = {image: index for index, image in enumerate(self.images)}
        self.pictures = [number[image] for image in ids]
        mentions = [matcher.mentions(question) for question in questions]
        self.named = [
            [words.index(label) for mention in found for label in sorted(mention.labels)] for found in mentions
        ]
        every = LabelMatcher({*words, *PHOTO})  # a picture on the wall is no word of `object_words`
        self.complete = [
            len(every.mentions(question)) == len(found) and _names_nothing_else(question, found)
            for question, found in zip(questions, mentions, strict=True)
        ]
        answers = [majority_answer(of, normalize=False) or "" for of in rows["answers"][:]]
        asked = zip(self.pictures, questions, answers, strict=True)
        self.shown = shown_labels(asked, len(self.images), words, matcher)


def _names_nothing_else(question: str, mentions: Iterable[Mention]) -> bool:
    named = {word for mention in mentions for word in mention.words.split()}
    return named.issuperset(split_words(" ".join(object_words(question))))


def _certain_marks(asked: _AskedRows, given: Sequence[Any], grid: Grid) -> dict[tuple[int, int], NDArray[np.float32]]:
    """(picture, label) -> [N] from the maps of questions that name that object alone. Its map is that of each hop."""
    marks = {}
    for picture, labels, complete, maps in zip(asked.pictures, asked.named, asked.complete, given, strict=True):
        if complete and len(labels) == 1 and np.any(maps) and all(one == maps[0] for one in maps):
            marks[picture, labels[0]] = cell_shares(np.asarray(maps[0], np.float32), grid).ravel()
    return marks


def _fill(maps: Any, regions: list[NDArray[np.float32]], grid: Grid, hops: int) -> Any:
    """The maps of a row, with regions [N] of the objects it names in the hops without a target; None without any.

    With fewer regions than hops, the last one is repeated. With more, the last hop has the rest.
    """
    if len(regions) > hops:
        regions = [*regions[: hops - 1], np.max(regions[hops - 1 :], axis=0)]
    drawn = np.stack([*regions, *regions[-1:] * (hops - len(regions))]).reshape(hops, *grid)
    if not maps:
        return drawn.tolist() if drawn.any() else None
    if len(maps) != hops:
        return maps
    given = np.stack([cell_shares(np.asarray(one, np.float32), grid) for one in maps])
    return np.where(given.any(axis=(1, 2), keepdims=True), given, drawn).tolist()
