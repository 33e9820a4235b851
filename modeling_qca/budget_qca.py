"""Token budget: the number of patches that the later vision layers keep.

B questions, P prefix tokens (CLS, registers), N patches, K kept patches, D width of the hops, E width of the vision
encoder.
"""

from typing import Any

import torch
from torch import nn

from .attention_qca import masked_softmax
from .configuration_qca import QCAConfig
from .states_qca import LayerProjections


class TokenBudget(nn.Module):
    """
    Keeps the patches that are most relevant to the question. The choice depends on the sample alone.

    The kept patches are gathered in raster order, in training too. One more token stands for the dropped patches:
    their relevance-weighted mean (EViT, Liang et al. 2022, eq. 4). The learned relevance gets a gradient through that
    mean and through the kept patches, straight-through (Bengio et al. 2013): each is multiplied by its relevance
    divided by the same number without a gradient.
    """

    def __init__(self, config: QCAConfig):
        super().__init__()
        budget = config.token_budget
        self.adaptive = isinstance(budget, list)
        self.fewest, self.most = budget if isinstance(budget, list) else [budget] * 2
        self.mass = config.token_budget_mass
        self.scorer = config.token_budget_scorer
        self.spread = config.token_budget_selection == "spread"
        if self.scorer == "learned":
            vision_size = config.vision_config.hidden_size
            self.norm = nn.LayerNorm(vision_size)
            self.q_proj = nn.Linear(config.hidden_size, vision_size)

    def forward(
        self,
        tokens: torch.Tensor,
        prefix: int,
        question: torch.Tensor,
        layer: LayerProjections,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        r"""
        Probabilities `[B, N]` in float32 that rank the patches.

        `learned`: \\(\mathrm{softmax}_i((W q + b) \cdot v_i / \sqrt E)\\); b scores a patch for any
        question. `random`: random scores. `cls_attention`: the next layer's attention from the CLS token to the
        patches, mean over heads.

        Args:
            tokens: `[B, P + N, E]`.
            prefix: P.
            question: `[B, D]`.
            layer: the next one.
            rotary: cosine and sine `[N, d]` by which the next layer turns the patches, if it does.
        """
        patches = tokens[:, prefix:]
        if self.scorer == "random":
            return torch.rand(patches.shape[:2], device=patches.device).softmax(dim=-1)
        if self.scorer == "cls_attention":
            return _cls_attention(layer.norm(tokens), layer, prefix, rotary)
        scores = torch.einsum("be,bne->bn", self.q_proj(question), self.norm(patches))
        return masked_softmax(scores * tokens.shape[-1] ** -0.5, None)

    def keep(self, relevance: torch.Tensor) -> torch.Tensor:
        """Boolean `[B, N]`: the patches of `relevance` `[B, N]` to keep. Ties go to the earlier patch."""
        ranked, order = relevance.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(relevance.shape[1], device=relevance.device)
        kept = (rank < self.most).expand_as(order)
        if self.adaptive:
            mass_before = ranked.cumsum(dim=-1) - ranked
            kept = kept & ((mass_before < self.mass) | (rank < self.fewest))
        if self.spread:
            order = _spread(relevance, kept.sum(dim=-1, keepdim=True)).sort(descending=True, stable=True).indices
        return torch.zeros_like(kept).scatter(1, order, kept)

    def drop(
        self, tokens: torch.Tensor, prefix: int, relevance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """
        Args:
            tokens: `[B, P + N, E]`.
            prefix: P.
            relevance: `[B, N]`.

        Returns:
            Tokens `[B, P + K + 1, E]`, the last of which stands for the dropped patches; their mask
            `[B, P + K + 1]`, or `None` unless the budget is adaptive (rows keep different numbers of patches, K is the
            largest); and the raster positions of the kept patches `[B, K]`.
        """
        prefix_tokens, patches = tokens[:, :prefix], tokens[:, prefix:]
        relevance = relevance.to(tokens.device)  # the parts of a model may lie on several devices
        kept = self.keep(relevance)
        weights = relevance * ~kept
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        merged = torch.einsum("bn,bne->be", weights.to(tokens.dtype), patches)[:, None]
        # A traced graph keeps the maximum, because its shapes cannot depend on the data.
        count = int(kept.sum(dim=-1).max()) if self.adaptive and not torch.compiler.is_compiling() else self.most
        positions = (~kept).to(torch.int32).sort(dim=-1, stable=True).indices[:, :count]  # the kept first, in order
        patches = patches.gather(1, positions[..., None].expand(-1, -1, patches.shape[-1]))
        chosen = relevance.gather(1, positions).clamp(min=torch.finfo(relevance.dtype).tiny)
        patches = patches * (chosen / chosen.detach()).to(patches.dtype)[..., None]  # times 1, straight-through
        tokens = torch.cat([prefix_tokens, patches, merged], dim=1)
        if not self.adaptive:
            return tokens, None, positions
        present, some_dropped = kept.gather(1, positions), ~kept.all(dim=-1, keepdim=True)
        mask = torch.cat([kept.new_ones(kept.shape[0], prefix), present, some_dropped], dim=1)
        return tokens, mask, positions


def _spread(relevance: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    r"""
    A ranking of patches whose first `count` are spread over the image, densest where `relevance` is high.

    Systematic sampling (Madow & Madow 1944): patch i has the share \\(\min(1, \lambda \sqrt{r_i})\\), the shares add
    up to `count`, and along the raster every patch is taken at which their sum passes another half-integer.

    Args:
        relevance: `[B, N]`.
        count: `[B, 1]`, at most N.

    Returns:
        `[B, N]`, higher for what comes earlier.
    """
    weight = relevance.sqrt()
    ranked = weight.sort(dim=-1, descending=True).values
    rest = ranked.flip(-1).cumsum(dim=-1).flip(-1)  # from each rank on
    rank = torch.arange(relevance.shape[1], device=relevance.device)
    whole = ((count - rank) * ranked > rest).sum(dim=-1, keepdim=True)  # shares that reach 1
    rest = rest.gather(1, whole).clamp(min=torch.finfo(rest.dtype).tiny)
    share = ((count - whole) * (weight / rest)).clamp(max=1)
    total = share.cumsum(dim=-1) + 0.5
    taken = total.floor() - (total - share).floor()
    return 2 * taken + share


def _cls_attention(tokens: torch.Tensor, layer: LayerProjections, prefix: int, rotary: Any) -> torch.Tensor:
    """Attention of the first of the normed `tokens` `[B, P + N, E]` over the patches, `[B, N]`, sums to one."""
    heads = (-1, layer.head_dim)
    query = layer.query(tokens[:, :1]).unflatten(-1, heads).transpose(1, 2)  # [B, H, 1, d]
    key = layer.key(tokens).unflatten(-1, heads).transpose(1, 2)  # [B, H, P + N, d]
    if rotary is not None:  # the CLS token itself has no position
        cosine, sine = rotary
        patches = key[:, :, prefix:]
        first, second = patches.chunk(2, dim=-1)
        turned = patches * cosine + torch.cat([-second, first], dim=-1) * sine
        key = torch.cat([key[:, :, :prefix], turned], dim=2)
    scores = torch.matmul(query, key.transpose(-1, -2)) * layer.head_dim**-0.5
    weights = masked_softmax(scores, None).mean(dim=1)[:, 0, prefix:]
    return weights / weights.sum(dim=-1, keepdim=True)


__all__ = ["TokenBudget"]
