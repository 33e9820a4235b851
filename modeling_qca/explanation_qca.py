"""What `pipeline.look` returns: a question about an image, its answers, relevance maps and relevant words."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from .overlay_qca import Box, kept_patches, overlay


@dataclass
class VisualExplanation:
    """
    Args:
        image: RGB and upright.
        question: one question.
        answers: `{"answer": str, "score": float}`, best first.
        relevance: `[M, rows, columns]` shares of the patches: one map a hop, or a single one with
            `method="gradient"`.
        words: the words of the question in order, each with the probability of the best answer that is lost when the
            word is left out; negative for a word that lowers it. See [`word_importance`].
        kept: `[rows, columns]` boolean, the patches that the token budget kept; `None` without a budget.
        box: (left, top, right, bottom) in pixels of the part of the image that the patch grid covers.
        method: of `relevance`. For a model without hops it is `"gradient"`, and with zoom `"relevance"`, whichever was
            asked for.
        windows: (left, top, right, bottom) in 0..1 of `box` of the windows that the question chose, with zoom.
    """

    image: Image.Image
    question: str
    answers: list[dict[str, Any]]
    relevance: torch.Tensor
    words: list[tuple[str, float]]
    kept: torch.Tensor | None
    box: Box
    method: str = "relevance"
    windows: list[Box] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """The question and, on a second line, the best answer with its score."""
        best = self.answers[0]
        return f"{self.question}\n{best['answer']} ({best['score']:.0%})"

    def important_words(self, count: int) -> str:
        """The `count` most important words with what the answer loses without each: `yellow -93%, shape -41%`."""
        first = sorted(self.words, key=lambda word: -word[1])[:count]
        return ", ".join(f"{word} {-lost:+.0%}" for word, lost in first)

    def fit(self, side: int) -> "VisualExplanation":
        """The same explanation on a resized image, whose longer side has `side` pixels."""
        scale = side / max(self.image.size)
        size = (round(self.image.width * scale), round(self.image.height * scale))
        left, top, right, bottom = (edge * scale for edge in self.box)
        image = self.image.resize(size, Image.Resampling.LANCZOS)
        return replace(self, image=image, box=(left, top, right, bottom))

    def overlay(self, index: int = -1, caption: bool = True) -> Image.Image:
        """Map number `index` on the image, with a legend and, with `caption`, the question and the answer. Frames show
        the windows of a model that zooms."""
        text = self.caption if caption else None
        return overlay(self.image, self.relevance[index], text, box=self.box, windows=self.windows)

    def kept_patches(self) -> Image.Image:
        """
        The image, grayed out where the token budget dropped patches.

        Raises:
            ValueError: for a model without a token budget.
        """
        if self.kept is None:
            raise ValueError("This model has no token budget, or one of all patches: it dropped nothing.")
        return kept_patches(self.image, self.kept, self.box)


__all__ = ["VisualExplanation"]
