"""Tiny zero-shot object detection models with random weights, saved as a user would load them."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from .tiny import tiny_tokenizer

LAYER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_owlv2(folder: Path) -> Path:
    """OWLv2 with 8 x 8 boxes; about half of its scores are above 0.5."""
    torch.manual_seed(0)
    text = {**LAYER, "vocab_size": 64, "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 3}
    vision = {**LAYER, "image_size": 64, "patch_size": 8}
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))
    for weight in (model.class_head.logit_shift.weight, model.class_head.logit_scale.weight):
        torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.normal_(model.box_head.dense2.weight, std=1.0)
    model.save_pretrained(folder)
    images = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    Owlv2Processor(images, tiny_tokenizer()).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    """Grounding DINO with ten boxes a phrase."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, window_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], out_indices=[2, 3]
    )
    text = BertConfig(**LAYER, vocab_size=64, max_position_embeddings=32, pad_token_id=0)
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=10,
        num_feature_levels=2,
        max_text_len=32,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"height": 64, "width": 64})
    GroundingDinoProcessor(images, tiny_tokenizer(model_max_length=32)).save_pretrained(folder)
    return folder
