"""A private copy of a model's modules, so that reading a model never changes it."""

from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def unwrapped_model(model: Any) -> Any:
    """
    The `PreTrainedModel` inside a compiled, distributed or PEFT model, with its adapters.

    Raises:
        TypeError: if there is none.
        ValueError: if the PEFT model has virtual tokens (prompt tuning), because the model inside lacks them.
    """
    for name in ("_orig_mod", "module", "_orig_mod"):  # `torch.compile` and `DistributedDataParallel`, in either order
        model = getattr(model, name, model)
    if isinstance(model, PreTrainedModel):
        return model
    if not hasattr(model, "peft_config"):
        raise TypeError(f"Pass a QCA model, or a compiled, distributed or PEFT model around one, not {type(model)}.")
    for config in model.peft_config.values():
        if config.is_prompt_learning:
            raise ValueError(
                f"The virtual tokens of {config.peft_type.value} are not part of the model, so the pipeline and "
                "`explain` would ignore them. Call the PEFT model itself, or use LoRA."
            )
    return model.base_model.model


def evaluation_copy(model: Any, eager_attention: bool = False) -> Any:
    """
    A copy of `model` in evaluation mode that shares its weights.

    Hooks, settings and modes of the copy are its own. So threads that read one model do not meet, and a model that is
    being trained stays in training mode.

    Args:
        model: a `PreTrainedModel`.
        eager_attention: compute attention so that the encoders can return it.
    """
    with torch.inference_mode(False):
        shared = {id(weight): _normal(weight) for weight in chain(model.parameters(), model.buffers())}
        copied = deepcopy(model, shared).eval()
    if eager_attention:
        copied.set_attn_implementation("eager")
        _without_sdpa_classes(copied)
    return copied


def is_training(model: nn.Module) -> bool:
    """Whether any module of `model` is in training mode."""
    return any(module.training for module in model.modules())


def _without_sdpa_classes(model: nn.Module):
    """Some encoders (data2vec) choose a class of attention when they are built, not when they run. Such a class comes
    from that of eager attention, with the same weights."""
    for module in model.modules():
        own, base = type(module), type(module).__mro__[1]
        if "Sdpa" in own.__name__ and own.__name__.replace("Sdpa", "") == base.__name__:
            module.__class__ = base


def _normal(weight: torch.Tensor) -> torch.Tensor:
    """`weight`, or a copy where it was made in inference mode, which autograd cannot read."""
    if not weight.is_inference():
        return weight
    copied = weight.clone()
    return nn.Parameter(copied, requires_grad=False) if isinstance(weight, nn.Parameter) else copied


__all__ = ["evaluation_copy", "is_training", "unwrapped_model"]
