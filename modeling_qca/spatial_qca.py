"""Where the hops looked, as the answer head reads it. B questions, T hops, H heads, N patches, D width."""

import torch
from torch import nn

from .boxes_qca import centers
from .configuration_qca import QCAConfig

SCALE = 4  # coordinates from -1 to 1 become eighths of the picture's sides, numbers as large as other states


class UnitLinear(nn.Linear):
    """A layer whose new weights keep the scale of its input, whatever `config.initializer_range` is."""


class SpatialFusion(nn.Module):
    """
    The elementwise product of the query and of where the hops looked, both projected (low-rank bilinear pooling,
    Kim et al. 2017).

    "Is the car to the left of the door" and "is the car to the right of the door" have opposite answers where the hops
    look at the same. A layer over evidence and query beside each other learns that from many questions only.
    """

    def __init__(self, config: QCAConfig):
        super().__init__()
        size = config.hidden_size
        self.place_proj = UnitLinear(4 * config.num_attention_layers - 2, size)
        self.query_norm = nn.LayerNorm(size)
        self.query_proj = UnitLinear(size, size)

    def forward(self, query: torch.Tensor, relevance: torch.Tensor, patch_boxes: torch.Tensor) -> torch.Tensor:
        """
        Args:
            query: `[B, D]`.
            relevance: `[B, T, H, N]`.
            patch_boxes: `[B, N, 4]`, see [`QCAModelOutput`].

        Returns:
            `[B, D]`, of the centers of the hops' maps, and of the steps from one center to the next.
        """
        where = relevance.mean(dim=2) @ centers(patch_boxes).to(relevance)  # [B, T, 2]
        places = SCALE * torch.cat([where, where.diff(dim=1)], dim=1).flatten(1)
        return self.place_proj(places.to(query)) * self.query_proj(self.query_norm(query))


__all__ = ["SpatialFusion", "UnitLinear"]
