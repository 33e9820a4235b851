"""The vision encoder: layers shared by all questions, conditioned layers, token budget.

I images, B questions (B >= I), L question tokens, P prefix tokens (CLS, registers), N patches, D width of the hops,
E width of the vision encoder.

The layers are the backbone's own modules under their own names, so its checkpoints load and save unchanged. Layers
before the first that depends on the question run once per image; the others run once per question.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .attention_qca import masked_mean
from .boxes_qca import is_token, shape_boxes
from .budget_qca import TokenBudget
from .conditioning_qca import GatedConditioning
from .configuration_qca import QCAConfig
from .layouts_qca import LAYOUTS
from .pairs_qca import ImageIndex, expand_to_questions
from .states_qca import LayerProjections, QuestionStates
from .validation_qca import build_encoder
from .vision_shape_qca import vision_shape

# What a `PreTrainedModel` reads off its children, to place them on devices and in a dtype. This module stands between.
PLACEMENT = (
    "_no_split_modules",
    "_skip_keys_device_placement",
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
)
UNDER_FSDP = (
    "`vision_conditioning='shared_projections'` and `token_budget_scorer='cls_attention'` read weights of a {0} from "
    "outside of it, so FSDP must not shard it by itself. Train with `QCATrainer`, or list the classes to wrap without "
    "{0} in `fsdp_transformer_layer_cls_to_wrap`."
)


@dataclass
class QCAImageFeatures(ModelOutput):
    """
    Features of images before any question is asked; cacheable.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(images, prefix + patches, vision width)`):
            Tokens after the last layer that does not depend on the question; with `vision_feature_layers` those of
            each layer, concatenated in the last dimension. With zoom, the tokens of the glance and those of every
            window, one after another.
        pooler_output (`torch.FloatTensor` of shape `(images, vision width)`): the mean of the patches; with zoom, of
            the glance.
        grid (`tuple[int, int]`, *optional*):
            (rows, columns) of the patches, with zoom those of the picture at full detail; or else
        spatial_shapes (`torch.LongTensor` of shape `(images, 2)`, *optional*): those of each picture.
        rotary (`tuple[torch.FloatTensor, torch.FloatTensor]` of shape `(patches, head width)`, *optional*):
            Cosine and sine of the positions of the patches, for the layers that depend on the question. Not to be
            cached: they follow from the grid.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*):
            Of the layers run so far, on request.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    spatial_shapes: torch.Tensor | None = None
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class QCAVisionOutput(ModelOutput):
    """
    Args:
        patches (`torch.FloatTensor` of shape `(images or questions, patches or kept patches, vision width)`):
            One row an image if no layer depends on the question, else one row a question.
        positions (`torch.LongTensor` of shape `(questions, kept patches)`, *optional*):
            Raster positions of the patches that the budget kept, if it dropped any.
        patch_mask (`torch.BoolTensor` of shape `(questions, kept patches)`, *optional*):
            `False` on the padding of an adaptive budget.
        budget_relevance (`torch.FloatTensor` of shape `(questions, patches)`, *optional*):
            Probabilities that the budget ranked the patches by.
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
    **kwargs: Any,
) -> BaseModelOutput:
    """Run some `layers` of `backbone`; its own hooks record hidden states and attentions if `kwargs` ask for them."""
    for layer in layers:
        hidden_states = layer(hidden_states, attention_mask, **kwargs)
    return BaseModelOutput(last_hidden_state=hidden_states)


@dataclass
class LayerRun:
    """Tokens on their way through the layers, with the hidden states and attentions recorded so far."""

    tokens: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    requested: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def start(cls, tokens: torch.Tensor, rotary: Any, requested: dict[str, bool]) -> "LayerRun":
        """Before the first layer."""
        return cls(tokens, rotary, (tokens,) if requested.get("output_hidden_states") else None, None, requested)

    def advance(self, backbone: nn.Module, layers: Any, attention_mask: Any = None):
        """Run `layers` of `backbone` on the tokens."""
        positions = {} if self.rotary is None else {"position_embeddings": self.rotary}
        run = run_layers(
            backbone, layers, self.tokens, attention_mask, return_dict=True, **positions, **self.requested
        )
        self.tokens = run.last_hidden_state
        if run.hidden_states is not None:
            self.hidden_states = (self.hidden_states or run.hidden_states[:1]) + run.hidden_states[1:]
        if run.attentions is not None:
            self.attentions = (self.attentions or ()) + run.attentions


class QuestionAwareVisionEncoder(nn.Module):
    """
    A vision backbone whose later layers may depend on the question.

    Its patches are bit-identical to the backbone's own without conditioning, with closed gates, and with a budget of
    all patches.
    """

    def __init__(self, config: QCAConfig, backbone: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.backbone: Any = (
            build_encoder(config.vision_config, "vision_config", "pixel_values") if backbone is None else backbone
        )
        self.layout = LAYOUTS.get(config.vision_config.model_type)
        self.shape = vision_shape(config.vision_config)
        self.conditioning = nn.ModuleDict({str(i): GatedConditioning(config) for i in config.conditioned_layers})
        self.budget = None if config.token_budget is None else TokenBudget(config)
        for name in PLACEMENT:
            setattr(self, name, getattr(self.backbone, name))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the patches of an image of `height` x `width` pixels."""
        patch_height, patch_width = self.config.patch_size
        return height // patch_height, width // patch_width

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        spatial_shapes: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        **requested: bool,
    ) -> QCAImageFeatures:
        """Run the layers that do not depend on the question.

        Args:
            pixel_values: `[I, 3, h, w]`, or `[I, N, 3 * patch area]` with
            spatial_shapes: `[I, 2]` (rows, columns) of each picture.
            pixel_attention_mask: `[I, N]`, 0 for padding; may be left out, because it follows from the shapes.
            requested: `output_hidden_states` and `output_attentions`.

        Raises:
            ValueError: if the encoder cannot read images of this size.
        """
        pixel_values = pixel_values.to(self.backbone.dtype)
        if self.config.has_native_shapes:
            check_spatial_shapes(spatial_shapes, len(pixel_values), pixel_values.shape[1], pixel_attention_mask)
            return self._encode_native_shapes(pixel_values, spatial_shapes, requested)
        if spatial_shapes is not None or pixel_attention_mask is not None:
            raise ValueError(
                f"A `{self.config.vision_config.model_type}` encoder reads images of one shape: leave out "
                "`spatial_shapes` and `pixel_attention_mask`, and use the encoder's own image processor."
            )
        height, width = pixel_values.shape[-2:]
        interpolation = self._interpolation(height, width)
        if self.config.vision_feature_layers is None and self.config.first_question_layer is None:
            options = {"return_dict": True, **interpolation, **requested}
            run: Any = self.backbone(pixel_values=pixel_values, **_accepted(self.backbone.forward, options))
            tokens, grid = self.shape.patches(run.last_hidden_state, height, width)
            run = LayerRun(tokens, None, run.get("hidden_states"), run.get("attentions"))
        else:
            tokens, run = self._run_shared_layers(pixel_values, interpolation, requested)
            grid = self.grid(height, width)
        return QCAImageFeatures(
            last_hidden_state=tokens,
            pooler_output=tokens[:, self.shape.prefix :].mean(dim=1),
            grid=grid,
            rotary=run.rotary,
            hidden_states=run.hidden_states,
            attentions=run.attentions,
        )

    def forward(
        self,
        features: QCAImageFeatures,
        image_index: ImageIndex | None,
        question: QuestionStates,
        **requested: bool,
    ) -> QCAVisionOutput:
        """
        Run the layers that depend on the question.

        Args:
            features: of [`encode_images`].
            image_index: the image of each question; `None` if question b is about image b.
        """
        prefix = self.shape.prefix
        num_patches = features.last_hidden_state.shape[1] - prefix
        recorded = features.hidden_states, features.attentions
        run = LayerRun(features.last_hidden_state, features.rotary, *recorded, requested)
        output = QCAVisionOutput()
        token_mask = attention_mask = None
        if self.config.first_question_layer is not None:
            run.tokens = expand_to_questions(run.tokens, image_index)
            if run.rotary is None:  # of cached features
                run.rotary = self._rotary(run.tokens, *features.grid)
            starts = sorted({*map(int, self.conditioning), *self._budget_layers})
            for start, end in pairwise([*starts, len(self._layers)]):
                layer = self._projections(start)
                if self.budget is not None and start == self.config.token_budget_layer:
                    relevance = self.budget(run.tokens, prefix, question.query, layer, run.rotary)
                    output.budget_relevance = relevance
                    if self.budget.fewest < num_patches:
                        run.tokens, token_mask, output.positions = self.budget.drop(run.tokens, prefix, relevance)
                        run.rotary = _at_positions(run.rotary, output.positions)
                        attention_mask = create_bidirectional_mask(self.backbone.config, run.tokens, token_mask)
                if str(start) in self.conditioning:
                    condition = self.conditioning[str(start)]
                    run.tokens = condition(run.tokens, question, token_mask, layer)
                run.advance(self.backbone, self._layers[start:end], attention_mask)
            run.tokens = self._after_layers(run.tokens)
        num_kept = num_patches if output.positions is None else output.positions.shape[1]
        output.patches = run.tokens[:, prefix : prefix + num_kept]
        output.patch_mask = None if token_mask is None else token_mask[:, prefix : prefix + num_kept]
        output.hidden_states, output.attentions = run.hidden_states, run.attentions
        return output

    def _encode_native_shapes(
        self, pixel_values: torch.Tensor, spatial_shapes: Any, requested: dict[str, bool]
    ) -> QCAImageFeatures:
        """The features of pictures that each have a grid of their own."""
        mask = is_token(shape_boxes(spatial_shapes, pixel_values.shape[1]))
        run = self.backbone(
            pixel_values=pixel_values,
            pixel_attention_mask=mask.long(),
            spatial_shapes=spatial_shapes,
            return_dict=True,
            **requested,
        )
        return QCAImageFeatures(
            last_hidden_state=run.last_hidden_state,
            pooler_output=masked_mean(run.last_hidden_state, mask, dim=1),
            spatial_shapes=spatial_shapes,
            hidden_states=run.hidden_states,
            attentions=run.attentions,
        )

    def _run_shared_layers(
        self, pixel_values: torch.Tensor, interpolation: dict[str, bool], requested: dict[str, bool]
    ) -> tuple[torch.Tensor, LayerRun]:
        """Tokens after the last layer that no question changes, or of `vision_feature_layers` side by side."""
        tokens = self.backbone.embeddings(pixel_values, **interpolation)
        if self.layout.before_layers is not None:
            tokens = self.backbone.get_submodule(self.layout.before_layers)(tokens)
        run = LayerRun.start(tokens, self._rotary(tokens, *self.grid(*pixel_values.shape[-2:])), requested)
        feature_layers = self.config.vision_feature_layers
        if feature_layers is None:
            run.advance(self.backbone, self._layers[: self.config.first_question_layer])
            return run.tokens, run
        features = {}
        for start, end in pairwise([0, *sorted(set(feature_layers))]):
            run.advance(self.backbone, self._layers[start:end])
            features[end] = self._after_layers(run.tokens)
        return torch.cat([features[layer] for layer in feature_layers], dim=-1), run

    def _after_layers(self, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` as the backbone normalizes those of its last layer."""
        name = self.layout.after_layers
        return tokens if name is None else self.backbone.get_submodule(name)(tokens)

    @property
    def reads_layers(self) -> bool:
        """Whether other modules call the norm and the projections of a layer, so that FSDP must not shard it alone."""
        shared = self.config.vision_conditioning == "shared_projections" and len(self.conditioning) > 0
        return shared or (self.budget is not None and self.budget.scorer == "cls_attention")

    def _projections(self, index: int) -> LayerProjections:
        layer = self._layers[index]
        if isinstance(layer, FSDPModule) and self.reads_layers:
            raise RuntimeError(UNDER_FSDP.format(type(layer).__name__.removeprefix("FSDP")))
        return LayerProjections.of(layer.get_submodule(self.layout.norm), layer.get_submodule(self.layout.attention))

    @property
    def _budget_layers(self) -> list[int]:
        return [] if self.budget is None else [self.config.token_budget_layer]

    @property
    def _layers(self) -> Any:
        return self.backbone.get_submodule(self.layout.layers)

    def _rotary(self, tokens: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rotary embeddings `[N, d]` of the patches, in the dtype of `tokens`; `None` for an encoder without them."""
        if self.layout.rotary is None:
            return None
        down, across = self.config.patch_size
        picture = tokens.new_empty(1, 1, 1, 1).expand(1, 1, rows * down, columns * across)  # its shape is read
        return self.backbone.get_submodule(self.layout.rotary)(picture)

    def _interpolation(self, height: int, width: int) -> dict[str, bool]:
        """What the encoder wants to be told of images of another size than its own."""
        name = "interpolate_pos_encoding"
        takes_it = name in inspect.signature(self.backbone.forward).parameters
        return {name: True} if takes_it and (height, width) != self.shape.image_size else {}


def check_spatial_shapes(
    spatial_shapes: torch.Tensor | None, images: int, length: int, mask: torch.Tensor | None = None
):
    """
    Raises:
        ValueError: if `spatial_shapes` are not (rows, columns) of `images` pictures with at most `length` patches, or
            `mask` `[I, N]` has others.
    """
    if spatial_shapes is None or spatial_shapes.shape != (images, 2):
        given = "none" if spatial_shapes is None else tuple(spatial_shapes.shape)
        raise ValueError(
            f"`spatial_shapes` must be [{images}, 2] (rows, columns) of each picture, got {given}; pass all that the "
            "processor returns."
        )
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    counts = spatial_shapes.prod(dim=1)
    if (spatial_shapes < 1).any() or (counts > length).any():
        raise ValueError(
            f"`spatial_shapes` must name 1 to {length} patches for each picture, got {spatial_shapes.tolist()}."
        )
    if mask is not None and not torch.equal(mask.bool(), torch.arange(length, device=mask.device) < counts[:, None]):
        raise ValueError(
            "`pixel_attention_mask` must be 1 for the patches that `spatial_shapes` names, which come first, and 0 "
            "for the padding behind them; pass what the processor returns."
        )


def _accepted(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The `options` that `function` takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def _at_positions(rotary: Any, positions: torch.Tensor) -> Any:
    """Rotary embeddings `[B, 1, K + 1, d]` of the patches at `positions` `[B, K]` of `[N, d]`, and of the token that
    stands for the others: it has no place, so nothing turns it."""
    if rotary is None:
        return None
    cosine, sine = (angles[positions.to(angles.device)] for angles in rotary)
    rotated = [
        torch.cat([cosine, torch.ones_like(cosine[:, :1])], 1),
        torch.cat([sine, torch.zeros_like(sine[:, :1])], 1),
    ]
    return tuple(angles[:, None] for angles in rotated)


__all__ = ["QCAImageFeatures", "QCAVisionOutput", "QuestionAwareVisionEncoder"]
