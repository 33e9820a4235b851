"""What one split holds: rows, images, answers, repeated and conflicting rows, relevance maps."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.answers import AnswerRule, answer_scores
from ..data.vocabulary import vocabulary_reach
from .question_only import question_key

ROWS_AT_ONCE = 100  # a map may have as many values as the image has pixels


@dataclass(frozen=True)
class SplitCounts:
    """
    Args:
        rows: number of rows.
        images: number of image ids.
        copied_images: number of images whose content another image id has already.
        answers: number of different answers.
        unanswered: number of rows without an answer.
        repeated: number of rows whose image and question an earlier row has.
        conflicting: number of pairs of an image and a question with rows of which no answer is the best of all.
        mapped: number of rows with a relevance map that is not all zeros.
        coverage: share of the rows with an answer in the vocabulary.
        ceiling: the best accuracy that a model with this vocabulary can have.
    """

    rows: int
    images: int
    copied_images: int
    answers: int
    unanswered: int
    repeated: int
    conflicting: int
    mapped: int
    coverage: float
    ceiling: float


def count_split(
    rows: datasets.Dataset, digests: Sequence[str], vocabulary: Iterable[str], rule: AnswerRule, normalize: bool
) -> SplitCounts:
    """
    Args:
        rows: rows of the schema, images not decoded.
        digests: the digest of the image of each row, see [`row_digests`].
        vocabulary, rule, normalize: of [`vocabulary_reach`].
    """
    scores = [answer_scores(answers, rule, normalize) for answers in rows["answers"]]
    pairs: dict[tuple[str, str], list[frozenset[str]]] = defaultdict(list)
    for digest, question, scored in zip(digests, rows["question"], scores, strict=True):
        pairs[digest, question_key(question)].append(_best(scored))
    reach = vocabulary_reach(rows["answers"], vocabulary, rule, normalize)
    images = len(set(rows["image_id"]))
    return SplitCounts(
        rows=len(rows),
        images=images,
        copied_images=images - len(set(digests)),
        answers=len({answer for scored in scores for answer in scored}),
        unanswered=sum(not scored for scored in scores),
        repeated=len(rows) - len(pairs),
        conflicting=sum(_conflict(answers) for answers in pairs.values()),
        mapped=_count_maps(rows),
        coverage=reach["coverage"],
        ceiling=reach["oracle_ceiling"],
    )


def _best(scored: Mapping[str, float]) -> frozenset[str]:
    """The answers with the highest score of a row."""
    highest = max(scored.values(), default=0.0)
    return frozenset(answer for answer, score in scored.items() if score == highest)


def _conflict(answers: list[frozenset[str]]) -> bool:
    given = [best for best in answers if best]
    return bool(given) and not frozenset.intersection(*given)


def _count_maps(rows: datasets.Dataset) -> int:
    """Number of rows whose maps have a value above 0. Training leaves out maps of zeros."""
    batches: Any = rows.select_columns("relevance").with_format("arrow").iter(ROWS_AT_ONCE)
    return sum(_count_positive(batch["relevance"].combine_chunks()) for batch in batches)


def _count_positive(nested: pa.ListArray) -> int:
    """Number of entries of lists of any depth that hold a value above 0."""
    entry = np.arange(len(nested))
    while pa.types.is_list(nested.type):
        entry = entry[pc.list_parent_indices(nested).to_numpy()]
        nested = pc.list_flatten(nested)
    return len(np.unique(entry[nested.to_numpy(zero_copy_only=False) > 0]))
