"""The vision encoder that can hear the question: shared layers, conditioned layers, token budget.

I images, B questions (B >= I), L question tokens, P prefix tokens (CLS, registers), N patches, S = P + N, K kept
patches, D the hops' width, E the vision encoder's width.

The layers are the backbone's own modules under their own names, so its checkpoints load into it and can be saved from
it. Layers before the first that depends on the question run once per image; the rest run once per question.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .attention_qca import ImageIndex, masked_softmax, own_rows, split_heads
from .configuration_qca import QCAConfig
from .limits_qca import build_encoder


@dataclass(frozen=True)
class EncoderLayout:
    """Where an architecture keeps the parts the loop needs, and those that change no patch. Nothing else knows it."""

    layers: str
    attention: str
    norm: str
    before_layers: str | None = None
    after_layers: str | None = None
    unused: str = "pooler"
    interpolates_itself: bool = False


_VIT = EncoderLayout("layers", "attention", "layernorm_before", after_layers="layernorm")
_DINO = EncoderLayout(
    "encoder.layer",
    "attention",
    "norm1",
    after_layers="layernorm",
    unused="embeddings.mask_token",
    interpolates_itself=True,
)
LAYOUTS = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "clip_vision_model": EncoderLayout(
        "encoder.layers", "self_attn", "layer_norm1", before_layers="pre_layrnorm", unused="post_layernorm"
    ),
    "siglip_vision_model": EncoderLayout(
        "encoder.layers", "self_attn", "layer_norm1", after_layers="post_layernorm", unused="head"
    ),
}


@dataclass
class QCAImageFeatures(ModelOutput):
    """
    What an image contributes before any question is asked; cacheable.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(images, prefix + patches, vision width)`):
            Tokens after the last layer that does not depend on the question.
        grid (`tuple[int, int]`):
            (rows, columns) of the patches.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
            Of the layers run so far, on request.
    """

    last_hidden_state: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class QCAVisionOutput(ModelOutput):
    """
    Args:
        patches (`torch.FloatTensor` of shape `(images or questions, patches or kept patches, vision width)`):
            One row an image, until a layer depends on the question: then one row a question.
        positions (`torch.LongTensor` of shape `(questions, kept patches)`, *optional*):
            Raster positions of the kept patches where the budget dropped the others.
        patch_mask (`torch.BoolTensor` of shape `(questions, kept patches)`, *optional*):
            `False` on the padding of an adaptive budget.
        budget_relevance (`torch.FloatTensor` of shape `(questions, patches)`, *optional*):
            Probabilities the budget ranked the patches by.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*): of the layers, on request.
    """

    patches: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    patch_mask: torch.Tensor | None = None
    budget_relevance: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class GatedConditioning(nn.Module):
    r"""
    A layer's access to the question, through a gate that starts closed: adds \\(\tanh(g) a\\), exactly 0 at first.

    `patches_read_question`: cross-attention from every token to the question's tokens (in the manner of Flamingo,
    Alayrac et al. 2022, eq. 1). `question_reads_patches`: the question reads the tokens and its one answer is added to
    all. `shared_projections`: QA-ViT (Ganz et al. 2024, eq. 3-5) reuses the layer's own query, key and value
    projections on a small transform of the question; here the question has its own softmax, so that a closed gate is
    the identity.
    """

    def __init__(self, config: QCAConfig):
        super().__init__()
        vision_size = config.vision_config.hidden_size
        self.mode = config.vision_conditioning
        self.num_heads = config.vision_config.num_attention_heads
        self.question_norm = nn.LayerNorm(config.hidden_size)
        if self.mode == "shared_projections":
            self.question_mlp = nn.Sequential(
                nn.Linear(config.hidden_size, vision_size), nn.GELU(), nn.Linear(vision_size, vision_size)
            )
        else:
            query_size, key_size = vision_size, config.hidden_size
            if self.mode == "question_reads_patches":
                query_size, key_size = key_size, query_size
            self.norm = nn.LayerNorm(vision_size)
            self.q_proj = nn.Linear(query_size, vision_size)
            self.k_proj = nn.Linear(key_size, vision_size)
            self.v_proj = nn.Linear(key_size, vision_size)
        self.o_proj = nn.Linear(vision_size, vision_size)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        tokens: torch.Tensor,
        question: torch.Tensor,
        question_tokens: torch.Tensor,
        question_mask: torch.Tensor,
        token_mask: torch.Tensor | None,
        layer_norm: nn.Module,
        layer_attention: nn.Module,
    ) -> torch.Tensor:
        """
        Args:
            tokens: `[B, S, E]`.
            question, question_tokens, question_mask: `[B, D]`, `[B, L, D]` and `[B, L]` (boolean).
            token_mask: `[B, S]` boolean, `False` on padding.
            layer_norm, layer_attention: the conditioned layer's own, for `shared_projections`.

        Returns:
            `[B, S, E]`; a question without any token leaves its row unchanged.
        """
        mask: torch.Tensor | None = question_mask
        if self.mode == "patches_read_question":
            words = self.question_norm(question_tokens)
            query, key, value = self.q_proj(self.norm(tokens)), self.k_proj(words), self.v_proj(words)
        elif self.mode == "shared_projections":
            words = self.question_mlp(self.question_norm(question_tokens))
            query = layer_attention.q_proj(layer_norm(tokens))
            key, value = layer_attention.k_proj(words), layer_attention.v_proj(words)
        else:
            normed, mask = self.norm(tokens), token_mask
            query = self.q_proj(self.question_norm(question)[:, None])  # [B, 1, E]
            key, value = self.k_proj(normed), self.v_proj(normed)
        query, key, value = (split_heads(states, self.num_heads) for states in (query, key, value))
        readable = present = None
        if mask is not None:
            present = mask.any(dim=-1, keepdim=True)
            readable = (mask | ~present)[:, None, None]  # [B, 1, 1, K]; an empty row is left open and zeroed below
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=readable)
        update = self.o_proj(read.transpose(1, 2).flatten(2))
        if present is not None:
            update = update * present[..., None]
        return tokens + torch.tanh(self.gate) * update


class TokenBudget(nn.Module):
    """
    Keep the patches that matter for the question, drop the rest: a hard choice that depends on nothing but the sample.

    The kept patches are gathered in raster order, in training too: a dropped patch that nobody reads has no gradient,
    so masking it in place would cost its compute and change nothing. The dropped ones live on as one token, their
    relevance-weighted mean (EViT, Liang et al. 2022, eq. 4). The learned relevance gets its gradient through that mean
    and, straight-through (Bengio et al. 2013), through the kept patches: each is multiplied by its relevance over the
    same number without a gradient.
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

    def relevance(
        self,
        tokens: torch.Tensor,
        prefix: int,
        question: torch.Tensor,
        layer_norm: nn.Module,
        layer_attention: nn.Module,
    ) -> torch.Tensor:
        r"""
        What to rank the patches by: probabilities `[B, N]` in float32.

        `learned`: \\(\mathrm{softmax}_i((W q + b) \cdot v_i / \sqrt E)\\); b scores a patch whatever the question.
        `random`: chance. `cls_attention`: the next layer's attention from the CLS token to patches, mean over heads.

        Args:
            tokens: `[B, P + N, E]`.
            prefix: P.
            question: `[B, D]`.
            layer_norm, layer_attention: of the next layer.
        """
        patches = tokens[:, prefix:]
        if self.scorer == "random":
            return torch.rand(patches.shape[:2], device=patches.device).softmax(dim=-1)
        if self.scorer == "cls_attention":
            return _cls_attention(layer_norm(tokens), layer_attention, prefix)
        scores = torch.einsum("be,bne->bn", self.q_proj(question), self.norm(patches))
        return masked_softmax(scores * tokens.shape[-1] ** -0.5, None)

    def keep(self, relevance: torch.Tensor) -> torch.Tensor:
        """Which patches of `relevance` `[B, N]` stay: boolean `[B, N]`. Ties go to the earlier patch."""
        ranked, order = relevance.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(relevance.shape[1], device=relevance.device)
        kept = (rank < self.most).expand_as(order)
        if self.adaptive:
            mass_before = ranked.cumsum(dim=-1) - ranked
            kept = kept & ((mass_before < self.mass) | (rank < self.fewest))
        if self.spread:
            order = _spread(relevance, kept.sum(dim=-1, keepdim=True)).sort(descending=True, stable=True).indices
        return torch.zeros_like(kept).scatter(1, order, kept)

    def forward(
        self, tokens: torch.Tensor, prefix: int, relevance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """
        Args:
            tokens: `[B, P + N, E]`.
            prefix: P.
            relevance: `[B, N]`.

        Returns:
            Tokens `[B, P + K + 1, E]`, the last of which stands for the dropped; their mask `[B, P + K + 1]` under an
            adaptive budget, whose rows keep different numbers of patches (K is the largest), else `None`; and the
            kept patches' raster positions `[B, K]`.
        """
        prefix_tokens, patches = tokens[:, :prefix], tokens[:, prefix:]
        kept = self.keep(relevance)
        weights = relevance * ~kept
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        merged = torch.einsum("bn,bne->be", weights.to(tokens.dtype), patches)[:, None]
        # A traced graph has room for the most, because its shapes cannot depend on what was kept.
        count = int(kept.sum(dim=-1).max()) if self.adaptive and not torch.compiler.is_compiling() else self.most
        positions = (~kept).to(torch.int32).sort(dim=-1, stable=True).indices[:, :count]  # the kept first, in order
        patches = patches.gather(1, positions[..., None].expand(-1, -1, patches.shape[-1]))
        chosen = relevance.gather(1, positions).clamp(min=torch.finfo(relevance.dtype).tiny)
        patches = patches * (chosen / chosen.detach()).to(patches.dtype)[..., None]  # times one, straight-through
        tokens = torch.cat([prefix_tokens, patches, merged], dim=1)
        if not self.adaptive:
            return tokens, None, positions
        present, some_dropped = kept.gather(1, positions), ~kept.all(dim=-1, keepdim=True)
        mask = torch.cat([kept.new_ones(kept.shape[0], prefix), present, some_dropped], dim=1)
        return tokens, mask, positions


def _spread(relevance: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    r"""
    A ranking of patches whose first `count` lie densest where `relevance` is high, and thinly everywhere else.

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


def _cls_attention(tokens: torch.Tensor, attention: Any, prefix: int) -> torch.Tensor:
    """Attention of the first of the normed `tokens` `[B, P + N, E]` over the patches, `[B, N]`, sums to one."""
    num_heads = attention.q_proj.out_features // attention.head_dim
    query = split_heads(attention.q_proj(tokens[:, :1]), num_heads)  # [B, H, 1, d]
    key = split_heads(attention.k_proj(tokens), num_heads)  # [B, H, P + N, d]
    scores = torch.matmul(query, key.transpose(-1, -2)) * attention.head_dim**-0.5
    weights = masked_softmax(scores, None).mean(dim=1)[:, 0, prefix:]
    return weights / weights.sum(dim=-1, keepdim=True)


@capture_outputs(tie_last_hidden_states=False)
def run_layers(
    backbone: nn.Module,
    layers: Iterable[nn.Module],
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **kwargs: bool,
) -> BaseModelOutput:
    """Run some `layers` of `backbone`; its own hooks record hidden states and attentions where `kwargs` ask."""
    for layer in layers:
        hidden_states = layer(hidden_states, attention_mask, **kwargs)
    return BaseModelOutput(last_hidden_state=hidden_states)


class QuestionAwareVisionEncoder(nn.Module):
    """
    A vision backbone whose later layers may depend on the question.

    With closed gates, without conditioning, or with a budget of all patches, its patches are bit-identical to the
    backbone's own.
    """

    def __init__(self, config: QCAConfig, backbone: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.backbone: Any = (
            build_encoder(config.vision_config, "vision_config", "pixel_values") if backbone is None else backbone
        )
        self.layout = LAYOUTS.get(config.vision_config.model_type)
        self.conditioning = nn.ModuleDict({str(i): GatedConditioning(config) for i in config.conditioned_layers})
        self.budget = None if config.token_budget is None else TokenBudget(config)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the patches of an image of `height` x `width` pixels."""
        patch_height, patch_width = self.config.patch_size
        return height // patch_height, width // patch_width

    def encode_images(self, pixel_values: torch.Tensor, **kwargs: bool) -> QCAImageFeatures:
        """Everything that does not depend on the question: `[I, 3, h, w] -> [I, P + N, E]` and the grid.

        Raises:
            ValueError: where the backbone's tokens are not a prefix followed by the grid.
        """
        height, width = pixel_values.shape[-2:]
        grid = self.grid(height, width)
        interpolation = self._interpolation(height, width)
        shared = self.config.first_question_layer
        if shared is None:
            layers = self.config.vision_feature_layers
            requested = kwargs if layers is None else {**kwargs, "output_hidden_states": True}
            outputs = self.backbone(pixel_values=pixel_values, return_dict=True, **interpolation, **requested)
            if layers is not None:
                outputs.last_hidden_state = torch.cat([self._layer_output(outputs, layer) for layer in layers], dim=-1)
                outputs.hidden_states = outputs.hidden_states if kwargs.get("output_hidden_states") else None
        else:
            hidden_states = self.backbone.embeddings(pixel_values.to(self.backbone.dtype), **interpolation)
            if self.layout.before_layers is not None:
                hidden_states = self.backbone.get_submodule(self.layout.before_layers)(hidden_states)
            outputs = run_layers(self.backbone, self._layers[:shared], hidden_states, **kwargs)
        if outputs.last_hidden_state.dim() != 3 or outputs.last_hidden_state.shape[1] < grid[0] * grid[1]:
            raise ValueError(
                f"The vision encoder ({self.config.vision_config.model_type}) returns "
                f"{tuple(outputs.last_hidden_state.shape)}, not a prefix and a {grid[0]} x {grid[1]} grid of patches."
            )
        return QCAImageFeatures(
            last_hidden_state=outputs.last_hidden_state,
            grid=grid,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def forward(
        self,
        features: QCAImageFeatures,
        image_index: ImageIndex | None,
        question: torch.Tensor,
        question_tokens: torch.Tensor,
        question_mask: torch.Tensor,
        **kwargs: bool,
    ) -> QCAVisionOutput:
        """
        Args:
            features: of [`encode_images`].
            image_index: image of each question, or its own.
            question, question_tokens, question_mask: `[B, D]`, `[B, L, D]`, `[B, L]` (boolean).
        """
        tokens, num_patches = features.last_hidden_state, features.grid[0] * features.grid[1]
        prefix = tokens.shape[1] - num_patches
        output = QCAVisionOutput(hidden_states=features.hidden_states, attentions=features.attentions)
        first = self.config.first_question_layer
        if first is None:
            output.patches = tokens[:, prefix:]
            return output
        tokens, token_mask, attention_mask = own_rows(tokens, image_index), None, None
        layers = list(self._layers)
        changed = {int(index) for index in self.conditioning}
        if self.budget is not None:
            changed.add(self.config.token_budget_layer)
        for index, end in pairwise([*sorted(changed), len(layers)]):
            norm, attention = (layers[index].get_submodule(name) for name in (self.layout.norm, self.layout.attention))
            if self.budget is not None and index == self.config.token_budget_layer:
                output.budget_relevance = self.budget.relevance(tokens, prefix, question, norm, attention)
                if self.budget.fewest < num_patches:
                    tokens, token_mask, output.positions = self.budget(tokens, prefix, output.budget_relevance)
                    attention_mask = create_bidirectional_mask(self.backbone.config, tokens, token_mask)
            if str(index) in self.conditioning:
                tokens = self.conditioning[str(index)](
                    tokens, question, question_tokens, question_mask, token_mask, norm, attention
                )
            run = run_layers(self.backbone, layers[index:end], tokens, attention_mask, **kwargs)
            tokens = run.last_hidden_state
            if run.hidden_states is not None:
                output.hidden_states = (output.hidden_states or run.hidden_states[:1]) + run.hidden_states[1:]
            if run.attentions is not None:
                output.attentions = (output.attentions or ()) + run.attentions
        if self.layout.after_layers is not None:
            tokens = self.backbone.get_submodule(self.layout.after_layers)(tokens)
        kept_patches = slice(prefix, prefix + (num_patches if output.positions is None else output.positions.shape[1]))
        output.patches = tokens[:, kept_patches]
        output.patch_mask = None if token_mask is None else token_mask[:, kept_patches]
        return output

    def _layer_output(self, outputs: Any, layer: int) -> torch.Tensor:
        """Features after `layer` layers, normalised as the backbone normalises its last ones."""
        hidden_states = outputs.hidden_states[layer]
        if self.layout.after_layers is None:
            return hidden_states
        return self.backbone.get_submodule(self.layout.after_layers)(hidden_states)

    @property
    def _layers(self) -> Any:
        return self.backbone.get_submodule(self.layout.layers)

    def _interpolation(self, height: int, width: int) -> dict[str, bool]:
        size = self.config.vision_config.image_size
        own_size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        if (height, width) == own_size or self.layout is None or self.layout.interpolates_itself:
            return {}
        return {"interpolate_pos_encoding": True}


__all__ = ["QCAImageFeatures", "QCAVisionOutput", "QuestionAwareVisionEncoder"]
