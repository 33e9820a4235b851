"""Limits of a config from an unknown source. They are checked before anything is built from it."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForTextEncoding,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from .layouts_qca import register_tower

MAXIMUM_DEPTH = 16  # of dictionaries and lists within one another
MAXIMUM_LAYERS = 256
MAXIMUM_LABELS = 2**16  # of `num_labels`; named answers may be more
MAXIMUM_NUMBER = 2**24  # of any other field
MAXIMUM_PARAMETERS = 10**10

# Fields of our config and of transformers' encoders that count layers, at every depth.
LAYER_COUNTS = (
    "num_attention_layers",
    "num_classifier_layers",
    "token_budget_layer",
    "vision_conditioning_layers",
    "vision_feature_layers",
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "depth",
    "depths",
    "block_repeats",
    "block_sizes",
    "blocks_per_stage",
    "decoder_layers",
    "encoder_layers",
    "inner_group_num",
    "l_layers",
    "num_blocks",
    "num_decoder_layers",
    "num_encoder_blocks",
    "num_encoder_layers",
    "num_hidden_groups",
    "num_layers_per_stack",
    "num_self_attends_per_block",
    "num_spatial_layers",
    "num_stages",
    "num_temporal_layers",
    "r_layers",
    "stage_num_blocks",
    "stage_numb_of_layers",
    "x_layers",
)
HEAD_COUNTS = (
    "num_attention_heads",
    "num_key_value_heads",
    "num_heads",
    "n_head",
    "n_heads",
    "encoder_attention_heads",
)
UNLIMITED = ("rope_theta", "layer_rope_theta", "rope_scaling", "rope_parameters")  # a base of angles, no size
LIMITS = dict.fromkeys(LAYER_COUNTS, MAXIMUM_LAYERS) | {"num_labels": MAXIMUM_LABELS}

ANSWERS = ("id2label", "label2id")
FLAGS = ("is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict")
CODE_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check_fields(fields: Mapping[str, Any]) -> None:
    """
    Args:
        fields: of a config, with those of its encoders, as read from a file or passed by a caller.

    Raises:
        ValueError: if a field is nested too deeply, has a wrong type, or is a number over its limit; the message names
            it.
    """
    for path, name, value in _values(fields):
        if expected := _expected(path, name, value):
            raise ValueError(f"`{path}` must be {expected}, got {str(value)[:100]}.")


def check_stored(fields: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: if a field of a stored config would load code from elsewhere, or an encoder's config is no config.
    """
    for field in ("vision_config", "text_config"):
        if not isinstance(fields.get(field), dict | None):
            raise ValueError(f"`{field}` must be a config, got {str(fields[field])[:100]}.")
    for path, name, value in _values(fields):
        if name in CODE_FIELDS and isinstance(value, str) and "/" in value:
            raise ValueError(f"`{path}` must not name code from elsewhere, got {value[:100]!r}.")


def check_parameter_count(count: int) -> None:
    """
    Raises:
        ValueError: if a model has more than `MAXIMUM_PARAMETERS`.
    """
    if count > MAXIMUM_PARAMETERS:
        raise ValueError(f"The config describes {count:.3g} parameters; a model may have {MAXIMUM_PARAMETERS:.0e}.")


def build_encoder(config: Any, field: str, reads: str) -> Any:
    """
    The encoder that `config` describes. It is built without memory first, to count its parameters.

    Args:
        config: a `PreTrainedConfig`, the `field` of a `QCAConfig`.
        reads: name of the encoder's main input.

    Raises:
        ValueError: if its code cannot build it, or it is too large or no encoder of that input.
    """
    takes_memory = torch.get_default_device().type != "meta" and not is_deepspeed_zero3_enabled()
    if takes_memory:
        with torch.device("meta"):
            _check_encoder(encoder_from_config(copy.deepcopy(config), field), field, reads)
    encoder = encoder_from_config(config, field)
    if not takes_memory:
        _check_encoder(encoder, field, reads)
    return encoder


def encoder_from_config(config: Any, field: str) -> Any:
    """
    Raises:
        ValueError: if nothing can build what `config`, the `field` of a `QCAConfig`, describes.
    """
    register_tower(config)
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"`AutoModel` has no `{config.model_type}` model, which `{field}` names; pass another one.")
    try:
        if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:  # the encoder of a T5, not all of it
            return AutoModelForTextEncoding.from_config(config)
        return AutoModel.from_config(config)
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each architecture fails in its own way
        raise ValueError(f"No `{config.model_type}` model can be built from `{field}`: {error}") from error


def _check_encoder(encoder: nn.Module, field: str, reads: str):
    if encoder.main_input_name != reads:
        raise ValueError(
            f"A `{encoder.config.model_type}` model reads `{encoder.main_input_name}`, `{field}` `{reads}`."
        )
    check_parameter_count(sum(parameter.numel() for parameter in encoder.parameters()))


def _expected(path: str, name: str, value: Any) -> str | None:
    """A description of the accepted values, or `None` if `value` is one."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    limit = LIMITS.get(name.removesuffix("[]"), MAXIMUM_NUMBER)
    if type(value) in (int, float) and abs(value) > limit and not set(path.split(".")) & set(UNLIMITED):
        return f"at most {limit:,}"
    if name in ANSWERS and not isinstance(value, dict | None):
        return "a mapping"
    if name in CODE_FIELDS:
        names = value.values() if isinstance(value, dict) else [value]
        return None if all(isinstance(inner, str | None) for inner in names) else "a name, or a name for each encoder"
    if name == "chunk_size_feed_forward" and not (type(value) is int and value >= 0):
        return "a whole number"
    if name in FLAGS and not isinstance(value, bool | None):
        return "true or false"
    if name == "num_labels" and not (type(value) is int and value > 0):
        return "a positive integer"
    if name in ("dtype", "torch_dtype") and value is not None and not _is_dtype(value):
        return "the name of a torch dtype"
    if name in HEAD_COUNTS and path != name and type(value) is int and value < 1:
        return "at least 1"
    if name == "model_type" and path != name and str(value) not in CONFIG_MAPPING:
        return "one of transformers, or registered by `AutoConfig.register`"
    return None


def _is_dtype(value: Any) -> bool:
    return isinstance(getattr(torch, str(value).removeprefix("torch."), None), torch.dtype)


def _values(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(path, name, value) of every field at every depth; entries of a list are named `name[]`."""
    waiting = [(str(name), str(name), value, 1) for name, value in fields.items()]
    while waiting:
        path, name, value, depth = waiting.pop()
        if depth > MAXIMUM_DEPTH:
            raise ValueError(f"`{path[:200]}` is nested deeper than {MAXIMUM_DEPTH} levels.")
        yield path[:200], name, value
        if isinstance(value, dict):
            answers = name in ANSWERS  # an answer may be called like a field
            names = ((f"{path}.{key}", "answer" if answers else str(key), inner) for key, inner in value.items())
            waiting += [(*named, depth + 1) for named in names]
        elif isinstance(value, (list, tuple)):
            waiting += [(path, f"{name}[]", inner, depth + 1) for inner in value]


__all__ = ["build_encoder", "check_fields", "check_parameter_count", "check_stored", "encoder_from_config"]
