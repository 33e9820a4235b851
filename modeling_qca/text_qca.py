"""The text encoder: which encoders are accepted, and how a batch of questions is encoded.

U questions, L question tokens, E width of the text encoder.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_qca import QCAConfig
from .validation_qca import build_encoder

POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")
LIMITED_ENCODERS = ("tipsv2_text_model",)  # with computed positions, up to a length
# Causal encoders whose modules have no `is_causal` attribute.
CAUSAL_ENCODERS = ("bloom", "clip_text_model", "codegen", "gpt_neox_japanese", "mpt", "openai-gpt", "xglm")


@dataclass
class QCATextFeatures(ModelOutput):
    """
    Questions as the text encoder reads them, without any image; cacheable.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(texts, tokens, text width)`):
            States of the question tokens, padding behind them.
        pooler_output (`torch.FloatTensor` of shape `(texts, text width)`): the states pooled by `question_pooling`.
        attention_mask (`torch.LongTensor` of shape `(texts, tokens)`): 1 for tokens, 0 for padding.
        hidden_states, attentions (`tuple[torch.FloatTensor]`, *optional*): of the layers, on request.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def build_text_encoder(config: QCAConfig) -> Any:
    """
    Raises:
        ValueError: if `text_config` describes no encoder, or `question_pooling` does not fit it.
    """
    encoder = build_encoder(config.text_config, "text_config", "input_ids")
    if encoder.config.is_encoder_decoder and type(config.text_config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise ValueError(
            f"The text encoder ({config.text_config.model_type}) is an encoder-decoder; pass an encoder, such as a "
            "BERT, or a T5, which gives its encoder."
        )
    if config.question_pooling == "cls" and _is_causal(encoder):
        raise ValueError(
            f"`question_pooling` is 'cls', but the first token of a causal text encoder "
            f"({config.text_config.model_type}) sees no other token; pass `question_pooling=\"last\"` or 'mean'."
        )
    return encoder


def question_inputs(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """
    Inputs of the text encoder, each `[U, L]` (`inputs_embeds` `[U, L, E]`), with the padding behind the tokens.

    Encoders number absolute positions from the first column, so padding on the left would shift the tokens.

    Raises:
        ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass the questions as exactly one of `input_ids`, `inputs_embeds` and `text_features`.")
    words: dict[str, Any] = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    tokens = next(iter(words.values()))
    if attention_mask is None:
        attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    words["attention_mask"] = attention_mask.to(torch.long)
    if token_type_ids is not None:
        words["token_type_ids"] = token_type_ids
    order = attention_mask.sort(dim=1, descending=True, stable=True).indices
    if inputs_embeds is not None:
        words["inputs_embeds"] = inputs_embeds.gather(1, order[..., None].expand_as(inputs_embeds))
    return {name: states if states.dim() == 3 else states.gather(1, order) for name, states in words.items()}


def check_questions(
    words: dict[str, torch.Tensor], max_length: int | None, vocab_size: int | None
) -> dict[str, torch.Tensor]:
    """
    `words` of [`question_inputs`] if the encoder can read them; columns of padding beyond `max_length` are cut off.

    An encoder would end in an index error, which a GPU reports without its cause. Waits for a GPU.

    Raises:
        ValueError: if a question has more tokens than the encoder has positions, or a token id that it does not know.
    """
    mask, compiling = words["attention_mask"], torch.compiler.is_compiling()
    if max_length is not None and mask.shape[1] > max_length:
        longest = mask.shape[1] if compiling else int(mask.sum(dim=1).max())
        if longest > max_length:
            raise ValueError(
                f"The longest question has {longest} tokens, but the text encoder reads at most {max_length}: shorten "
                f"it, or have the processor cut it with `truncation=True` and `max_length={max_length}`."
            )
        words = {name: states[:, :max_length] for name, states in words.items()}
    if vocab_size is None or "input_ids" not in words or compiling or torch.jit.is_tracing():
        return words
    unknown = (words["input_ids"] < 0) | (words["input_ids"] >= vocab_size)
    if unknown.any():
        row, column = unknown.nonzero()[0].tolist()
        raise ValueError(
            f"Question {row} has the token id {int(words['input_ids'][row, column])}, but the text encoder has "
            f"{vocab_size} tokens: use the encoder's own tokenizer, or call `resize_token_embeddings` after adding "
            "tokens to it."
        )
    return words


def encode_questions(
    encoder: Any, words: dict[str, torch.Tensor], requested: dict[str, bool], separately: bool
) -> Any:
    """
    The text encoder's output.

    Equal questions (about different images) are encoded once, unless dropout or `separately` sets them apart.

    Args:
        words: inputs of the encoder, of [`question_inputs`].
        requested: `output_hidden_states` and `output_attentions`.
        separately: whether each question needs states of its own, because a gradient may be asked for.

    Raises:
        ValueError: if the encoder takes no `inputs_embeds`.
    """
    if "inputs_embeds" in words and "inputs_embeds" not in inspect.signature(encoder.forward).parameters:
        raise ValueError(f"A `{encoder.config.model_type}` text encoder takes no `inputs_embeds`; pass `input_ids`.")
    separately = separately or encoder.training or any(requested.values()) or "inputs_embeds" in words
    if separately or torch.compiler.is_compiling() or words["input_ids"].shape[0] == 1:
        return encoder(**words, return_dict=True, **requested)
    stacked = torch.stack(list(words.values()), dim=-1)  # [U, L, kinds]
    distinct, which = stacked.unique(dim=0, return_inverse=True)
    text = encoder(**dict(zip(words, distinct.unbind(-1), strict=True)), return_dict=True)
    return type(text)(last_hidden_state=text.last_hidden_state[which])


def max_question_length(encoder: PreTrainedModel) -> int | None:
    """The number of tokens a text encoder has learned positions for; `None` without a table of positions."""
    limit = getattr(encoder.config, "max_position_embeddings", None)
    for name, table in encoder.named_parameters():
        owner, _, kind = name.rpartition(".")
        if owner.split(".")[-1] in POSITION_TABLES and kind == "weight" and table.dim() == 2:
            module: Any = encoder.get_submodule(owner)
            offset = getattr(module, "offset", 0)  # OPT and BART reserve the first rows of the table
            if module.padding_idx is not None:
                offset = module.padding_idx + 1  # RoBERTa numbers from behind its padding index
            return min(table.shape[0] - offset, limit or table.shape[0])
    return limit if encoder.config.model_type in LIMITED_ENCODERS else None


def _is_causal(encoder: Any) -> bool:
    """Whether tokens see only those before them. `is_causal=False` in its config turns a decoder into an encoder."""
    if getattr(encoder.config, "is_causal", None) is False:
        return False
    causal = any(getattr(module, "is_causal", False) for module in encoder.modules())
    return causal or getattr(encoder.config, "is_decoder", False) or encoder.config.model_type in CAUSAL_ENCODERS


__all__ = [
    "QCATextFeatures",
    "build_text_encoder",
    "check_questions",
    "encode_questions",
    "max_question_length",
    "question_inputs",
]
