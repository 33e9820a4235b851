"""Relevance of patches to a question, and the hop that gathers evidence with it.

B questions, I images (B >= I), L question tokens, Q queries a question (one in a hop), N patches, D width, H heads,
d = D / H.

`patches` has one row an image, and [`PatchPlaces`] tells each question its row. A hop that updates the patches gives
each question a row of its own.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_qca import QCAConfig
from .pairs_qca import ImageIndex, expand_to_questions, image_matmul
from .states_qca import PatchPlaces, QuestionStates

WindowChooser = Callable[[torch.Tensor, torch.Tensor, PatchPlaces], tuple[torch.Tensor, PatchPlaces]]


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last dimension in float32. A row that is masked entirely is zero, never NaN.

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
    r"""The normalizer of the softmax, \\(\log \frac1N \sum_n e^{s_n}\\), over the last dimension in float32.

    Arguments as in [`masked_softmax`]; a row that is masked entirely gives 0.
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
    """`[H, 1, D]` for `states` `[..., D]`: one in the columns of a head, zero elsewhere."""
    share = states.shape[-1] // num_heads
    return torch.eye(num_heads, dtype=states.dtype, device=states.device).repeat_interleave(share, dim=1)[:, None]


class DotProductScorer(nn.Module):
    r"""
    Scaled dot product \\(s_h = (W_q q)_h \cdot (W_k v)_h / \sqrt d\\) (Vaswani et al. 2017, eq. 1).

    There are few queries and hundreds of patches, so the queries are projected instead of the patches:
    \\(q_h \cdot (W_k v)_h = (W_k^\top q_h) \cdot v\\). No key is computed; `key_proj` is \\(W_k^\top\\).
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
        """Scores `[B, H, Q, N]` of `patches` `[I, N, D]` for `query` `[B, Q, D]`. Question b reads the row
        `image_index.rows[b]` of the patches, or row b without an index."""
        queries = self.q_proj(query)[:, None] * self.scaling  # [B, 1, Q, D]
        queries = (queries * head_mask(queries, self.num_heads)).flatten(1, 2)  # [B, H * Q, D]
        queries = self.key_proj(queries).unflatten(
            1, (self.num_heads, -1)
        )  # three dimensions: OFT takes four for an image
        return query_products(queries, patches, image_index)


class BilinearScorer(nn.Module):
    r"""Bilinear form \\(s_h = q^\top W_h v / \sqrt D\\) (Luong et al. 2015, "general"), one full matrix a head.

    The scaling keeps the scores small at first, so that the relevance starts nearly uniform.
    """

    def __init__(self, query_size: int, patch_size: int, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scaling = patch_size**-0.5
        self.q_proj = nn.Linear(query_size, num_heads * patch_size, bias=False)

    def forward(
        self, query: torch.Tensor, patches: torch.Tensor, image_index: ImageIndex | None = None
    ) -> torch.Tensor:
        """Arguments and result as in [`DotProductScorer.forward`]."""
        queries = split_heads(self.q_proj(query), self.num_heads) * self.scaling  # [B, H, Q, D]
        return query_products(queries, patches, image_index)


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
        """Arguments and result as in [`DotProductScorer.forward`]."""
        queries = split_heads(self.q_proj(query), self.num_heads)  # [B, H, Q, d]
        keys = expand_to_questions(split_heads(self.k_proj(patches), self.num_heads), image_index)  # [B, H, N, d]
        hidden = torch.tanh(queries[:, :, :, None] + keys[:, :, None])  # [B, H, Q, N, d]
        return torch.einsum("bhqnd,hd->bhqn", hidden, self.score_weight)


def query_products(queries: torch.Tensor, patches: torch.Tensor, image_index: ImageIndex | None) -> torch.Tensor:
    """Dot products of the queries `[B, H, Q, D]` of each question with the patches of its image `[I, N, D]`, as
    `[B, H, Q, N]`."""
    products = image_matmul(queries.flatten(1, 2), patches.transpose(1, 2), image_index)
    return products.unflatten(1, queries.shape[1:3])


SCORERS = {"dot_product": DotProductScorer, "additive": AdditiveScorer, "bilinear": BilinearScorer}


class QueryConditionedAttention(nn.Module):
    """
    Relevance of the patches to a query, and the evidence that they hold for it.

    The evidence of a head has three parts: the relevance-weighted value, the log-mean-exp of the scores, and the
    relevance-weighted coordinates. The softmax alone does not tell how many patches are relevant; the average of the
    values does not tell where they are.
    """

    def __init__(self, config: QCAConfig, scorer_class: type[nn.Module] | None = None):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scorer = (scorer_class or SCORERS[config.relevance_scorer])(size, size, size, self.num_heads)
        self.softmax = MaskedSoftmax()
        self.v_proj = nn.Linear(size, size)
        self.evidence_dropout = nn.Dropout(config.evidence_dropout)
        self.o_proj = nn.Linear(size + 3 * self.num_heads, size)

    def forward(
        self, query: torch.Tensor, patches: torch.Tensor, places: PatchPlaces
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            query: `[B, 1, D]`.
            patches: `[I, N, D]`, or `[B, N, D]` without `places.image_index`.

        Returns:
            Evidence `[B, 1, D]`, and relevance `[B, H, N]` in float32. A question whose patches are all masked has
            zero relevance and zero evidence.
        """
        scores = self.scorer(query, patches, places.image_index)  # [B, H, 1, N]
        key_mask = None if places.mask is None else places.mask[:, None, None]  # [B, 1, 1, N]
        relevance = self.softmax(scores, key_mask)
        weights = relevance.to(patches.dtype)
        read = image_matmul(weights.flatten(1, 2), patches, places.image_index).unflatten(1, weights.shape[1:3])
        # The value of the mean patch equals the mean of the values, and costs one projection instead of N.
        values = self.v_proj(read)
        what = (values * head_mask(values, self.num_heads)).sum(dim=1).unflatten(-1, (self.num_heads, -1))
        how_much = masked_log_mean_exp(scores, key_mask).transpose(1, 2)[..., None]  # [B, 1, H, 1]
        where = torch.matmul(
            relevance.transpose(1, 2), places.coordinates[..., None, :, :].to(relevance.dtype)
        )  # [B, 1, H, 2]
        evidence = torch.cat([what, how_much.to(what.dtype), where.to(what.dtype)], dim=-1)
        evidence = self.o_proj(self.evidence_dropout(evidence.flatten(2)))
        if places.mask is not None:
            evidence = evidence * places.mask.any(dim=-1)[:, None, None]
        return evidence, relevance[:, :, 0]


class PatchUpdate(nn.Module):
    """Adds the evidence of a hop to every patch that the next hop reads (`patch_update="broadcast"`)."""

    def __init__(self, config: QCAConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, patches: torch.Tensor, evidence: torch.Tensor) -> torch.Tensor:
        """`patches` `[B, N, D]` and `evidence` `[B, D]` -> `[B, N, D]`"""
        return self.norm(patches + evidence[:, None])


class QuestionAttention(nn.Module):
    """Attention from the query of a hop to the question tokens, before the hop reads the patches."""

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
    """
    One hop: read the patches, update the query and, on request, the patches (Yang et al. 2016, eq. 15-22).

    Updates are pre-norm and residual. The last hop does not update the patches, because no hop reads them after it. It
    updates the query only if the answer head reads that (`answer_query="updated"`).
    """

    def __init__(self, config: QCAConfig, is_last: bool, scorer_class: type[nn.Module] | None = None):
        super().__init__()
        size = config.hidden_size
        self.question_attention = QuestionAttention(config) if config.query_tokens == "attended" else None
        self.query_norm = nn.LayerNorm(size)
        self.patch_norm = nn.LayerNorm(size)
        self.attention = QueryConditionedAttention(config, scorer_class)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.updates_query = not is_last or config.answer_query == "updated"
        if self.updates_query:
            self.update_norm = nn.LayerNorm(size)
            self.update = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.patch_update = PatchUpdate(config) if config.patch_update != "none" and not is_last else None

    def forward(
        self,
        query: torch.Tensor,
        patches: torch.Tensor,
        question_tokens: torch.Tensor,
        question_mask: torch.Tensor,
        places: PatchPlaces,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Tensors with a gradient come one by one, because checkpointing does not look for them inside of tuples.

        Args:
            query: `[B, 1, D]`.
            patches: `[I, N, D]`, or `[B, N, D]` without `places.image_index`.
            question_tokens, question_mask: `[B, L, D]` and `[B, L]` (boolean).

        Returns:
            The query `[B, 1, D]`, the patches (`[B, N, D]` if updated), the evidence `[B, D]` and the relevance
            `[B, H, N]`.
        """
        if self.question_attention is not None:
            query = query + self.dropout(self.question_attention(query, question_tokens, question_mask))
        evidence, relevance = self.attention(self.query_norm(query), self.patch_norm(patches), places)
        if self.updates_query:
            query = query + self.dropout(evidence)
            query = query + self.dropout(self.update(self.update_norm(query)))
        evidence = evidence[:, 0]
        if self.patch_update is not None:
            patches = self.patch_update(expand_to_questions(patches, places.image_index), evidence)
        return query, patches, evidence, relevance


class AttentionHops(nn.Module):
    """The stack of hops (Yang et al. 2016): each hop starts from the query that the last one updated."""

    def __init__(self, config: QCAConfig, scorer_class: type[nn.Module] | None = None):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.mean_dropout = nn.Dropout(config.evidence_dropout)
        depth = config.num_attention_layers
        self.reads_mean = depth == 0 or config.answer_evidence == "hops_and_mean"
        self.num_evidence = depth + self.reads_mean
        self.layers = nn.ModuleList([AttentionHop(config, i == depth - 1, scorer_class) for i in range(depth)])

    def forward(
        self, question: QuestionStates, patches: torch.Tensor, places: PatchPlaces, zoom: WindowChooser | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            patches: `[I, N, D]`, or `[B, N, D]` without `places.image_index`.
            zoom: gives the patches and places that the hops after the first read, by the relevance of the first
                `[B, H, N]`; see `Zoom`.

        Returns:
            The last query `[B, D]`; the evidence of every hop and, if the answer head reads it, the mean of the
            patches `[B, num_evidence, D]`; and the relevance of every hop `[B, T, H, N]`. Patches that `zoom` adds
            come last, with zeros for the first hop.
        """
        mean = []
        if self.reads_mean:
            own_patches = expand_to_questions(patches, places.image_index)
            mean.append(self.mean_dropout(masked_mean(own_patches, places.mask, dim=1)))
        query, found = question.query[:, None], []
        maps: list[torch.Tensor] = []
        for layer in self.layers:
            query, patches, evidence, relevance = layer(query, patches, question.tokens, question.mask, places)
            if layer.patch_update is not None:
                places = places._replace(image_index=None)
            if zoom is not None and not maps:
                patches, places = zoom(relevance, patches, places)
                relevance = nn.functional.pad(relevance, (0, patches.shape[1] - relevance.shape[-1]))
            found.append(evidence)
            maps.append(relevance)
        shape = (query.shape[0], 0, self.num_heads, patches.shape[1])
        relevance = torch.stack(maps, dim=1) if maps else patches.new_zeros(shape)
        return query[:, 0], torch.stack(found + mean, dim=1), relevance


__all__ = [
    "AdditiveScorer",
    "AttentionHops",
    "BilinearScorer",
    "DotProductScorer",
    "QueryConditionedAttention",
    "query_products",
    "split_heads",
]
