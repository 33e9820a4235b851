"""Features that were computed before: of questions, of images, and of the windows of images.

I images, U questions, L question tokens, P prefix tokens (CLS, registers), N patches, E width of an encoder.
"""

from typing import Any

import torch

from .text_qca import QCATextFeatures
from .vision_qca import QCAImageFeatures, check_spatial_shapes
from .vision_shape_qca import vision_shape
from .zoom_qca import WindowReader


def cached_text(
    config: Any, text_features: torch.Tensor, attention_mask: torch.Tensor | None, dtype: torch.dtype
) -> QCATextFeatures:
    """
    Args:
        config: of the model.
        text_features, attention_mask: `[U, L, E]` and `[U, L]` of `QCAModel.get_text_features`.

    Raises:
        ValueError: if they do not fit the model or each other.
    """
    width = config.text_config.hidden_size
    if text_features.dim() != 3 or text_features.shape[-1] != width:
        raise ValueError(
            f"`text_features` must be [questions, tokens, {width}], got {tuple(text_features.shape)}; pass the "
            "`last_hidden_state` of `get_text_features`."
        )
    if attention_mask is None:
        attention_mask = torch.ones(text_features.shape[:2], dtype=torch.long, device=text_features.device)
    if attention_mask.shape != text_features.shape[:2]:
        raise ValueError(
            f"`attention_mask` {tuple(attention_mask.shape)} does not fit `text_features` "
            f"{tuple(text_features.shape)}; pass the `attention_mask` of `get_text_features`."
        )
    padded_first = attention_mask.any(dim=1) & (attention_mask[:, 0] == 0)
    if not torch.compiler.is_compiling() and bool(padded_first.any()):
        raise ValueError(
            "`attention_mask` begins with padding, but the tokens of `text_features` come first; pass the "
            "`attention_mask` of `get_text_features`."
        )
    return QCATextFeatures(last_hidden_state=text_features.to(dtype), attention_mask=attention_mask)


def cached_images(
    config: Any,
    image_features: torch.Tensor,
    image_grid: tuple[int, int] | None,
    spatial_shapes: Any,
    dtype: torch.dtype,
) -> QCAImageFeatures:
    """
    Args:
        config: of the model.
        image_features: `[I, P + N, E]` of `QCAModel.get_image_features`.
        image_grid: (rows, columns) of the patches, if not that of `config`.
        spatial_shapes: `[I, 2]` (rows, columns) of each picture, for SigLIP 2 NaFlex.

    Raises:
        ValueError: if they do not fit the model or each other.
    """
    if config.has_native_shapes:
        check_spatial_shapes(spatial_shapes, *image_features.shape[:2])
        return QCAImageFeatures(
            last_hidden_state=image_features.to(dtype), spatial_shapes=spatial_shapes.to(image_features.device)
        )
    rows, columns = image_grid or config.image_grid
    _check_tokens(config, image_features, (rows, columns), pictures=1)
    return QCAImageFeatures(last_hidden_state=image_features.to(dtype), grid=(rows, columns))


def cached_windows(
    config: Any, image_features: torch.Tensor, image_grid: tuple[int, int] | None, dtype: torch.dtype
) -> tuple[QCAImageFeatures, WindowReader]:
    """
    The two results of `encode_glance`, from what `encode_all_windows` gave.

    Args:
        config: of the model.
        image_features: `[I, (1 + W) (P + N), E]`.
        image_grid: (rows, columns) of the whole picture at full detail, if not that of `config`.

    Raises:
        ValueError: if `image_features` do not hold the glance and the windows of such a picture.
    """
    factor, (rows, columns) = config.zoom_factor, image_grid or config.image_grid
    grid, pictures = (rows // factor, columns // factor), 1 + (2 * factor - 1) ** 2
    _check_tokens(config, image_features, grid, pictures)
    each = image_features.unflatten(1, (pictures, -1))  # [I, 1 + W, P + N, E]
    prefix = vision_shape(config.vision_config).prefix

    def read(images: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        return each[images.to(each.device), 1 + windows.to(each.device), prefix:].to(dtype)

    return QCAImageFeatures(last_hidden_state=each[:, 0].to(dtype), grid=grid), read


def _check_tokens(config: Any, image_features: torch.Tensor, grid: tuple[int, int], pictures: int) -> None:
    tokens = vision_shape(config.vision_config).prefix + grid[0] * grid[1]
    if image_features.dim() != 3 or image_features.shape[1] != pictures * tokens:
        windows = f" for the whole picture and for each of {pictures - 1} windows" if pictures > 1 else ""
        raise ValueError(
            f"`image_features` {tuple(image_features.shape)} hold no {grid[0]} x {grid[1]} grid of patches{windows}; "
            "pass the `last_hidden_state` of `get_image_features`, and its `grid` as `image_grid`."
        )


__all__ = ["cached_images", "cached_text", "cached_windows"]
