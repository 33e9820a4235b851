"""Attention rollout: the image patches in each token of the last vision layer (Abnar & Zuidema 2020).

B questions, P prefix tokens, N patches, S = P + N image tokens, K patches the token budget kept, S' image tokens of a
layer (P + K + 1 from the budget on, else S), T hops, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig


def rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    r"""
    Attention rollout \\(\tilde A_l = \frac{1}{2}(A_l + I) \tilde A_{l-1}\\) (Abnar & Zuidema 2020, eq. 1).

    Args:
        attentions: of one layer after the other, `[B, heads, S, S]`; heads are averaged, rows normalized.

    Returns:
        `[B, S, S]`: row i has the share of each token of the first layer in token i of the last layer.
    """
    joint: torch.Tensor | None = None
    for attention in attentions:
        weights = attention.float().mean(dim=1)
        weights = weights + torch.eye(weights.shape[-1], device=weights.device)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        joint = weights if joint is None else weights @ joint
    if joint is None:
        raise ValueError("`rollout` needs the attention of at least one layer.")
    return joint


@dataclass
class ImageTokens:
    """
    The tokens of the vision layers, and their shares of image tokens after the token budget.

    A kept patch is one image token. The merged token is the weighted mean of the dropped patches, so its relevance
    goes back to them with the same weights.
    """

    identity: torch.Tensor  # [B, S, S]
    prefix: int
    shared_layers: int  # layers before the first that depends on the question
    budget_layer: int = 0  # the first layer after the token budget
    made_of: torch.Tensor | None = None  # [B, P + K + 1, S]; None without dropped patches
    positions: torch.Tensor | None = None  # [B, K]

    @classmethod
    def of(cls, config: PreTrainedConfig, outputs: Any) -> "ImageTokens":
        """
        Args:
            outputs: of a QCA model with `output_attentions=True`.

        Raises:
            ValueError: for an encoder in which not every token attends to every token.
        """
        attentions, (questions, _, _, patches) = outputs.vision_attentions, outputs.relevance.shape
        if not attentions:
            raise ValueError(
                f"A {config.vision_config.model_type} has no attention that rollout and gradient could follow. Use "
                '`method="relevance"`.'
            )
        before, after = attentions[0].shape[-1], attentions[-1].shape[-1]
        if before < patches or any(weights.shape[-1] != weights.shape[-2] for weights in attentions):
            raise ValueError(
                f"Rollout and gradient need layers in which every token attends to every token; a "
                f'{config.vision_config.model_type} has others. Use `method="relevance"`.'
            )
        first = config.first_question_layer
        tokens = cls(
            identity=torch.eye(before, device=outputs.relevance.device).expand(questions, -1, -1),
            prefix=before - patches,
            shared_layers=len(attentions) if first is None else first,
        )
        if outputs.patch_mask is not None:
            tokens._drop(outputs, config.token_budget_layer, count=after - tokens.prefix - 1)
        return tokens

    def _drop(self, outputs: Any, layer: int, count: int):
        kept = outputs.patch_mask
        dropped = outputs.budget_relevance * ~kept
        merged = dropped / dropped.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(dropped.dtype).tiny)
        merged = nn.functional.pad(merged, (self.prefix, 0))[:, None]  # [B, 1, S]
        self.budget_layer = layer
        self.positions = (~kept).to(torch.int8).argsort(dim=-1, stable=True)[:, :count]  # as the budget gathers them
        rows = (self.positions + self.prefix)[..., None].expand(-1, -1, self.identity.shape[-1])
        self.made_of = torch.cat([self.identity[:, : self.prefix], self.identity.gather(1, rows), merged], dim=1)

    def at_layer(self, index: int, relevancy: torch.Tensor) -> torch.Tensor:
        """`relevancy` `[B, S, *]` of the tokens before layer `index`, for the tokens it sees: `[B, S', *]`."""
        return relevancy if self.made_of is None or index != self.budget_layer else self.made_of @ relevancy

    def residual(self, index: int) -> torch.Tensor:
        """The shares of image tokens in the tokens of layer `index` without any attention, `[B, S', S]`."""
        return self.identity if self.made_of is None or index < self.budget_layer else self.made_of

    def patches(self, states: torch.Tensor) -> torch.Tensor:
        """The rows `[B, N or K, *]` of the last layer's `[B, S', *]` that the hops read."""
        count = self.identity.shape[-1] - self.prefix if self.positions is None else self.positions.shape[1]
        return states[:, self.prefix : self.prefix + count]

    def of_patches(self, values: torch.Tensor) -> torch.Tensor:
        """`values` `[B, *, *, N]` on the grid, at the patches that the hops read: `[B, *, *, N or K]`."""
        if self.positions is None:
            return values
        return values.gather(-1, self.positions[:, None, None].expand(*values.shape[:3], -1))


def rollout_relevance(config: PreTrainedConfig, outputs: Any, image_index: torch.Tensor) -> torch.Tensor:
    """
    The relevance maps of the hops, followed back from the patches of the last layer to those of the image.

    Conditioning adds nothing, because it reads the question.

    Args:
        outputs: of a QCA model with `output_attentions=True`.
        image_index: `[B]` image of each question.

    Returns:
        `[B, T, H, N]`. The share of the prefix tokens is left out, because they have no place in the image.
    """
    tokens = ImageTokens.of(config, outputs)
    shared, attentions = tokens.shared_layers, outputs.vision_attentions
    if shared == 0:
        joint = tokens.identity
    elif config.vision_feature_layers is not None:  # side by side in equal shares
        joint = torch.stack([rollout(attentions[:layer]) for layer in config.vision_feature_layers]).mean(dim=0)
        joint = joint[image_index]
    else:
        joint = rollout(attentions[:shared])[image_index]
    for index, attention in enumerate(attentions[shared:], start=shared):
        joint = rollout([attention]) @ tokens.at_layer(index, joint)  # [B, S', S]
    relevance = tokens.of_patches(outputs.relevance) @ tokens.patches(joint)[:, None]  # [B, T, H, S]
    return relevance[..., tokens.prefix :]


__all__ = ["ImageTokens", "rollout", "rollout_relevance"]
