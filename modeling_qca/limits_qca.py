"""What a config that nobody vouches for may ask for. All of it is checked before anything is built from it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

MAXIMUM_DEPTH = 16  # of dictionaries and lists within one another
MAXIMUM_LAYERS = 256
MAXIMUM_LABELS = 2**20
MAXIMUM_NUMBER = 2**24  # of tokens, positions, channels, ...
MAXIMUM_PARAMETERS = 10**10
POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe")
CODE_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check_fields(fields: Mapping[str, Any]) -> None:
    """
    Args:
        fields: of a config, with those of its encoders, as read from a file or passed by a caller.

    Raises:
        ValueError: naming the field that is nested too deeply, no finite number, or larger than in any model.
    """
    for path, name, value in _leaves(fields):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{path}` must be a finite number, got {value}.")
        if type(value) is int and "rope" not in path and abs(value) > (limit := _limit(name)):
            raise ValueError(f"`{path}` must be at most {limit:,}, got {value:.3g}.")


def check_stored(fields: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: naming the field of a stored config that would have code loaded from elsewhere.
    """
    for path, name, value in _leaves(fields):
        if name in CODE_FIELDS and isinstance(value, str) and "/" in value:
            raise ValueError(f"`{path}` must not name code from elsewhere, got {value[:100]!r}.")


def check_parameters(model: nn.Module) -> None:
    """
    Raises:
        ValueError: for a model, not yet in memory, of more than `MAXIMUM_PARAMETERS`.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAXIMUM_PARAMETERS:
        raise ValueError(f"The config describes {count:.3g} parameters; a model may have {MAXIMUM_PARAMETERS:.0e}.")


def build_encoder(config: Any, field: str) -> Any:
    """
    The encoder that `config` (a `PreTrainedConfig`), the `field` of a `QCAConfig`, describes.

    Raises:
        ValueError: where its code cannot make anything of it.
    """
    try:
        return AutoModel.from_config(config)
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each architecture has its own way to fail
        raise ValueError(f"No `{config.model_type}` model can be built from `{field}`: {error}") from error


def longest_question(encoder: nn.Module) -> int | None:
    """The most tokens a text encoder has learned positions for; None where it knows positions in another way."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.split(".")[-1] in POSITION_TABLES:
            unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from behind it
            return module.num_embeddings - unused
    return None


def _limit(name: str) -> int:
    if name == "num_labels":
        return MAXIMUM_LABELS
    counts_layers = any(part in name for part in ("layer", "depth", "block", "stage", "expert")) and "size" not in name
    return MAXIMUM_LAYERS if counts_layers else MAXIMUM_NUMBER


def _leaves(fields: Mapping[str, Any]):
    """(path, name, value) of whatever is no dictionary and no list; entries of a list have the name of the list."""
    waiting = [(str(name), str(name), value, 1) for name, value in fields.items()]
    while waiting:
        path, name, value, depth = waiting.pop()
        if not isinstance(value, (dict, list, tuple)):
            yield path[:200], name, value
        elif depth == MAXIMUM_DEPTH:
            raise ValueError(f"`{path[:200]}` is nested deeper than {MAXIMUM_DEPTH} levels.")
        elif isinstance(value, dict):
            waiting += [(f"{path}.{key}", str(key), inner, depth + 1) for key, inner in value.items()]
        else:
            waiting += [(path, name, inner, depth + 1) for inner in value]
