"""The vision encoder that can hear the question: shared layers, conditioned layers, token budget.

I images, B questions (B >= I), L question tokens, P prefix tokens (CLS, registers), N patches, D the hops' width,
E the vision encoder's.

The layers are the backbone's own modules under their own names, so its checkpoints load into it and can be saved from
it. Layers before the first that depends on the question run once per image; the rest run once per question.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .budget_qca import TokenBudget
from .conditioning_qca import GatedConditioning
from .configuration_qca import QCAConfig
from .pairs_qca import ImageIndex, expand_to_questions
from .validation_qca import build_encoder


@dataclass(frozen=True)
class EncoderLayout:
    """Where an architecture keeps the parts the loop needs, and those that change no patch, and how many tokens beside
    registers come before its patches. Nothing else knows it."""

    layers: str
    attention: str
    norm: str
    before_layers: str | None = None
    after_layers: str | None = None
    prefix: int = 1
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
    "deit": replace(_VIT, prefix=2),
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "clip_vision_model": EncoderLayout(
        "encoder.layers", "self_attn", "layer_norm1", before_layers="pre_layrnorm", unused="post_layernorm"
    ),
    "siglip_vision_model": EncoderLayout(
        "encoder.layers", "self_attn", "layer_norm1", after_layers="post_layernorm", prefix=0, unused="head"
    ),
}


@dataclass
class QCAImageFeatures(ModelOutput):
    """
    What an image contributes before any question is asked; cacheable.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(images, prefix + patches, vision width)`):
            Tokens after the last layer that does not depend on the question; with `vision_feature_layers` those of
            each layer side by side, as many times as wide.
        pooler_output (`torch.FloatTensor` of shape `(images, vision width)`): the mean of the patches.
        grid (`tuple[int, int]`):
            (rows, columns) of the patches.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
            Of the layers run so far, on request.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class QCAVisionOutput(ModelOutput):
    """
    Args:
        patches (`torch.FloatTensor` of shape `(images or questions, patches or kept patches, vision width)`):
            One row an image, until a layer depends on the question: then one row a question. As wide as
            [`QCAImageFeatures`].
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

    @property
    def num_prefix_tokens(self) -> int | None:
        """Tokens before the patches (CLS, registers); `None` where the architecture is not among [`LAYOUTS`]."""
        if self.layout is None:
            return None
        return self.layout.prefix + getattr(self.config.vision_config, "num_register_tokens", 0)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the patches of an image of `height` x `width` pixels."""
        patch_height, patch_width = self.config.patch_size
        return height // patch_height, width // patch_width

    def encode_images(self, pixel_values: torch.Tensor, **kwargs: bool) -> QCAImageFeatures:
        """Everything that does not depend on the question: `[I, 3, h, w] -> [I, P + N, E]` (E for each of
        `vision_feature_layers`) and the grid.

        Raises:
            ValueError: where the backbone's tokens are not a prefix followed by the grid.
        """
        height, width = pixel_values.shape[-2:]
        pixel_values = pixel_values.to(self.backbone.dtype)
        grid = self.grid(height, width)
        interpolation = self._interpolation(height, width)
        layers = self.config.vision_feature_layers
        depth = self.config.first_question_layer if layers is None else max(layers)
        if depth is None:
            outputs = self.backbone(pixel_values=pixel_values, return_dict=True, **interpolation, **kwargs)
        else:
            hidden_states = self.backbone.embeddings(pixel_values, **interpolation)
            if self.layout.before_layers is not None:
                hidden_states = self.backbone.get_submodule(self.layout.before_layers)(hidden_states)
            requested = kwargs if layers is None else {**kwargs, "output_hidden_states": True}
            outputs = run_layers(self.backbone, self._layers[:depth], hidden_states, return_dict=True, **requested)
            if layers is not None:
                outputs.last_hidden_state = torch.cat([self._layer_output(outputs, layer) for layer in layers], dim=-1)
                outputs.hidden_states = outputs.hidden_states if kwargs.get("output_hidden_states") else None
        if outputs.last_hidden_state.dim() != 3 or outputs.last_hidden_state.shape[1] < grid[0] * grid[1]:
            raise ValueError(
                f"The vision encoder ({self.config.vision_config.model_type}) returns "
                f"{tuple(outputs.last_hidden_state.shape)}, not a prefix and a {grid[0]} x {grid[1]} grid of patches."
            )
        prefix = outputs.last_hidden_state.shape[1] - grid[0] * grid[1]
        return QCAImageFeatures(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.last_hidden_state[:, prefix:].mean(dim=1),
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
        tokens, token_mask, attention_mask = expand_to_questions(tokens, image_index), None, None
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
            run = run_layers(self.backbone, layers[index:end], tokens, attention_mask, return_dict=True, **kwargs)
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
        """Features after `layer` layers, normalized as the backbone normalizes its last ones."""
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
