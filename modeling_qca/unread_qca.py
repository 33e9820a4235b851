"""The parameters of a model that no output depends on, found by following the graph of one forward pass."""

from typing import Any

import torch
from torch import nn

from .evaluation_copy_qca import evaluation_copy


def unread_parameters(model: Any) -> list[str]:
    """
    Names of the trainable parameters that get no gradient, such as a pooler or the mask token of a vision encoder.

    Args:
        model: a QCA model. One blank image and one question run through a copy in evaluation mode.
    """
    copied = evaluation_copy(model)  # it shares the weights
    with torch.inference_mode(False), torch.enable_grad():
        outputs = copied(**_example(model), return_dict=True)
    read = _leaves([value for value in outputs.values() if isinstance(value, torch.Tensor)])
    return [name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) not in read]


def _example(model: Any) -> dict[str, torch.Tensor]:
    config = model.config
    (rows, columns), (height, width) = config.image_grid, config.patch_size
    example = {"input_ids": torch.zeros(1, 2, dtype=torch.long, device=model.device)}
    if config.has_native_shapes:
        pixels = torch.zeros(1, rows * columns, 3 * height * width, device=model.device)
        return example | {"pixel_values": pixels, "spatial_shapes": torch.tensor([[rows, columns]])}
    return example | {"pixel_values": torch.zeros(1, 3, rows * height, columns * width, device=model.device)}


def _leaves(tensors: list[torch.Tensor]) -> set[int]:
    """`id` of each leaf that the graphs of `tensors` start from."""
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen, leaves = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if isinstance(weight := getattr(node, "variable", None), nn.Parameter):
            leaves.add(id(weight))
        following = {inner for inner, _ in node.next_functions if inner is not None} - seen
        seen |= following
        waiting += following
    return leaves


__all__ = ["unread_parameters"]
