"""Tiny vision encoders of every architecture that `AutoModel` builds from images alone, for the compatibility tables.

A factory builds a config of a few thousand weights. Its encoder reads pictures of `IMAGE` pixels, or those of its own
`image_size`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

IMAGE = 64  # pixels of a side
PATCH = 8

_SIZE = {"image_size": IMAGE, "patch_size": PATCH}
_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, **_SIZE}
_DINO = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2, **_SIZE}
_SWIN = {
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": IMAGE,
    "patch_size": 4,
}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_RESNET = {"embedding_size": 8, **_STAGES, "layer_type": "basic"}
_PVT = {"num_attention_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
_SEGFORMER = _PVT | {"num_encoder_blocks": 4}
_MOBILEVIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 24, 28, 32], "num_attention_heads": 2}

# Fields of each config beside its defaults.
FIELDS: dict[str, dict[str, Any]] = {
    # Every layer sees a prefix and the same grid of patches.
    "aimv2_vision_model": _VIT,
    "altclip_vision_model": _VIT,
    "beit": _VIT,
    "blip_vision_model": _VIT,
    "chinese_clip_vision_model": _VIT,
    "clip_vision_model": _VIT,
    "data2vec-vision": _VIT,
    "deit": _VIT,
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "dinov3_vit": _VIT,
    "dpt": _VIT,
    "git_vision_model": _VIT,
    "ijepa": _VIT,
    "internvl_vision": _VIT | {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]},
    "metaclip_2_vision_model": _VIT,
    "mgp-str": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": [32, 64]},
    "mlcd_vision_model": _VIT,
    "pixio": _VIT,
    "radio": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_SIZE},
    "sapiens2": _VIT,
    "siglip_vision_model": _VIT,
    "siglip2_vision_model": _VIT | {"image_size": None, "num_patches": 64},
    "tipsv2_vision_model": _DINO,
    "timm_wrapper": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4},
    },
    "vit": _VIT,
    "vit_mae": _VIT,
    "vit_msn": _VIT,
    "yolos": _VIT | {"image_size": [IMAGE, IMAGE]},
    # A feature map, or patches that merge from stage to stage.
    "align_vision_model": {"image_size": IMAGE, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "bit": {**_RESNET, "layer_type": "preactivation", "num_groups": 2},
    "convnext": _STAGES | {"image_size": IMAGE},
    "convnextv2": _STAGES | {"image_size": IMAGE},
    "cvt": {"embed_dim": [8, 16, 32], "depth": [1, 2, 3], "num_heads": [1, 2, 4]},
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 4], "dilations": [[1], [1]], "kernel_size": 3},
    "dinov3_convnext": _STAGES | {"image_size": IMAGE},
    "donut-swin": _SWIN,
    "efficientnet": {"image_size": IMAGE, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "focalnet": {
        "image_size": IMAGE,
        "embed_dim": 8,
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "glpn": _SEGFORMER,
    "hgnet_v2": {},
    "hiera": {
        "embed_dim": 8,
        "image_size": [IMAGE, IMAGE],
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 4],
        "query_stride": [2, 2],
        "num_query_pool": 2,
        "masked_unit_size": [4, 4],
    },
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "maskformer-swin": _SWIN,
    "mobilenet_v1": {"image_size": IMAGE, "depth_multiplier": 0.05},
    "mobilenet_v2": {"image_size": IMAGE, "depth_multiplier": 0.1},
    "mobilevit": _MOBILEVIT | {"image_size": IMAGE},
    "mobilevitv2": {"image_size": IMAGE, "width_multiplier": 0.125},
    "poolformer": _STAGES,
    "pvt": _PVT | {"image_size": IMAGE, "num_encoder_blocks": 4},
    "pvt_v2": _PVT | {"image_size": IMAGE},
    "regnet": {**_RESNET, "layer_type": "y", "groups_width": 4},
    "resnet": _RESNET,
    "sam_vision_model": _VIT | {"output_channels": 16, "window_size": 4, "global_attn_indexes": [1]},
    "segformer": _SEGFORMER,
    "swiftformer": {
        "image_size": IMAGE,
        "embed_dims": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
    },
    "swin": _SWIN,
    "swin2sr": {**_SWIN, "patch_size": 1, "window_size": 8},
    "swinv2": _SWIN,
    "textnet": {
        "image_size": [IMAGE, IMAGE],
        "hidden_sizes": [8, 8, 16, 24, 32],
        "stem_num_channels": 3,
        "stem_out_channels": 8,
    },
    "vitdet": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_SIZE},
    # More than one picture, or pictures that are packed into one row.
    "glm_image_vision": {},
    "pixtral": _VIT,
    "seggpt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": [128, 64]},
    "timesformer": _VIT,
    "videomae": _VIT,
    "vivit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": IMAGE},
}


def vision_encoders() -> Iterator[tuple[str, Callable[..., PreTrainedConfig]]]:
    """(model type, factory of a tiny config) of each architecture that the installed transformers has. A factory takes
    further fields of the config."""
    for model_type, fields in FIELDS.items():
        if model_type in CONFIG_MAPPING:
            yield model_type, partial(_config, model_type, fields)


def _config(model_type: str, fields: dict[str, Any], **changes: Any) -> PreTrainedConfig:
    fields = {name: value for name, value in (fields | changes).items() if value is not None}
    return CONFIG_MAPPING[model_type](**fields)
