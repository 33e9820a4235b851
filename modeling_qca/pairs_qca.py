"""Pairs of an image and a question: which image and which question each row of a batch is about.

I images, U questions as text, B pairs. Images and texts are encoded once; only the pairs repeat them.
"""

from typing import NamedTuple

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

STACKED = (
    "Stacking processor outputs keeps each `image_index` at 0: leave `image_index` out if question b is about image "
    "b, or number the images of the whole batch."
)


class ImageIndex(NamedTuple):
    """
    The image of each pair.

    Args:
        rows: `[B]` row of the image.
        group_positions: `[B]` position of each pair when the pairs of one image lie together, with
            `max_questions_per_image` positions an image. `None` where copies of the image cost less than the padding.
        max_questions_per_image: the largest number of pairs with the same image.
    """

    rows: torch.Tensor
    group_positions: torch.Tensor | None = None
    max_questions_per_image: int = 0

    @classmethod
    def of(cls, rows: torch.Tensor, images: int) -> "ImageIndex | None":
        """Index with group positions where they save work, or `None` if pair b is about image b. Waits for a GPU.

        Raises:
            ValueError: if a row is not one of `images`.
        """
        if torch.compiler.is_compiling():
            return cls(rows)
        values, counts, places = rows.tolist(), [0] * images, []
        _check_range(values, images, "image", of="question")
        for image in values:
            places.append((image, counts[image]))
            counts[image] += 1
        most = max(counts)
        if values == list(range(images)):
            return None
        if images * most > 4 * len(values):
            return cls(rows)
        return cls(rows, rows.new_tensor([image * most + before for image, before in places]), most)


def pair_images(
    image_index: torch.Tensor | None, images: int, pairs: int, training: bool, cached: bool
) -> ImageIndex | None:
    """
    The image of each pair; `None` if pair b is about image b.

    Args:
        image_index: `[B]`, may be left out if there are as many images as pairs.
        training: whether an image without a question is an error.
        cached: whether the images were encoded before. Where they are encoded now, one without a question gives a
            warning.

    Raises:
        ValueError: if images and questions do not fit together.
    """
    if image_index is None:
        if images != pairs:
            raise ValueError(f"{pairs} questions but {images} images: pass `image_index`, the image of each question.")
        return None
    if image_index.shape != (pairs,):
        raise ValueError(
            f"`image_index` must hold one image for each of {pairs} questions, got {tuple(image_index.shape)}."
        )
    index = ImageIndex.of(image_index, images)
    if index is not None and (training or not cached) and not torch.compiler.is_compiling():
        _report_unused(index, images, training)
    return index


def pair_questions(question_index: torch.Tensor | None, questions: int) -> torch.Tensor | None:
    """
    The question of each pair, `[B]`; `None` if pair b has question b.

    Raises:
        ValueError: if `question_index` does not name one of `questions` for each pair.
    """
    if question_index is None:
        return None
    if question_index.dim() != 1:
        raise ValueError(f"`question_index` must be [pairs], got {tuple(question_index.shape)}.")
    if torch.compiler.is_compiling():
        return question_index
    values = question_index.tolist()
    _check_range(values, questions, "question", of="pair")
    return None if values == list(range(questions)) else question_index


def image_matmul(left: torch.Tensor, right: torch.Tensor, image_index: ImageIndex | None) -> torch.Tensor:
    """
    `left[b] @ right[image_index.rows[b]]`: `[B, M, K] x [I, K, N] -> [B, M, N]`.

    All questions about an image share one product with it. Giving each its own copy of the image's patches costs more
    than the product, so that is done only where a few images have most of the questions.
    """
    if image_index is None or image_index.group_positions is None:
        return torch.matmul(left, expand_to_questions(right, image_index))
    per_image = image_index.max_questions_per_image
    images, rows, places = right.shape[0], left.shape[1], right.shape[0] * per_image
    grouped = left.new_zeros(places, *left.shape[1:]).index_copy(0, image_index.group_positions, left)
    products = torch.matmul(grouped.view(images, per_image * rows, -1), right)
    return products.view(places, rows, -1).index_select(0, image_index.group_positions)


def expand_to_questions(states: torch.Tensor, image_index: ImageIndex | None) -> torch.Tensor:
    """`[I, ...] -> [B, ...]`: the states of each question's image."""
    return states if image_index is None else states.index_select(0, image_index.rows.to(states.device))


def _report_unused(index: ImageIndex, images: int, training: bool):
    unused = sorted(set(range(images)) - set(index.rows.tolist()))
    if not unused:
        return
    if training:
        raise ValueError(
            f"No question of the batch is about image {unused[0]} ({len(unused)} of {images} images are unused). "
            + STACKED
        )
    logger.warning_once(f"A batch has images that no question is about. {STACKED}")


def _check_range(values: list[int], count: int, kind: str, of: str):
    for number, row in enumerate(values):
        if not 0 <= row < count:
            raise ValueError(
                f"`{kind}_index` of {of} {number} is {row}, but there are {count} {kind}s (0 is the first)."
            )


__all__ = ["ImageIndex", "expand_to_questions", "image_matmul", "pair_images", "pair_questions"]
