"""The vision encoder that can hear the question: shared layers, conditioned layers, token budget.

I images, B questions (B >= I), L question tokens, P prefix tokens (CLS, registers), N patches, S = P + N, K kept
patches, D the hops' width, E the vision encoder's width.

The layers are the backbone's own modules under their own names, so its checkpoints load into it and can be saved from
it. Layers before the first that depends on the question run once per image; the rest run once per question.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .attention_qca import DotProductScorer, masked_softmax, split_heads
from .configuration_qca import QCAConfig


@dataclass(frozen=True)
class EncoderLayout:
    """Where an architecture keeps the parts the loop needs. Nothing else knows the architecture."""

    layers: str
    attention: str
    norm: str
    output: str
    before_layers: str | None = None
    after_layers: str | None = None
    interpolates_itself: bool = False


_VIT = EncoderLayout("layers", "attention", "layernorm_before", "o_proj", after_layers="layernorm")
_DINO = EncoderLayout(
    "encoder.layer", "attention", "norm1", "o_proj", after_layers="layernorm", interpolates_itself=True
)
LAYOUTS = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "clip_vision_model": EncoderLayout(
        "encoder.layers", "self_attn", "layer_norm1", "out_proj", before_layers="pre_layrnorm"
    ),
    "siglip_vision_model": EncoderLayout(
        "encoder.layers", "self_attn", "layer_norm1", "out_proj", after_layers="post_layernorm"
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

    last_hidden_state: torch.FloatTensor | None = None
    grid: tuple[int, int] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class QCAVisionOutput(ModelOutput):
    """
    Args:
        patches (`torch.FloatTensor` of shape `(images or questions, patches or kept patches, vision width)`):
            One row an image, until a layer depends on the question: then one row a question.
        positions (`torch.LongTensor` of shape `(questions, kept patches)`, *optional*):
            Raster positions of the kept patches where the budget dropped the others.
        patch_mask (`torch.BoolTensor` of shape `(questions, patches or kept patches)`, *optional*):
            `False` on patches the budget dropped and on the padding of an adaptive budget.
        budget_relevance (`torch.FloatTensor` of shape `(questions, patches)`, *optional*):
            Probabilities the budget ranked the patches by.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*): of the layers, on request.
    """

    patches: torch.FloatTensor | None = None
    positions: torch.LongTensor | None = None
    patch_mask: torch.BoolTensor | None = None
    budget_relevance: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class GatedConditioning(nn.Module):
    """
    A layer's access to the question, through a gate that starts closed: adds \\(\\tanh(g) a\\), exactly 0 at first.

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
        self.gate = nn.Parameter(torch.empty(1))

    def forward(
        self,
        hidden_states: torch.Tensor,
        question: torch.Tensor,
        question_tokens: torch.Tensor,
        question_mask: torch.Tensor,
        token_mask: torch.Tensor | None,
        layer_norm: nn.Module,
        layer_attention: nn.Module,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `[B, S, E]`.
            question, question_tokens, question_mask: `[B, D]`, `[B, L, D]` and `[B, L]` (boolean).
            token_mask: `[B, S]` boolean, `False` on dropped tokens.
            layer_norm, layer_attention: the conditioned layer's own, for `shared_projections`.

        Returns:
            `[B, S, E]`
        """
        key_mask: torch.Tensor | None = question_mask
        if self.mode == "patches_read_question":
            tokens = self.question_norm(question_tokens)
            query, key, value = self.q_proj(self.norm(hidden_states)), self.k_proj(tokens), self.v_proj(tokens)
        elif self.mode == "shared_projections":
            tokens = self.question_mlp(self.question_norm(question_tokens))
            query = layer_attention.q_proj(layer_norm(hidden_states))
            key, value = layer_attention.k_proj(tokens), layer_attention.v_proj(tokens)
        else:
            normed = self.norm(hidden_states)
            query = self.q_proj(self.question_norm(question)[:, None])  # [B, 1, E]
            key, value, key_mask = self.k_proj(normed), self.v_proj(normed), token_mask
        query, key, value = (split_heads(states, self.num_heads) for states in (query, key, value))
        additive_mask = None
        if key_mask is not None:
            additive_mask = torch.zeros_like(key_mask, dtype=query.dtype)
            additive_mask = additive_mask.masked_fill(~key_mask, torch.finfo(query.dtype).min)[:, None, None]
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=additive_mask)
        return hidden_states + torch.tanh(self.gate) * self.o_proj(read.transpose(1, 2).flatten(2))


class TokenBudget(nn.Module):
    """
    Keep the patches that matter for the question, drop the rest: a hard, per-sample choice.

    The choice depends on nothing but the sample. In training every token stays in place and the dropped ones are
    masked; the kept ones carry a straight-through gradient to their score. At inference the kept ones are gathered in
    raster order. Either way the dropped ones live on as one token, their relevance-weighted mean (EViT, Liang et al.
    2022, eq. 4).
    """

    def __init__(self, config: QCAConfig):
        super().__init__()
        self.bounds = config.token_budget if isinstance(config.token_budget, list) else [config.token_budget] * 2
        self.adaptive_mass = config.token_budget_mass if isinstance(config.token_budget, list) else None
        self.scorer_name = config.token_budget_scorer
        if self.scorer_name == "learned":
            vision_size = config.vision_config.hidden_size
            self.norm = nn.LayerNorm(vision_size)
            self.scorer = DotProductScorer(config.hidden_size, vision_size, vision_size, num_heads=1)

    def relevance(
        self, tokens: torch.Tensor, prefix: int, question: torch.Tensor, norm: nn.Module, attention: nn.Module
    ) -> torch.Tensor:
        """Probabilities `[B, N]` to rank the patches of `tokens` `[B, P + N, E]` by; `norm` and `attention` are the
        next layer's, whose CLS attention is one of the baselines."""
        patches = tokens[:, prefix:]
        if self.scorer_name == "random":
            return masked_softmax(torch.randn(patches.shape[:2], device=patches.device), None)
        if self.scorer_name == "cls_attention":
            normed, heads = norm(tokens), attention.q_proj.out_features // attention.head_dim
            query = split_heads(attention.q_proj(normed[:, :1]), heads)  # [B, heads, 1, d]
            key = split_heads(attention.k_proj(normed[:, prefix:]), heads)
            scores = torch.matmul(query, key.transpose(-1, -2)) * attention.head_dim**-0.5
            return masked_softmax(scores, None).mean(dim=1).squeeze(1)
        scores = self.scorer(self.scorer.queries(question[:, None]), self.scorer.keys(self.norm(patches)))
        return masked_softmax(scores[:, 0, 0], None)

    def keep(self, relevance: torch.Tensor) -> torch.Tensor:
        """Which patches of `relevance` `[B, N]` stay: boolean `[B, N]`. Ties go to the earlier patch."""
        ranked, order = relevance.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(relevance.shape[1], device=relevance.device)
        kept = rank < self.bounds[1]
        if self.adaptive_mass is not None:
            mass_before = ranked.cumsum(dim=-1) - ranked
            kept = kept & ((mass_before < self.adaptive_mass) | (rank < self.bounds[0]))
        return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, kept.expand_as(order))

    def forward(
        self, tokens: torch.Tensor, prefix: int, relevance: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            tokens: `[B, P + N, E]`; `relevance` and `kept` are `[B, N]`.

        Returns:
            Tokens `[B, P + N or K, + 1, E]` (the last one stands for the dropped), their mask (`None` where all
            count) and the kept patches' raster positions `[B, K]` (`None` where patches stay in place).
        """
        prefix_tokens, patches = tokens[:, :prefix], tokens[:, prefix:]
        weights = (relevance * ~kept).to(tokens.dtype)
        mass = weights.sum(dim=-1, keepdim=True)
        merged = torch.einsum("bn,bne->be", weights / mass.clamp(min=torch.finfo(tokens.dtype).tiny), patches)[:, None]
        some_dropped = ~kept.all(dim=-1, keepdim=True)
        if self.training:
            scale = (relevance * relevance.shape[1]).to(tokens.dtype)[..., None]
            patches = patches + patches * (scale - scale.detach())
            positions, present = None, kept
        else:
            count = self.bounds[1] if self.adaptive_mass is None else int(kept.sum(dim=-1).max())
            positions = (~kept).to(torch.int8).argsort(dim=-1, stable=True)[:, :count]  # kept first, raster order
            patches = patches.gather(1, positions[..., None].expand(-1, -1, patches.shape[-1]))
            present = None if self.adaptive_mass is None else kept.gather(1, positions)
        tokens = torch.cat([prefix_tokens, patches, merged], dim=1)
        if present is None:
            return tokens, None, positions
        prefix_mask = kept.new_ones(kept.shape[0], prefix)
        return tokens, torch.cat([prefix_mask, present, some_dropped], dim=1), positions


@capture_outputs(tie_last_hidden_states=False)
def run_layers(
    backbone: nn.Module, steps: "list[LayerStep]", hidden_states: torch.Tensor, **kwargs
) -> BaseModelOutput:
    """Run layers of `backbone`; its own hooks record hidden states and attentions where `kwargs` ask for them."""
    attention_mask = None
    for layer, before in steps:
        if before is not None:
            hidden_states, token_mask = before(hidden_states)
            attention_mask = create_bidirectional_mask(backbone.config, hidden_states, token_mask)
        hidden_states = layer(hidden_states, attention_mask, **kwargs)
    return BaseModelOutput(last_hidden_state=hidden_states)


LayerStep = tuple[nn.Module, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]] | None]


class QuestionAwareVisionEncoder(nn.Module):
    """
    A vision backbone whose later layers may depend on the question.

    With closed gates, without conditioning, or with a budget of all patches, its patches are bit-identical to the
    backbone's own.
    """

    def __init__(self, config: QCAConfig, backbone: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.backbone = AutoModel.from_config(config.vision_config) if backbone is None else backbone
        self.layout = LAYOUTS.get(config.vision_config.model_type)
        self.conditioning = nn.ModuleDict({str(i): GatedConditioning(config) for i in config.conditioned_layers})
        self.budget = None if config.token_budget is None else TokenBudget(config)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the patches of an image of `height` x `width` pixels."""
        patch_height, patch_width = self.config.patch_size
        return height // patch_height, width // patch_width

    def encode_images(self, pixel_values: torch.Tensor, **kwargs) -> QCAImageFeatures:
        """Everything that does not depend on the question: `[I, 3, h, w] -> [I, P + N, E]` and the grid.

        Raises:
            ValueError: where the backbone's tokens are not a prefix followed by the grid.
        """
        height, width = pixel_values.shape[-2:]
        grid = self.grid(height, width)
        interpolation = self._interpolation(grid)
        shared = self.config.first_question_layer
        if shared is None:
            outputs = self.backbone(pixel_values=pixel_values, return_dict=True, **interpolation, **kwargs)
        else:
            pixel_values = pixel_values.to(self.backbone.dtype)
            hidden_states = self.backbone.embeddings(pixel_values, **interpolation)
            if self.layout.before_layers is not None:
                hidden_states = self.backbone.get_submodule(self.layout.before_layers)(hidden_states)
            outputs = run_layers(
                self.backbone, [(layer, None) for layer in self._layers[:shared]], hidden_states, **kwargs
            )
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
        image_index: torch.Tensor,
        question: torch.Tensor,
        question_tokens: torch.Tensor,
        question_mask: torch.Tensor,
        **kwargs,
    ) -> QCAVisionOutput:
        """
        Args:
            features: of [`encode_images`].
            image_index: `[B]` image of each question.
            question, question_tokens, question_mask: `[B, D]`, `[B, L, D]`, `[B, L]` (boolean).
        """
        tokens, num_patches = features.last_hidden_state, features.grid[0] * features.grid[1]
        prefix = tokens.shape[1] - num_patches
        output = QCAVisionOutput(hidden_states=features.hidden_states, attentions=features.attentions)
        first = self.config.first_question_layer
        if first is None:
            output.patches = tokens[:, prefix:]
            return output
        token_mask: torch.Tensor | None = None

        def before_layer(index: int):
            def listen(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
                nonlocal token_mask
                layer = self._layers[index]
                norm, attention = layer.get_submodule(self.layout.norm), layer.get_submodule(self.layout.attention)
                if self.budget is not None and index == self.config.token_budget_layer:
                    relevance = self.budget.relevance(tokens, prefix, question, norm, attention)
                    output.budget_relevance = relevance
                    if self.budget.bounds[0] < num_patches:
                        kept = self.budget.keep(relevance)
                        tokens, token_mask, output.positions = self.budget(tokens, prefix, relevance, kept)
                if str(index) in self.conditioning:
                    tokens = self.conditioning[str(index)](
                        tokens, question, question_tokens, question_mask, token_mask, norm, attention
                    )
                return tokens, token_mask

            return listen

        steps = [(layer, before_layer(first + i)) for i, layer in enumerate(self._layers[first:])]
        encoded = run_layers(self.backbone, steps, tokens[image_index], **kwargs)
        tokens = encoded.last_hidden_state
        if self.layout.after_layers is not None:
            tokens = self.backbone.get_submodule(self.layout.after_layers)(tokens)
        kept_patches = num_patches if output.positions is None else output.positions.shape[1]
        output.patches = tokens[:, prefix : prefix + kept_patches]
        if token_mask is not None:
            output.patch_mask = token_mask[:, prefix : prefix + kept_patches]
        if encoded.hidden_states is not None:
            output.hidden_states = (features.hidden_states or ()) + encoded.hidden_states[1:]
        if encoded.attentions is not None:
            output.attentions = (features.attentions or ()) + encoded.attentions
        return output

    @property
    def _layers(self) -> nn.ModuleList:
        return self.backbone.get_submodule(self.layout.layers)

    def _interpolation(self, grid: tuple[int, int]) -> dict[str, bool]:
        if grid == self.config.image_grid or self.layout is None or self.layout.interpolates_itself:
            return {}
        return {"interpolate_pos_encoding": True}


__all__ = ["QCAImageFeatures", "QuestionAwareVisionEncoder"]
