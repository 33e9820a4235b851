"""What a config that nobody vouches for may ask for. All of it is checked before anything is built from it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel

MAXIMUM_DEPTH = 16  # of dictionaries and lists within one another
MAXIMUM_LAYERS = 256
MAXIMUM_LABELS = 2**16  # that are numbered, not named
MAXIMUM_NUMBER = 2**24  # of tokens, positions, channels, ...
MAXIMUM_PARAMETERS = 10**10
ANSWERS = ("id2label", "label2id")
FLAGS = ("is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict")
CODE_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check_fields(fields: Mapping[str, Any]) -> None:
    """
    Args:
        fields: of a config, with those of its encoders, as read from a file or passed by a caller.

    Raises:
        ValueError: naming the field that is nested too deeply, of a wrong kind, or a number that no model has.
    """
    for path, name, value in _values(fields):
        if expected := _expected(path, name, value):
            raise ValueError(f"`{path}` must be {expected}, got {str(value)[:100]}.")


def check_stored(fields: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: naming the field of a stored config that would have code loaded from elsewhere, or an encoder's
            config that is none.
    """
    for field in ("vision_config", "text_config"):
        if not isinstance(fields.get(field), dict | None):
            raise ValueError(f"`{field}` must be a config, got {str(fields[field])[:100]}.")
    for path, name, value in _values(fields):
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


def build_encoder(config: Any, field: str, reads: str) -> Any:
    """
    The encoder that `config` (a `PreTrainedConfig`), the `field` of a `QCAConfig`, describes.

    Args:
        reads: the encoder's main input.

    Raises:
        ValueError: where its code cannot make anything of it, or makes an encoder of something else.
    """
    try:
        encoder = AutoModel.from_config(config)
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each architecture has its own way to fail
        raise ValueError(f"No `{config.model_type}` model can be built from `{field}`: {error}") from error
    if encoder.main_input_name != reads:
        raise ValueError(f"A `{config.model_type}` model reads `{encoder.main_input_name}`, `{field}` `{reads}`.")
    return encoder


def _expected(path: str, name: str, value: Any) -> str | None:
    """What the field must be, where it is not."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if type(value) in (int, float) and "rope" not in path and abs(value) > (limit := _limit(name)):
        return f"at most {limit:,}"
    if name in ANSWERS and not isinstance(value, dict | None):
        return "a mapping"
    if name in CODE_FIELDS and not isinstance(value, str | dict | None):
        return "a name"
    if name == "chunk_size_feed_forward" and not (type(value) is int and value >= 0):
        return "a whole number"
    if name in FLAGS and not isinstance(value, bool | None):
        return "true or false"
    if name == "num_labels" and not (type(value) is int and value > 0):
        return "a positive integer"
    if name in ("dtype", "torch_dtype") and value is not None and not _is_dtype(value):
        return "the name of a torch dtype"
    if "heads" in name and path != name and type(value) is int and value < 1:
        return "at least 1"
    if name == "model_type" and path != name and str(value) not in CONFIG_MAPPING:
        return "a model type of transformers"
    return None


def _is_dtype(value: Any) -> bool:
    return isinstance(getattr(torch, str(value).removeprefix("torch."), None), torch.dtype)


def _limit(name: str) -> int:
    if name == "num_labels":
        return MAXIMUM_LABELS
    counts_layers = any(part in name for part in ("layer", "depth", "block", "stage", "group")) and "size" not in name
    return MAXIMUM_LAYERS if counts_layers else MAXIMUM_NUMBER


def _values(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(path, name, value) of every field at every depth; entries of a list are named `name[]`."""
    waiting = [(str(name), str(name), value, 1) for name, value in fields.items()]
    while waiting:
        path, name, value, depth = waiting.pop()
        if depth > MAXIMUM_DEPTH:
            raise ValueError(f"`{path[:200]}` is nested deeper than {MAXIMUM_DEPTH} levels.")
        yield path[:200], name, value
        if isinstance(value, dict):
            answers = name in ANSWERS  # whose keys may be called like a field
            names = ((f"{path}.{key}", "answer" if answers else str(key), inner) for key, inner in value.items())
            waiting += [(*named, depth + 1) for named in names]
        elif isinstance(value, (list, tuple)):
            waiting += [(path, f"{name}[]", inner, depth + 1) for inner in value]
