"""Relevance of patches to a question, and the hop that gathers evidence with it.

B questions, I images (B >= I), L question tokens, Q queries a question (1 or L), N patches, D width, H heads, d = D/H.

`patches` has I rows and an [`ImageIndex`] says whose they are, until a hop updates them and each question has its own.
"""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_qca import QCAConfig
from .pairs_qca import ImageIndex, expand_to_questions, image_matmul


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last dimension in float32. A row with nothing to choose from is zero, never NaN.

    Args:
        scores: `[..., N]`.
        mask: boolean, broadcastable to `scores`; `False` entries get exactly zero.
    """
    scores = scores.float()
    if mask is None:
        return scores.softmax(dim=-1)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * mask


def masked_log_mean_exp(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    r"""What the softmax divides away, \\(\log \frac1N \sum_n e^{s_n}\\), over the last dimension in float32.

    Arguments as in [`masked_softmax`]; a row with nothing in it gives 0.
    """
    scores = scores.float()
    if mask is None:
        return scores.logsumexp(dim=-1) - math.log(scores.shape[-1])
    count = mask.sum(dim=-1)
    total = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).logsumexp(dim=-1)
    return torch.where(count > 0, total - count.clamp(min=1).log(), 0.0)


class MaskedSoftmax(nn.Module):
    """[`masked_softmax`] as a module, so that a hook can record relevance together with its gradient."""

    def forward(self, scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return masked_softmax(scores, mask)


def masked_mean(states: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """Mean of `states` along `dim` over the entries of `mask`, which has the dimensions of `states` up to `dim`."""
    if mask is None:
        return states.mean(dim=dim)
    weights = mask.to(states.dtype).reshape(mask.shape + (1,) * (states.dim() - mask.dim()))
    return (states * weights).sum(dim=dim) / weights.sum(dim=dim).clamp(min=1)


def split_heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`[B, S, D] -> [B, H, S, d]`"""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def head_mask(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`[H, 1, D]` for `states` `[..., D]`: one where a head has its share of the width, zero elsewhere."""
    share = states.shape[-1] // num_heads
    return torch.eye(num_heads, dtype=states.dtype, device=states.device).repeat_interleave(share, dim=1)[:, None]


class DotProductScorer(nn.Module):
    r"""
    Scaled dot product \\(s_h = (W_q q)_h \cdot (W_k v)_h / \sqrt d\\) (Vaswani et al. 2017, eq. 1).

    A question has few queries and an image hundreds of patches, so the queries go into the patches' space,
    \\(q_h \cdot (W_k v)_h = (W_k^\top q_h) \cdot v\\), and no key is ever computed: `key_proj` is \\(W_k^\top\\).
    """

    def __init__(self, query_size: int, patch_size: int, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scaling = (hidden_size // num_heads) ** -0.5
        self.q_proj = nn.Linear(query_size, hidden_size)
        self.key_proj = nn.Linear(hidden_size, patch_size, bias=False)

    def forward(
        self, query: torch.Tensor, patches: torch.Tensor, image_index: ImageIndex | None = None
    ) -> torch.Tensor:
        """Scores `[B, H, Q, N]` of `patches` `[I, N, D]` for `query` `[B, Q, D]`; question b is about patches
        `image_index.rows[b]`, or about patches b."""
        queries = self.q_proj(query)[:, None] * self.scaling  # [B, 1, Q, D]
        queries = self.key_proj(queries * head_mask(queries, self.num_heads))  # [B, H, Q, D]
        return _products(queries, patches, image_index)


class BilinearScorer(nn.Module):
    r"""Bilinear form \\(s_h = q^\top W_h v / \sqrt D\\) (Luong et al. 2015, "general"), one full matrix a head.

    The weights start at the scale of the other projections, so that the softmax starts soft.
    """

    def __init__(self, query_size: int, patch_size: int, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scaling = patch_size**-0.5
        self.q_proj = nn.Linear(query_size, num_heads * patch_size, bias=False)

    def forward(
        self, query: torch.Tensor, patches: torch.Tensor, image_index: ImageIndex | None = None
    ) -> torch.Tensor:
        """As of [`DotProductScorer`]."""
        queries = split_heads(self.q_proj(query), self.num_heads) * self.scaling  # [B, H, Q, D]
        return _products(queries, patches, image_index)


class AdditiveScorer(nn.Module):
    r"""Additive \\(s_h = w_h \cdot \tanh((W_q q)_h + (W_k v)_h)\\) (Bahdanau et al. 2015, A.1.2)."""

    def __init__(self, query_size: int, patch_size: int, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(query_size, hidden_size)
        self.k_proj = nn.Linear(patch_size, hidden_size)
        self.score_weight = nn.Parameter(torch.empty(num_heads, hidden_size // num_heads))

    def forward(
        self, query: torch.Tensor, patches: torch.Tensor, image_index: ImageIndex | None = None
    ) -> torch.Tensor:
        """As of [`DotProductScorer`]."""
        queries = split_heads(self.q_proj(query), self.num_heads)  # [B, H, Q, d]
        keys = expand_to_questions(split_heads(self.k_proj(patches), self.num_heads), image_index)  # [B, H, N, d]
        hidden = torch.tanh(queries[:, :, :, None] + keys[:, :, None])  # [B, H, Q, N, d]
        return torch.einsum("bhqnd,hd->bhqn", hidden, self.score_weight)


def _products(queries: torch.Tensor, patches: torch.Tensor, image_index: ImageIndex | None) -> torch.Tensor:
    """`[B, H, Q, D] x [I, N, D] -> [B, H, Q, N]`"""
    products = image_matmul(queries.flatten(1, 2), patches.transpose(1, 2), image_index)
    return products.unflatten(1, queries.shape[1:3])


SCORERS = {"dot_product": DotProductScorer, "additive": AdditiveScorer, "bilinear": BilinearScorer}


class QueryConditionedAttention(nn.Module):
    """
    Relevance of the patches to a query, and the evidence they hold for it.

    A softmax says which patches matter most, but neither whether any matters nor how many do, and an average of values
    says what is there, but not where. So the evidence of a head is its relevance-weighted value, the mean score before
    normalization (log-mean-exp), and the relevance-weighted coordinates.
    """

    def __init__(self, config: QCAConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.scorer = SCORERS[config.relevance_scorer](size, size, size, self.num_heads)
        self.softmax = MaskedSoftmax()
        self.v_proj = nn.Linear(size, size)
        self.evidence_dropout = nn.Dropout(config.evidence_dropout)
        self.o_proj = nn.Linear(size + 3 * self.num_heads, size)

    def forward(
        self,
        query: torch.Tensor,
        patches: torch.Tensor,
        coordinates: torch.Tensor,
        image_index: ImageIndex | None = None,
        query_mask: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            query: `[B, Q, D]`.
            patches: `[I, N, D]`, or `[B, N, D]` without `image_index`.
            coordinates: `[N, 2]` or `[B, N, 2]` (y, x) of the patches, from -1 to 1.
            image_index: whose row of `patches` each question is about.
            query_mask: `[B, Q]` boolean, `False` on padding.
            patch_mask: `[B, N]` boolean, `False` on patches that may not be read. A question without any patch has
                zero relevance everywhere and zero evidence.

        Returns:
            Evidence `[B, Q, D]`, and relevance `[B, H, N]` in float32, before dropout, the mean over the queries of
            `query_mask`.
        """
        scores = self.scorer(query, patches, image_index)  # [B, H, Q, N]
        key_mask = None if patch_mask is None else patch_mask[:, None, None]  # [B, 1, 1, N]
        relevance = self.softmax(scores, key_mask)
        weights = nn.functional.dropout(relevance, self.attention_dropout, self.training).to(patches.dtype)
        read = image_matmul(weights.flatten(1, 2), patches, image_index).unflatten(1, weights.shape[1:3])
        values = self.v_proj(read)  # of the mean patch, which are the mean of the patches' values at less cost
        what = (values * head_mask(values, self.num_heads)).sum(dim=1).unflatten(-1, (self.num_heads, -1))
        how_much = masked_log_mean_exp(scores, key_mask).transpose(1, 2)[..., None]  # [B, Q, H, 1]
        where = torch.matmul(
            relevance.transpose(1, 2), coordinates[..., None, :, :].to(relevance.dtype)
        )  # [B, Q, H, 2]
        evidence = torch.cat([what, how_much.to(what.dtype), where.to(what.dtype)], dim=-1)
        evidence = self.o_proj(self.evidence_dropout(evidence.flatten(2)))
        if patch_mask is not None:
            evidence = evidence * patch_mask.any(dim=-1)[:, None, None]
        return evidence, masked_mean(relevance.transpose(1, 2), query_mask, dim=1)


class PatchUpdate(nn.Module):
    """What a hop leaves on the patches, so that the next hop reads them in the light of the evidence.

    `broadcast` adds one vector to every patch. `gated` adds each head's evidence to each patch in proportion to the
    head's relevance there, so that patches become query-aware one by one.
    """

    def __init__(self, config: QCAConfig):
        super().__init__()
        self.gated = config.patch_update == "gated"
        self.num_heads = config.num_attention_heads
        self.norm = nn.LayerNorm(config.hidden_size)
        if self.gated:
            self.projection = nn.Linear(config.hidden_size, self.num_heads * config.hidden_size)

    def forward(self, patches: torch.Tensor, evidence: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        """`patches` `[B, N, D]`, `evidence` `[B, D]` and `relevance` `[B, H, N]` -> `[B, N, D]`"""
        if not self.gated:
            return self.norm(patches + evidence[:, None])
        updates = self.projection(evidence).unflatten(-1, (self.num_heads, -1))  # [B, H, D]
        peak = relevance.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(relevance.dtype).tiny)
        gates = (relevance / peak).to(updates.dtype)  # [B, H, N], 1 at the head's most relevant patch
        return self.norm(patches + torch.einsum("bhn,bhd->bnd", gates, updates))


class QuestionAttention(nn.Module):
    """What a hop's query reads in the question before it reads the picture: each step has words of its own."""

    def __init__(self, config: QCAConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.scorer = DotProductScorer(config.hidden_size, config.hidden_size, config.hidden_size, num_heads=1)
        self.softmax = MaskedSoftmax()

    def forward(self, query: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`query` `[B, 1, D]`, `tokens` `[B, L, D]` and boolean `mask` `[B, L]` -> `[B, 1, D]`"""
        scores = self.scorer(self.norm(query), tokens)  # [B, 1, 1, L]
        return torch.matmul(self.softmax(scores, mask[:, None, None])[:, 0].to(tokens.dtype), tokens)


class AttentionHop(GradientCheckpointingLayer):
    """One step of looking: read the patches, update the query, and let the patches know (Yang et al. 2016, eq. 15-22).

    Pre-norm residual updates. The last hop has nobody after it and leaves the patches alone.
    """

    def __init__(self, config: QCAConfig, updates_patches: bool):
        super().__init__()
        size = config.hidden_size
        self.question_attention = QuestionAttention(config) if config.query_tokens == "attended" else None
        self.query_norm = nn.LayerNorm(size)
        self.patch_norm = nn.LayerNorm(size)
        self.attention = QueryConditionedAttention(config)
        self.update_norm = nn.LayerNorm(size)
        self.update = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.patch_update = PatchUpdate(config) if updates_patches else None

    def forward(
        self,
        query: torch.Tensor,
        patches: torch.Tensor,
        coordinates: torch.Tensor,
        image_index: ImageIndex | None = None,
        query_mask: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        question_tokens: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Arguments as in [`QueryConditionedAttention`], and of [`QuestionAttention`] where the hop attends to the
        question; returns the query `[B, Q, D]`, the patches (`[B, N, D]` once updated), the evidence `[B, D]` and the
        relevance `[B, H, N]`."""
        if self.question_attention is not None:
            query = query + self.dropout(self.question_attention(query, question_tokens, question_mask))
        evidence, relevance = self.attention(
            self.query_norm(query), self.patch_norm(patches), coordinates, image_index, query_mask, patch_mask
        )
        query = query + self.dropout(evidence)
        query = query + self.dropout(self.update(self.update_norm(query)))
        evidence = masked_mean(evidence, query_mask, dim=1)
        if self.patch_update is not None:
            patches = self.patch_update(expand_to_questions(patches, image_index), evidence, relevance)
        return query, patches, evidence, relevance


class AttentionHops(nn.Module):
    """The stack of hops (Yang et al. 2016): each looks again with what the last one found."""

    def __init__(self, config: QCAConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.mean_dropout = nn.Dropout(config.evidence_dropout)
        updates = config.patch_update != "none"
        depth = config.num_attention_layers
        self.reads_mean = depth == 0 or config.answer_evidence == "hops_and_mean"
        self.num_evidence = depth + self.reads_mean
        self.layers = nn.ModuleList([AttentionHop(config, updates and i < depth - 1) for i in range(depth)])

    def forward(
        self,
        query: torch.Tensor,
        patches: torch.Tensor,
        coordinates: torch.Tensor,
        image_index: ImageIndex | None = None,
        query_mask: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        question_tokens: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Arguments as in [`AttentionHop`].

        Returns:
            The last query `[B, D]`, the evidence of every hop and, where it is read, the patches' mean
            `[B, num_evidence, D]`, and the relevance of every hop `[B, T, H, N]`.
        """
        mean = []
        if self.reads_mean:
            mean.append(self.mean_dropout(masked_mean(expand_to_questions(patches, image_index), patch_mask, dim=1)))
        found, maps = [], []
        for layer in self.layers:
            query, patches, evidence, relevance = layer(
                query, patches, coordinates, image_index, query_mask, patch_mask, question_tokens, question_mask
            )
            image_index = image_index if layer.patch_update is None else None
            found.append(evidence)
            maps.append(relevance)
        shape = (query.shape[0], 0, self.num_heads, patches.shape[1])
        relevance = torch.stack(maps, dim=1) if maps else patches.new_zeros(shape)
        return masked_mean(query, query_mask, dim=1), torch.stack(found + mean, dim=1), relevance


__all__ = [
    "AdditiveScorer",
    "AttentionHops",
    "BilinearScorer",
    "DotProductScorer",
    "QueryConditionedAttention",
]
