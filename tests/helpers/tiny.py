"""Tiny seeded encoders, models, processors and batches. Nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    BertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    TrainingArguments,
    ViTImageProcessorPil,
)

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.layouts_qca import LAYOUTS

TEXT = (
    "what where which is are the a of left right above below color color object shape red green blue cube ball ring "
    "big small many how to in on there bigger one two three yes no ?"
)
WORDS = TEXT.split()
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANSWERS = {0: "red", 1: "green", 2: "blue", 3: "yes", 4: "no"}
IMAGE_SIZE, PATCH_SIZE = 32, 8

# The encoders that the question may enter, as far as the installed transformers has them.
LAYOUT_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    model_type: CONFIG_MAPPING[model_type] for model_type in LAYOUTS if model_type in CONFIG_MAPPING
}
# Those in which every test runs. The others share their code.
VISION_CONFIGS = {
    model_type: LAYOUT_CONFIGS[model_type]
    for model_type in (
        "vit",
        "deit",
        "dinov2_with_registers",
        "dinov3_vit",
        "clip_vision_model",
        "siglip_vision_model",
    )
}


def tiny_vision_config(model_type: str = "vit", **fields: Any) -> PreTrainedConfig:
    """A vision encoder of 3 layers, width 32 and 4 x 4 patches."""
    width: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    if model_type.startswith(("dinov2", "tipsv2")):
        width["mlp_ratio"] = 2
    else:
        width["intermediate_size"] = 64
    if model_type.startswith("dinov3"):
        width |= {"num_register_tokens": 2, "layerscale_value": 0.5}
    if model_type.startswith("aimv2"):
        width["is_native"] = True  # it reads images of any size
    return LAYOUT_CONFIGS[model_type](image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, **width | fields)


def tiny_text_config(**fields: Any) -> BertConfig:
    """A BERT of 2 layers and width 24 over the words of [`tiny_tokenizer`]."""
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return BertConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(WORDS), max_position_embeddings=16, pad_token_id=0, **shape | fields
    )


def tiny_config(vision: str = "vit", **fields: Any) -> QCAConfig:
    """Two hops of four heads over 16 patches and [`ANSWERS`], without dropout, with the other defaults of 0.1."""
    defaults = {
        "question_pooling": "cls",
        "relevance_scorer": "dot_product",
        "num_attention_heads": 4,
        "answer_query": "updated",
        "num_classifier_layers": 2,
        "classifier_dropout": 0.0,
        "evidence_dropout": 0.0,
        "id2label": ANSWERS,
    }
    text = tiny_text_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return QCAConfig.from_vision_text_configs(tiny_vision_config(vision), text, **defaults | fields)


def tiny_model(vision: str = "vit", seed: int = 0, **fields: Any) -> QCAForVisualQuestionAnswering:
    """A model in evaluation mode whose random weights are large enough for its outputs to depend on its inputs."""
    torch.manual_seed(seed)
    config = tiny_config(vision, **{"initializer_range": 0.2} | fields)
    config.vision_config.initializer_range = config.text_config.initializer_range = 0.2
    return QCAForVisualQuestionAnswering(config).eval()


def tiny_tokenizer(**fields: Any) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of whole words that adds [CLS] and [SEP], as BERT's."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL_TOKENS + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL_TOKENS, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"model_max_length": 16} | special | fields)


def tiny_processor(**fields: Any) -> QCAProcessor:
    """`fields` are the image processor's."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return QCAProcessor(ViTImageProcessorPil(**{"size": size} | fields), tiny_tokenizer())


def tiny_image(seed: int = 0, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> Image.Image:
    """An RGB picture of `size` (width, height) whose every 8 x 8 pixels have a color of their own."""
    generator = torch.Generator().manual_seed(seed)
    shape = (-(-size[1] // PATCH_SIZE), -(-size[0] // PATCH_SIZE), 3)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST)


def tiny_batch(
    questions: int = 3,
    images: int = 2,
    tokens: int = 7,
    size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE),
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Random inputs: question `i` is `tokens - i % 3` long and padded on the right; `size` is (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = len(SPECIAL_TOKENS) + len(WORDS)
    input_ids = torch.randint(len(SPECIAL_TOKENS), vocabulary, (questions, tokens), generator=generator)
    lengths = torch.tensor([tokens - i % 3 for i in range(questions)])
    attention_mask = (torch.arange(tokens) < lengths[:, None]).long()
    return {
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": torch.randn(images, 3, *size, generator=generator),
        "image_index": torch.arange(questions) % images,
    }


def save_tiny_model(folder: Path, **fields: Any) -> QCAForVisualQuestionAnswering:
    """Save a tiny model with its processor, as a user would share it."""
    model = tiny_model(**fields)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return model


def plain_arguments(folder: Path, **arguments: Any) -> TrainingArguments:
    """Arguments of a plain `Trainer` on the CPU that saves every step and reports nothing."""
    defaults = {"save_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    defaults |= {"remove_unused_columns": False, "label_names": ["labels"]}
    return TrainingArguments(str(folder), **defaults | arguments)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have the same parameters and buffers, bit for bit."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(weight, two[name]) for name, weight in one.items())


def called_operators(run: Callable[[], Any]) -> dict[str, int]:
    """How often it calls each operator of PyTorch."""
    with torch.profiler.profile() as profile:
        run()
    return {event.key: event.count for event in profile.key_averages()}


def checkpoint_activations(model: Any):
    """What transformers calls by this name since 5.23, and gradient checkpointing before."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
