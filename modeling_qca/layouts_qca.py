"""Where the parts of a vision encoder are; no other code knows them. And encoders that no code can read rightly."""

from dataclasses import dataclass, replace
from typing import Any

import transformers
from transformers import MODEL_MAPPING, AutoModel
from transformers.utils import is_timm_available


@dataclass(frozen=True)
class EncoderLayout:
    """
    Names of the submodules of an architecture whose layers may depend on the question.

    Args:
        layers: the list of layers.
        attention, norm: of a layer: its attention, and the norm before it.
        before_layers, after_layers: a norm before the first layer and behind the last, if any.
        prefix: number of tokens before the patches, registers not counted, or the config's field that holds it.
        rotary: makes the rotary embeddings of the patches, which each layer takes.
    """

    layers: str
    attention: str
    norm: str
    before_layers: str | None = None
    after_layers: str | None = None
    prefix: int | str = 1
    rotary: str | None = None

    def num_prefix_tokens(self, vision_config: Any) -> int:
        """Tokens before the patches: CLS and registers."""
        own = self.prefix if isinstance(self.prefix, int) else getattr(vision_config, self.prefix)
        return own + getattr(vision_config, "num_register_tokens", 0)


_VIT = EncoderLayout("layers", "attention", "layernorm_before", after_layers="layernorm")
_DINO = EncoderLayout("encoder.layer", "attention", "norm1", after_layers="layernorm")
_CLIP = EncoderLayout("encoder.layers", "self_attn", "layer_norm1", before_layers="pre_layrnorm")
LAYOUTS = {
    "vit": _VIT,
    "deit": replace(_VIT, prefix=2),
    "vit_msn": _VIT,
    "ijepa": replace(_VIT, prefix=0),
    "pixio": replace(_VIT, prefix="n_cls_tokens"),
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "tipsv2_vision_model": _DINO,
    "dinov3_vit": replace(_DINO, layers="model.layer", after_layers="norm", rotary="rope_embeddings"),
    "clip_vision_model": _CLIP,
    "chinese_clip_vision_model": _CLIP,
    "metaclip_2_vision_model": _CLIP,
    "siglip_vision_model": EncoderLayout(
        "encoder.layers", "self_attn", "layer_norm1", after_layers="post_layernorm", prefix=0
    ),
    "aimv2_vision_model": EncoderLayout("encoder.layers", "attention", "rms_norm1", after_layers="rms_norm", prefix=0),
}

# Each picture has a grid of its own: `spatial_shapes` come with patches that are cut already, padded to one length.
NATIVE_SHAPES = ("siglip2_vision_model",)

# Their outputs have the shape of patches, but are other things, in another order or not all; or nothing can run them.
REFUSED = {
    "dinat": "calls functions that the package natten has lacked since release 0.17.5; use `swin`",
    "glm_image_vision": "packs all pictures of a batch into one row",
    "groupvit_vision_model": "merges its patches into groups of any shape; use `clip_vision_model`",
    "mobilevitv2": "drops the last row or column of a feature map with an odd number of them; use `mobilevit`",
    "pixtral": "packs all pictures of a batch into one row",
    "vit_mae": "shuffles its patches and drops most of them; use `vit` with its weights",
    "yolos": "puts its detection tokens behind the patches; use `vit` or `deit`",
}

_READS_PADDING = "mixes padding into the states of its tokens, so that an answer would depend on the other questions"
REFUSED_TEXT = {  # why, as the rest of a sentence
    "altclip_text_model": "projects its states to another width than its `hidden_size`",
    "canine": "reads characters in groups, and " + _READS_PADDING,
    "convbert": _READS_PADDING,
    "fnet": _READS_PADDING,
    "funnel": "pools neighboring tokens, and " + _READS_PADDING,
    "mobilebert": "reads three neighboring tokens at once, and " + _READS_PADDING,
    "nystromformer": _READS_PADDING,
    "reformer": "hashes its tokens, and " + _READS_PADDING,
    "t5gemma": "holds its encoder inside of an encoder-decoder",
    "yoso": "samples its attention at random",
}


def check_vision_encoder(model_type: str):
    """
    Raises:
        ValueError: for an encoder whose relevance maps would be wrong, or that nothing can run.
        ImportError: for an encoder of a package that is not installed.
    """
    if model_type in REFUSED:
        raise ValueError(
            f"A `{model_type}` vision encoder {REFUSED[model_type]}. Encoders such as `dinov2`, `dinov3_vit` and "
            "`siglip_vision_model` return one token for each patch, in the order of the grid."
        )
    if model_type == "timm_wrapper" and not is_timm_available():
        raise ImportError(
            "A `timm_wrapper` vision encoder needs the packages timm and torchvision: `pip install timm torchvision`. "
            "Encoders such as `dinov2`, `dinov3_vit` and `siglip_vision_model` need neither."
        )


def check_text_encoder(config: Any):
    """
    Raises:
        ValueError: for an encoder whose states would be wrong, or without a width.
    """
    if config.model_type in REFUSED_TEXT:
        raise ValueError(
            f"A `{config.model_type}` text encoder {REFUSED_TEXT[config.model_type]}. Encoders such as `bert`, "
            "`modernbert`, `t5` and `qwen3` return one state for each token, whatever the padding."
        )
    if not hasattr(config, "hidden_size"):
        raise ValueError(
            f"A `{config.model_type}` text encoder has no `hidden_size`; pass the config of an encoder, not of a "
            "model that holds one."
        )


def register_tower(config: Any):
    """Tell `AutoModel` the class of one tower of a two-tower model (BLIP, MetaCLIP 2, SigLIP), if it lacks it."""
    if MODEL_MAPPING.get(type(config), None) is None:
        model_class = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
        if model_class is not None:
            AutoModel.register(type(config), model_class, exist_ok=True)


__all__ = [
    "LAYOUTS",
    "NATIVE_SHAPES",
    "EncoderLayout",
    "check_text_encoder",
    "check_vision_encoder",
    "register_tower",
]
