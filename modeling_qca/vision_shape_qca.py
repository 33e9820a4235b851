"""What a vision encoder returns: the width of its tokens and their grid, read off an output without any memory.

I images, h x w pixels, P prefix tokens (CLS, registers), N patches, E width of the vision encoder.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import pytorch_utils

from .layouts_qca import LAYOUTS, NATIVE_SHAPES
from .validation_qca import check_parameter_count, encoder_from_config

USUAL_SIZE = 224  # pixels, of encoders whose config names no size
MOST_PREFIX_TOKENS = 16  # more are queries of a detector, say, and no prefix


class VisionShape(NamedTuple):
    """
    Args:
        width: E.
        image_size: (height, width) in pixels of the encoder's own images.
        grid: (rows, columns) of the patches of such an image.
        prefix: P.
        stride: (height, width) in pixels of the patches before any of them merge.
        channels_last: whether a feature map is `[I, rows, columns, E]`, not `[I, E, rows, columns]`.
        is_feature_map: whether the output has four dimensions, not three.
    """

    width: int
    image_size: tuple[int, int]
    grid: tuple[int, int]
    prefix: int
    stride: tuple[int, int]
    channels_last: bool = False
    is_feature_map: bool = False

    def patches(self, states: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """
        Args:
            states: the output of the encoder for images of `height` x `width` pixels, of three or four dimensions.

        Returns:
            Tokens `[I, P + N, E]`, and (rows, columns) of the patches.

        Raises:
            ValueError: if the output is no prefix and grid.
        """
        tokens, grid = _tokens(states, height, width, self.stride, self.channels_last, self.prefix)
        if tokens.shape[-1] != self.width or tokens.shape[1] - grid[0] * grid[1] != self.prefix:
            raise ValueError(
                f"For images of {height} x {width} pixels, the vision encoder returns {tuple(states.shape)}, not "
                f"{self.prefix} tokens and a grid of patches. Resize the images to {self.image_size[0]} x "
                f"{self.image_size[1]} pixels."
            )
        return tokens, grid


def vision_shape(config: Any) -> VisionShape:
    """
    Args:
        config: of a vision encoder.

    Raises:
        ValueError: for an encoder that returns no grid of patches for an image alone.
    """
    layout = LAYOUTS.get(config.model_type)
    if config.model_type in NATIVE_SHAPES:
        side = int(config.num_patches**0.5)  # of the table of positions
        return VisionShape(
            config.hidden_size, (side * config.patch_size,) * 2, (side, side), 0, (config.patch_size,) * 2
        )
    if layout is not None:
        size, patch = _pair(config.image_size), _pair(config.patch_size)
        grid = size[0] // max(patch[0], 1), size[1] // max(patch[1], 1)
        return VisionShape(config.hidden_size, size, grid, layout.num_prefix_tokens(config), patch)
    key = f"{type(config).__name__} {config.to_dict()}"
    if key not in _MEASURED:
        _MEASURED[key] = _measure(config)
    return _MEASURED[key]


_MEASURED: dict[str, VisionShape] = {}


def _measure(config: Any) -> VisionShape:
    height, width = size = _own_image_size(config.to_dict())
    with torch.device("meta"), torch.no_grad():
        encoder = encoder_from_config(copy.deepcopy(config), "vision_config").eval()
        check_parameter_count(sum(parameter.numel() for parameter in encoder.parameters()))
        channels = config.to_dict().get("num_channels", 3)
        try:
            with _without_cached_tensors():
                states = encoder(torch.zeros(1, channels, height, width), return_dict=True).last_hidden_state
        except Exception as error:  # each architecture fails in its own way
            raise ValueError(_no_grid(config, f"it fails on one: {type(error).__name__}: {error}")) from error
    if states.dim() not in (3, 4):
        raise ValueError(_no_grid(config, f"it returns {tuple(states.shape)}"))
    last = states.dim() == 4 and _is_channels_last(states.shape, height, width)
    stride = _first_stride(encoder, channels)
    tokens, grid = _tokens(states, height, width, stride, last)
    prefix = tokens.shape[1] - grid[0] * grid[1]
    if prefix > MOST_PREFIX_TOKENS or encoder.config.is_encoder_decoder:
        raise ValueError(_no_grid(config, f"it returns {tuple(states.shape)}"))
    return VisionShape(tokens.shape[-1], size, grid, prefix, stride, last, states.dim() == 4)


@contextmanager
def _without_cached_tensors() -> Iterator[None]:
    """
    Transformers caches the index of relative positions (BEiT, Data2Vec) by the grid alone, for all models of a
    process, but not while it compiles. With a cached one of the meta device, later models would read unset memory.
    """
    with _MEASURING:
        compiling = pytorch_utils.is_torchdynamo_compiling
        pytorch_utils.is_torchdynamo_compiling = lambda: True
        try:
            yield
        finally:
            pytorch_utils.is_torchdynamo_compiling = compiling


_MEASURING = Lock()


def _no_grid(config: Any, reason: str) -> str:
    return (
        f"A `{config.model_type}` model gives no grid of patches for an image alone; {reason}. Pass an encoder of "
        "single images, such as `dinov2`, `dinov3_vit`, `siglip_vision_model` or `convnext`."
    )


def _own_image_size(fields: dict[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels; timm keeps its size in other fields."""
    timm = (fields.get("pretrained_cfg") or {}).get("input_size")
    size = fields.get("image_size") or (fields.get("model_args") or {}).get("img_size") or (timm and timm[-2:])
    return _pair(size or USUAL_SIZE)


def _pair(size: Any) -> tuple[int, int]:
    height, width = pair = tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if not (isinstance(height, int) and isinstance(width, int)):
        raise ValueError(f"A size in `vision_config` must be a number of pixels or [height, width], got {size}.")
    return pair


def _is_channels_last(shape: torch.Size, height: int, width: int) -> bool:
    """Whether the sides of a feature map `[I, a, b, c]` that are in proportion to the image are `a` and `b`."""
    _, first, second, third = shape
    return abs(first / second - height / width) < abs(second / third - height / width)


def _first_stride(encoder: nn.Module, channels: int) -> tuple[int, int]:
    """The stride of the first layer, which reads the colors."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            return _pair(module.stride)
    return 1, 1


def _tokens(
    states: torch.Tensor,
    height: int,
    width: int,
    stride: tuple[int, int],
    channels_last: bool,
    prefix: int | None = None,
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Tokens in raster order and their grid: that of the first stride that is not finer than the tokens. Stages halve
    the grid; where its side is odd, some cut and some fill it up."""
    if states.dim() == 4:
        states = states if channels_last else states.permute(0, 2, 3, 1)
        return states.flatten(1, 2), (states.shape[1], states.shape[2])
    count, (down, across) = max(states.shape[1] - (prefix or 0), 0), stride
    while True:
        cut, filled = (height // down, width // across), (-(-height // down), -(-width // across))
        if filled[0] * filled[1] == count:
            return states, filled
        if cut[0] * cut[1] <= count:
            return states, cut
        down, across = 2 * down, 2 * across


__all__ = ["VisionShape", "vision_shape"]
