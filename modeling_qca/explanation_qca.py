"""A look: one question about one image, the answers, where the model looked and which words it read."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from .overlay_qca import Box, kept_patches, overlay


@dataclass
class Look:
    """
    Args:
        image: RGB and upright.
        question: one.
        answers: `{"answer": str, "score": float}`, best first.
        relevance: `[M, rows, columns]` shares of the patches, one map a hop, or a single one by gradient.
        words: for each map, or once for all of them, the question's words with their shares; empty where the method
            says nothing about words.
        kept: `[rows, columns]` boolean, the patches that the token budget kept; `None` without a budget.
        box: (left, top, right, bottom) in pixels of the part of the image that the grid covers.
    """

    image: Image.Image
    question: str
    answers: list[dict[str, Any]]
    relevance: torch.Tensor
    words: list[list[tuple[str, float]]]
    kept: torch.Tensor | None
    box: Box

    @property
    def caption(self) -> str:
        """The question and, on a line of its own, the best answer with its score."""
        best = self.answers[0]
        return f"{self.question}\n{best['answer']} ({best['score']:.0%})"

    def fit(self, side: int) -> "Look":
        """The same look drawn on the image at another size: its longer side has `side` pixels."""
        scale = side / max(self.image.size)
        size = (round(self.image.width * scale), round(self.image.height * scale))
        left, top, right, bottom = (edge * scale for edge in self.box)
        image = self.image.resize(size, Image.Resampling.LANCZOS)
        return replace(self, image=image, box=(left, top, right, bottom))

    def overlay(self, index: int = -1, caption: bool = True) -> Image.Image:
        """Map number `index` on the image, with a legend and, with `caption`, the question and the answer."""
        return overlay(self.image, self.relevance[index], self.caption if caption else None, box=self.box)

    def kept_patches(self) -> Image.Image:
        """The image with what the token budget dropped grayed out."""
        if self.kept is None:
            raise ValueError("This model has no token budget, or one of all patches: nothing was dropped.")
        return kept_patches(self.image, self.kept, self.box)


def seen_box(image_processor: Any, width: int, height: int) -> Box:
    """
    The part of a `width` x `height` image that the model is shown: all of it, unless the image processor crops.

    Returns:
        (left, top, right, bottom) in pixels; beyond the image where it is padded to the size of the crop.
    """
    if not image_processor.do_center_crop:
        return 0.0, 0.0, float(width), float(height)
    size, crop, across, down = image_processor.size, image_processor.crop_size, 1.0, 1.0
    if image_processor.do_resize and size.shortest_edge:
        across = down = size.shortest_edge / min(width, height)
    elif image_processor.do_resize:
        across, down = size.width / width, size.height / height
    left, top = (width - crop.width / across) / 2, (height - crop.height / down) / 2
    return left, top, width - left, height - top


__all__ = ["Look", "seen_box"]
