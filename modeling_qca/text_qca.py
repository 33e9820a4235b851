"""The text encoder: what may be one, and how it reads a batch of questions.

B questions, L question tokens.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, SiglipTextConfig, SiglipTextModel

from .configuration_qca import QCAConfig
from .validation_qca import build_encoder

AutoModel.register(SiglipTextConfig, SiglipTextModel, exist_ok=True)  # the one text tower that AutoModel leaves out
POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe")
# encoders whose layers do not say so
CAUSAL_ENCODERS = ("bloom", "clip_text_model", "codegen", "gpt_neox_japanese", "mpt", "openai-gpt", "xglm")


def build_text_encoder(config: QCAConfig) -> Any:
    """
    Raises:
        ValueError: where `text_config` describes no encoder, or one whose first token cannot stand for the question.
    """
    encoder = build_encoder(config.text_config, "text_config", "input_ids")
    if encoder.config.is_encoder_decoder:
        raise ValueError(
            f"The text encoder ({config.text_config.model_type}) is an encoder-decoder; pass an encoder's config."
        )
    if config.question_pooling == "cls" and _is_causal(encoder):
        raise ValueError(
            f"The first token of a causal text encoder ({config.text_config.model_type}) has read none of the "
            'others; pass `question_pooling="last"` or "mean".'
        )
    return encoder


def read_questions(encoder: Any, words: dict[str, torch.Tensor], requested: dict[str, bool], explained: bool) -> Any:
    """
    The text encoder's output; where no dropout and no explanation sets them apart, equal questions (about different
    images) are read once.

    Args:
        words: the encoder's inputs, each `[B, L]`.
        requested: hidden states or attentions, of every question.
        explained: whether the gradient of each question's own states may be asked for.
    """
    apart = encoder.training or any(requested.values()) or explained
    if apart or torch.compiler.is_compiling() or len(words["input_ids"]) == 1:
        return encoder(**words, return_dict=True, **requested)
    stacked = torch.stack(list(words.values()), dim=-1)  # [B, L, kinds]
    distinct, which = stacked.unique(dim=0, return_inverse=True)
    text = encoder(**dict(zip(words, distinct.unbind(-1), strict=True)), return_dict=True)
    return type(text)(last_hidden_state=text.last_hidden_state[which])


def max_question_length(encoder: nn.Module) -> int | None:
    """The most tokens a text encoder has learned positions for; None where it knows positions in another way."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.split(".")[-1] in POSITION_TABLES:
            unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from behind it
            return module.num_embeddings - unused
    return None


def _is_causal(encoder: Any) -> bool:
    """Whether its tokens read only those before them; decoders can be told not to by `is_causal=False`."""
    if getattr(encoder.config, "is_causal", None) is False:
        return False
    says_so = any(getattr(module, "is_causal", False) for module in encoder.modules())
    return says_so or getattr(encoder.config, "is_decoder", False) or encoder.config.model_type in CAUSAL_ENCODERS


__all__ = ["build_text_encoder", "max_question_length", "read_questions"]
