"""What the hops and the vision layers read: the states of the questions, and the places of the patches.

B questions, L question tokens, N patches, D width of the hops.
"""

from typing import NamedTuple

import torch

from .pairs_qca import ImageIndex


class QuestionStates(NamedTuple):
    """
    Questions in the width of the hops.

    Args:
        query: `[B, D]` pooled question.
        tokens: `[B, L, D]` question tokens.
        mask: `[B, L]` boolean, `False` on padding.
    """

    query: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor

    def select(self, question_index: torch.Tensor | None) -> "QuestionStates":
        """The states of each pair's question; `None` stands for one question a pair."""
        if question_index is None:
            return self
        return QuestionStates(*(states.index_select(0, question_index.to(states.device)) for states in self))


class PatchPlaces(NamedTuple):
    """
    Which patches a question may read, and where they are.

    Args:
        coordinates: `[N, 2]` or `[B, N, 2]` (y, x) of the patches, from -1 to 1.
        image_index: the row of patches of each question; `None` if question b reads patches b.
        mask: `[B, N]` boolean, `False` on patches that may not be read; `None` if all may.
    """

    coordinates: torch.Tensor
    image_index: ImageIndex | None = None
    mask: torch.Tensor | None = None


__all__ = ["PatchPlaces", "QuestionStates"]
