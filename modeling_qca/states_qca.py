"""What the hops and the vision layers read: the states of the questions, the places of the patches, and layers.

B questions, L question tokens, N patches, D width of the hops.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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


class LayerProjections(NamedTuple):
    """
    The norm and the attention projections of a vision layer, for modules that read it from outside.

    They are functions, because accelerate moves a module that it finds among the arguments of another one, and weights
    on the disk cannot be moved.

    Args:
        norm, query, key, value: `[B, S, E] -> [B, S, E]`.
        head_dim: width of a head.
    """

    norm: Callable[[torch.Tensor], torch.Tensor]
    query: Callable[[torch.Tensor], torch.Tensor]
    key: Callable[[torch.Tensor], torch.Tensor]
    value: Callable[[torch.Tensor], torch.Tensor]
    head_dim: int

    @classmethod
    def of(cls, norm: Any, attention: Any) -> "LayerProjections":
        """Of a layer with this `norm` before its `attention`."""
        query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
        return cls(norm.__call__, query.__call__, key.__call__, value.__call__, attention.head_dim)


__all__ = ["LayerProjections", "PatchPlaces", "QuestionStates"]
