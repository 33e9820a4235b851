"""Placement on devices: offloaded weights, maps over two devices, and the dtype of modules that need float32."""

from itertools import product

import pytest
import torch
from accelerate import cpu_offload, infer_auto_device_map
from helpers.tiny import VISION_CONFIGS, tiny_batch, tiny_config, tiny_model
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_qca import QCAForVisualQuestionAnswering

MODES = ["patches_read_question", "question_reads_patches", "shared_projections"]
CONDITIONING = [{}, *({"vision_conditioning_layers": "all", "vision_conditioning": mode} for mode in MODES)]
BUDGETS = [
    {},
    {"token_budget": 8, "token_budget_layer": 1},
    {"token_budget": [3, 8], "token_budget_layer": 1, "token_budget_scorer": "cls_attention"},
]
VARIANTS = [conditioning | budget for conditioning, budget in product(CONDITIONING, BUDGETS)]
EVERYTHING = VARIANTS[-1] | {"query_tokens": "attended", "patch_update": "broadcast", "spatial_fusion": True}
variants = pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: "-".join(map(str, fields.values())))


def opened(**fields):
    """A model whose gates are open, so that conditioning changes its logits."""
    model = tiny_model(**fields)
    for condition in model.qca.vision_encoder.conditioning.values():
        condition.gate.data.fill_(0.5)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**tiny_batch()).logits


@variants
def test_offload_to_disk_gives_equal_logits(fields, tmp_path):
    model = opened(**fields)
    model.save_pretrained(tmp_path / "model")
    loaded = QCAForVisualQuestionAnswering.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    assert {parameter.device.type for parameter in loaded.parameters()} == {"meta"}
    assert logits(loaded).equal(logits(model))


@variants
def test_offload_to_memory_gives_equal_logits(fields):
    model = opened(**fields)
    expected = logits(model)
    assert logits(cpu_offload(model, execution_device=torch.device("cpu"))).equal(expected)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_memory_limit_offloads_a_part_and_gives_equal_logits(share, tmp_path):
    model = opened(**EVERYTHING)
    model.save_pretrained(tmp_path / "model")
    size = sum(parameter.nbytes for parameter in model.parameters())
    loaded = QCAForVisualQuestionAnswering.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(share * size)},
        offload_folder=tmp_path / "offloaded",
    )
    assert {parameter.device.type for parameter in loaded.parameters()} == {"meta", "cpu"}
    assert logits(loaded).equal(logits(model))


def test_device_map_auto_places_a_model(tmp_path):
    model = opened(**EVERYTHING)
    model.save_pretrained(tmp_path)
    loaded = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, device_map="auto")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_two_device_maps_split_no_layer(vision):
    """A layer adds what its parts return, and the hops are stacked, so each has to lie on one device."""
    with torch.device("meta"):
        model = QCAForVisualQuestionAnswering(tiny_config(vision, num_attention_layers=3, **VARIANTS[-2]))
    size = sum(parameter.nbytes for parameter in model.parameters())
    ours = {"AttentionHops", "GatedConditioning", "PatchEmbedder", "QueryEmbedder", "TokenBudget"}
    whole = [
        name
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
        or type(module).__name__ in ours
        or name.endswith(("backbone.embeddings", "text_encoder.embeddings"))
    ]
    assert len(whole) == 2 + 3 + 2 + 3 + 3 + 4  # embeddings, layers of the encoders, conditioning, hops, our modules
    used = set()
    for share in range(1, 42):
        memory = {0: size * share // 42, 1: 2 * size, "cpu": 2 * size}
        places = infer_auto_device_map(model, memory, no_split_module_classes=model._no_split_modules)
        used.add(len(set(places.values())))
        split = {part: name for part in places for name in whole if part.startswith(f"{name}.")}
        assert not split, share
    assert 2 in used


def test_names_of_modules_that_must_not_be_split_are_in_the_model():
    """FSDP ends in an error if it is to wrap a class that the model lacks."""
    model = tiny_model("clip_vision_model")
    assert model._no_split_modules <= {type(module).__name__ for module in model.modules()}
    assert {"CLIPEncoderLayer", "CLIPVisionEmbeddings", "BertLayer"} <= model._no_split_modules


def test_modules_of_the_backbone_that_need_float32_keep_it(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    backbone = type(model.qca.vision_encoder.backbone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "_keep_in_fp32_modules_strict", ["layernorm_before"])
        half = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, dtype=torch.float16)
    layer = half.qca.vision_encoder.backbone.layers[0]
    assert (layer.layernorm_before.weight.dtype, layer.layernorm_after.weight.dtype) == (torch.float32, torch.float16)
