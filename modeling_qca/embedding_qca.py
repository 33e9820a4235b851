"""Projections of question and patch features into the width of the hops.

B questions, I images, L question tokens, N patches, Dt and E the encoders' widths, D the hops' width.
"""

import torch
from torch import nn

from .attention_qca import masked_mean
from .configuration_qca import QCAConfig
from .states_qca import QuestionStates


class QueryEmbedder(nn.Module):
    """Projects the question tokens, and the query pooled from them, into the width of the hops."""

    def __init__(self, config: QCAConfig):
        super().__init__()
        self.pooling = config.question_pooling
        self.projection = nn.Linear(config.text_config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.activation = nn.GELU()

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> QuestionStates:
        """`states` `[B, L, Dt]` and boolean `mask` `[B, L]`, padded on either side."""
        return QuestionStates(self._project(self.pool(states, mask)), self._project(states), mask)

    def _project(self, states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.projection(states)))

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`states` `[B, L, Dt]` and boolean `mask` `[B, L]` -> `[B, Dt]`, by `question_pooling`"""
        if self.pooling == "mean":
            return masked_mean(states, mask, dim=1)
        # the first or the last token that is not padding
        order = (
            mask.to(torch.int8) if self.pooling == "cls" else mask * torch.arange(mask.shape[1], device=mask.device)
        )
        position = order.argmax(dim=1)
        return states.gather(1, position[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)


class PatchEmbedder(nn.Module):
    """Projects patch features into the width of the hops, and adds their position in the image."""

    def __init__(self, config: QCAConfig):
        super().__init__()
        size, width = config.hidden_size, len(config.vision_feature_layers or [0]) * config.vision_width
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, size)
        self.position = nn.Sequential(nn.Linear(2, size), nn.GELU(), nn.Linear(size, size))
        self.update = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)
        )
        self.dropout = nn.Dropout(config.classifier_dropout)

    def forward(self, patches: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """`[I, N, E]` (E for each of `vision_feature_layers`) and `[N, 2]` or `[I, N, 2]` -> `[I, N, D]`"""
        states = self._project(patches) + self.position(coordinates.to(patches.dtype))
        return states + self.dropout(self.update(states))

    def _project(self, patches: torch.Tensor) -> torch.Tensor:
        """`projection(norm(patches))`. In training the scale and shift of the norm are folded into the projection, so
        that no gradient of the size of the features is stored. An adapter or a quantized layer in place of the
        projection is called as it is."""
        if not self.training or type(self.projection) is not nn.Linear or type(self.norm) is not nn.LayerNorm:
            return self.projection(self.norm(patches))
        normed = nn.functional.layer_norm(patches, self.norm.normalized_shape, eps=self.norm.eps)
        bias = nn.functional.linear(self.norm.bias, self.projection.weight, self.projection.bias)
        return nn.functional.linear(normed, self.projection.weight * self.norm.weight, bias)


def grid_coordinates(grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(y, x) of the centers of a grid's patches in raster order, from -1 to 1: `[N, 2]`."""
    rows, columns = (2 * (torch.arange(length, device=device) + 0.5) / length - 1 for length in grid)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


__all__ = ["PatchEmbedder", "QueryEmbedder", "grid_coordinates"]
