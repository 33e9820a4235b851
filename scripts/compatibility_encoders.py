"""Tiny encoders for the compatibility table: vision encoders of every architecture that `AutoModel` builds from images
alone, and the text encoders that people choose.

A factory builds a config of a few thousand weights. A vision encoder reads pictures of `IMAGE` pixels, or those of its
own `image_size`; a text encoder knows `VOCABULARY` tokens, and at least `LONGEST` of them in a question.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, BertConfig, PreTrainedConfig, Siglip2ImageProcessorPil

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering

IMAGE = 64  # pixels of a side
PATCH = 8
VOCABULARY, LONGEST = 60, 16
MOST_PLACES = 12  # of a picture, whose patches are changed

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
_SAM = _VIT | {"output_channels": 16, "window_size": 4, "global_attn_indexes": [1]}
_SAM2 = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 4, 4],
    "global_attention_blocks": [3],
}
_TIMM = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4, "dynamic_img_size": True}
_MOBILEVIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 24, 28, 32], "num_attention_heads": 2}

# Fields of each config beside its defaults. The name is a model type; behind it may be an architecture of timm.
FIELDS: dict[str, dict[str, Any]] = {
    # Every layer sees a prefix and the same grid of patches.
    "aimv2_vision_model": _VIT,
    "altclip_vision_model": _VIT,
    "beit": _VIT,
    "blip_2_vision_model": _VIT,
    "blip_vision_model": _VIT,
    "chinese_clip_vision_model": _VIT,
    "clip_vision_model": _VIT,
    "clipseg_vision_model": _VIT,
    "data2vec-vision": _VIT,
    "deit": _VIT,
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "dinov3_vit": _VIT,
    "dpt": _VIT,
    "git_vision_model": _VIT,
    "ijepa": _VIT,
    "instructblip_vision_model": _VIT,
    "instructblipvideo_vision_model": _VIT,
    "internvl_vision": _VIT | {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]},
    "janus_vision_model": _VIT,
    "metaclip_2_vision_model": _VIT,
    "mgp-str": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": [32, 64]},
    "mlcd_vision_model": _VIT,
    "owlv2_vision_model": _VIT,
    "owlvit_vision_model": _VIT,
    "pixio": _VIT,
    "qianfan_ocr_vision": _VIT | {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]},
    "radio": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_SIZE},
    "sapiens2": _VIT,
    "siglip_vision_model": _VIT,
    "siglip2_vision_model": _VIT | {"image_size": None, "num_patches": 64},
    "tipsv2_vision_model": _DINO,
    "timm_wrapper vit_tiny_patch16_224": {"model_args": _TIMM},
    "timm_wrapper eva02_tiny_patch14_224": {"model_args": _TIMM},
    "timm_wrapper vit_pe_core_tiny_patch16_384": {"model_args": _TIMM},
    "timm_wrapper vit_pe_spatial_tiny_patch16_512": {"model_args": _TIMM},
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
    "sam2_vision_model": {"backbone_config": _SAM2, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16},
    "sam_hq_vision_model": _SAM,
    "sam_vision_model": _SAM,
    "segformer": _SEGFORMER,
    "swiftformer": {
        "image_size": IMAGE,
        "embed_dims": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
    },
    "swin": _SWIN,
    "swin2sr": {**_SWIN, "patch_size": 1, "window_size": 8},
    "swinv2": _SWIN,
    "timm_wrapper convnext_atto": {"model_args": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}},
    "textnet": {
        "image_size": [IMAGE, IMAGE],
        "hidden_sizes": [8, 8, 16, 24, 32],
        "stem_num_channels": 3,
        "stem_out_channels": 8,
    },
    "vitdet": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_SIZE},
    # More than one picture, pictures that are packed into one row, or tokens that are no patches.
    "glm_image_vision": {},
    "groupvit_vision_model": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, **_SIZE},
    "pixtral": _VIT,
    "seggpt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": [128, 64]},
    "timesformer": _VIT,
    "videomae": _VIT,
    "vivit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": IMAGE},
}

_WORDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_BERT = _WORDS | _WIDTH | {"max_position_embeddings": LONGEST + 4}
_NARROW = _BERT | {"embedding_size": 16}
_LLAMA = _BERT | {"num_key_value_heads": 2, "head_dim": 8}
_T5 = _WORDS | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_XLM = _WORDS | {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": LONGEST}
TEXT_FIELDS: dict[str, dict[str, Any]] = {
    # Encoders.
    "albert": _NARROW,
    "altclip_text_model": _BERT,
    "bert": _BERT,
    "big_bird": _BERT | {"attention_type": "original_full"},
    "blip_text_model": _BERT,
    "camembert": _BERT,
    "canine": _BERT,
    "chinese_clip_text_model": _BERT,
    "convbert": _BERT | {"embedding_size": 32},
    "data2vec-text": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": _WORDS | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 20},
    "electra": _NARROW,
    "ernie": _BERT,
    "eurobert": _LLAMA,
    "flaubert": _XLM,
    "fnet": _BERT,
    "funnel": {
        "block_sizes": [1, 1],
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 64,
        "vocab_size": VOCABULARY,
    },
    "ibert": _BERT,
    "jina_embeddings_v3": _BERT,
    "longformer": _BERT | {"attention_window": 4},
    "luke": _BERT | {"entity_vocab_size": 4},
    "mobilebert": _BERT | {"embedding_size": 32, "intra_bottleneck_size": 32},
    "modernbert": _BERT | {"global_attn_every_n_layers": 2},
    "mpnet": _BERT,
    "mra": _BERT,
    "nomic_bert": _BERT,
    "nystromformer": _BERT,
    "reformer": _WORDS | {"hidden_size": 32, "axial_pos_embds_dim": [16, 16]},
    "rembert": _BERT,
    "roberta": _BERT,
    "roberta-prelayernorm": _BERT,
    "roformer": _BERT | {"embedding_size": 32},
    "squeezebert": _BERT | {"embedding_size": 32},
    "xlm": _XLM,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _BERT,
    "xlnet": _WORDS | {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "xmod": _BERT | {"languages": ["en"], "default_language": "en"},
    "yoso": _BERT,
    # Encoders of an encoder-decoder.
    "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": VOCABULARY},
    "mt5": _T5,
    "t5": _T5,
    "t5gemma": {},
    "umt5": _T5,
    # Towers of two-tower models.
    "clip_text_model": _BERT,
    "metaclip_2_text_model": _BERT,
    "siglip_text_model": _BERT,
    "siglip2_text_model": _BERT,
    "tipsv2_text_model": _BERT,
    # Causal language models.
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
    "gemma3_text": _LLAMA,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 20, **_WORDS},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "opt": _BERT | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}


def text_encoders() -> Iterator[tuple[str, Callable[..., PreTrainedConfig]]]:
    """As [`vision_encoders`], for text."""
    for model_type, fields in TEXT_FIELDS.items():
        if model_type in CONFIG_MAPPING:
            yield model_type, partial(_config, model_type, fields)


def vision_encoders() -> Iterator[tuple[str, Callable[..., PreTrainedConfig]]]:
    """(name, factory of a tiny config) of each architecture that the installed transformers has. A factory takes
    further fields of the config."""
    for name, fields in FIELDS.items():
        model_type, _, architecture = name.partition(" ")
        if model_type in CONFIG_MAPPING:
            yield name, partial(_config, model_type, fields | ({"architecture": architecture} if architecture else {}))


def _config(model_type: str, fields: dict[str, Any], **changes: Any) -> PreTrainedConfig:
    fields = {name: value for name, value in (fields | changes).items() if value is not None}
    return CONFIG_MAPPING[model_type](**fields)


def compose(vision_config: PreTrainedConfig, **fields: Any) -> QCAForVisualQuestionAnswering:
    """A model in evaluation mode of this encoder with random weights, and a tiny BERT."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = BertConfig(vocab_size=50, max_position_embeddings=16, **shape)
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_attention_layers": 1, "num_labels": 2, "initializer_range": 0.2}
    model = QCAForVisualQuestionAnswering(QCAConfig.from_vision_text_configs(vision_config, text, **options | fields))
    _make_local(model)
    return model.eval()


@torch.no_grad()
def _make_local(model: QCAForVisualQuestionAnswering):
    """Random convolutions that pass a signal on, and most of it straight. Otherwise a deep network of small random
    weights forgets its input, and one of large weights spreads it over the whole picture."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        nn.init.normal_(module.weight)
        if module.kernel_size > module.stride:  # they overlap
            around = torch.full(module.kernel_size, 0.01)
            around[module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1
            module.weight *= around
        module.weight /= module.weight.flatten(1).norm(dim=1)[:, None, None, None]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean of all batches
    if norms:
        model.get_image_features(torch.rand(4, 3, *model.config.image_size))


def found_by_occlusion(model: QCAForVisualQuestionAnswering) -> dict[tuple[int, int], bool]:
    """
    Whether each token stands for its patch: where the pixels of a patch change, its token changes most.

    A convolution of random weights spreads a change. So where the output is a feature map, the center of the change
    has to follow the patch that was changed (a correlation over 0.7 of rows and of columns).

    Returns:
        The outcome for pictures of two shapes that are not square, or of the encoder's own size where it reads no
        other.
    """
    down, across = model.config.patch_size
    cells = 2 if down <= 2 * PATCH else 1  # windows of attention are four patches wide
    found = {}
    for size in ((3 * cells * down, 5 * cells * across), (6 * cells * down, 4 * cells * across)):
        try:
            found[size] = _is_found(model, size)
        except (ValueError, RuntimeError, AssertionError):  # each encoder refuses a size in its own way
            found[model.config.image_size] = _is_found(model, model.config.image_size)
    return found


@torch.no_grad()
def _is_found(model: QCAForVisualQuestionAnswering, size: tuple[int, int]) -> bool:
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    _, (rows, columns) = _patches(model, picture)
    height, width = size[0] // rows, size[1] // columns
    places = torch.arange(rows * columns)[:: -(-rows * columns // MOST_PLACES)]
    pictures = picture.repeat(1 + 2 * len(places), 1, 1, 1)
    for number, place in enumerate(places.tolist(), start=1):
        top, left = place // columns * height, place % columns * width
        for color in (0, 1):
            changed = pictures[number + color * len(places)]
            changed[:, top : top + height, left : left + width] = color
    patches, _ = _patches(model, pictures)
    moved = (patches[1:] - patches[:1]).norm(dim=-1).unflatten(0, (2, -1)).sum(dim=0)  # [places, N]
    found = bool((moved.argmax(dim=-1) == places).all())
    if found or len(places) < 2 or not model.qca.vision_encoder.shape.is_feature_map:
        return found
    moved = moved / moved.mean(dim=0).clamp(min=1e-30)
    centers = torch.stack([torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns]).float()
    followed = (moved / moved.sum(dim=-1, keepdim=True)) @ centers.T  # [places, 2]
    axes = zip(followed.T, centers[:, places], strict=True)
    return all(torch.corrcoef(torch.stack(pair))[0, 1] > 0.7 for pair in axes)


def _patches(model: QCAForVisualQuestionAnswering, pictures: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Tokens of the patches of `pictures` `[I, 3, h, w]` of values in 0..1, and their grid (rows, columns)."""
    if not model.config.has_native_shapes:
        features = model.get_image_features(pictures)
        rows, columns = features.grid
        return features.last_hidden_state[:, -rows * columns :], features.grid
    down, across = model.config.patch_size
    count = pictures.shape[-2] // down * (pictures.shape[-1] // across)
    cut = Siglip2ImageProcessorPil(patch_size=down, max_num_patches=count + 1)  # with one of padding
    inputs = cut(list((pictures * 255).byte().numpy()), return_tensors="pt")
    features = model.get_image_features(**inputs)
    rows, columns = features.spatial_shapes[0].tolist()
    return features.last_hidden_state[:, : rows * columns], (rows, columns)
