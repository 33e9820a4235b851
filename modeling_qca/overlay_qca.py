"""Draw relevance with PIL alone: a heat map on the image, with a legend, the question and the answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

# 17 evenly spaced colors of viridis (Smith & van der Walt 2015), which is perceptually uniform, also for color-blind
# readers and in gray prints. Colors between them differ from the original by at most 6 of 255.
VIRIDIS = np.array(
    [(68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142)]
    + [(38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98), (132, 212, 75)]
    + [(173, 220, 48), (216, 226, 25), (253, 231, 37)]
)
MAP_SHARE = 0.6  # of the heat map in the blend
MARGIN = 8  # pixels

OWN_RULES = ("LevitImageProcessor", "PerceiverImageProcessor")  # they resize or crop to other sizes than their fields

Box = tuple[float, float, float, float]


def colors(values: np.ndarray) -> np.ndarray:
    """Viridis: `[...]` in [0, 1] -> `[..., 3]` 8-bit RGB."""
    position = np.clip(values, 0, 1) * (len(VIRIDIS) - 1)
    points = np.arange(len(VIRIDIS))
    channels = [np.interp(position, points, VIRIDIS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(
    image: Image.Image,
    relevance: torch.Tensor,
    caption: str | None = None,
    legend: bool = True,
    box: Box | None = None,
    windows: Sequence[Box] = (),
) -> Image.Image:
    """
    A heat map on an image.

    Args:
        image: upright, as from `open_image`.
        relevance: `[rows, columns]` shares on any grid, resized bilinearly. The largest share has the brightest color.
        caption: text below the image, such as the question and the answer.
        legend: whether to draw the scale below the image.
        box: (left, top, right, bottom) in pixels of the part of the image that `relevance` covers; by default all of
            it. The rest keeps its colors.
        windows: (left, top, right, bottom) in 0..1 of `box` of windows to frame.

    Returns:
        RGB, as large as the image plus the caption and the legend.

    Raises:
        ValueError: where `relevance` is not one map.
    """
    if relevance.dim() != 2:
        raise ValueError(f"`relevance` must be one map [rows, columns], got shape {tuple(relevance.shape)}.")
    image = image.convert("RGB")
    left, top, right, bottom = _pixels(box, *image.size)
    size = (bottom - top, right - left)
    shares = nn.functional.interpolate(relevance[None, None].float().cpu(), size=size, mode="bilinear")[0, 0].numpy()
    peak = float(relevance.max())
    heat = Image.fromarray(colors(shares / peak if peak > 0 else shares))
    seen = image.crop((left, top, right, bottom))
    picture = image.copy()
    picture.paste(Image.blend(seen.convert("L").convert("RGB"), heat, MAP_SHARE), (left, top))
    frames, line = ImageDraw.Draw(picture), max(2, image.width // 160)
    for window in windows:
        corners = np.array(window).reshape(2, 2) * (right - left, bottom - top) + (left, top)
        frames.rectangle(corners.flatten().tolist(), outline="white", width=line)
    if legend:
        picture = _above(picture, _legend(image.width, peak))
    return picture if caption is None else _above(picture, text_strip(caption, image.width))


def kept_patches(image: Image.Image, kept: torch.Tensor, box: Box | None = None) -> Image.Image:
    """
    `image`, grayed out where the token budget dropped patches.

    Args:
        kept: `[rows, columns]` boolean.
        box: the part of the image that `kept` covers, as in [`overlay`].
    """
    image = image.convert("RGB")
    left, top, right, bottom = _pixels(box, *image.size)
    faded = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.75)
    mask = Image.new("L", image.size, 255)
    cells = Image.fromarray(kept.cpu().numpy()).convert("L")
    mask.paste(cells.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return Image.composite(image, faded, mask)


def place_maps(maps: torch.Tensor, size: tuple[int, int], box: Box | None = None) -> torch.Tensor:
    """
    Maps at the size of an image, at the same place where [`overlay`] draws them.

    Args:
        maps: `[M, rows, columns]`.
        size: (height, width) of the image.
        box: the part of the image that the maps cover, as in [`overlay`].

    Returns:
        `[M, height, width]`, resized bilinearly in the box and zero outside of it.
    """
    height, width = size
    left, top, right, bottom = _pixels(box, width, height)
    inside = nn.functional.interpolate(maps[None], size=(bottom - top, right - left), mode="bilinear")[0]
    inside = inside[:, max(-top, 0) : height - top, max(-left, 0) : width - left]
    placed = maps.new_zeros(len(maps), height, width)
    placed[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = inside
    return placed


def has_own_rule(image_processor: Any) -> bool:
    """Whether `image_processor` crops or pads by a rule that its `size` and `crop_size` do not tell."""
    kind = type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if kind == "ConvNextImageProcessor":  # it crops to small sizes alone
        return image_processor.do_resize and image_processor.size["shortest_edge"] < 384
    return kind in OWN_RULES or any(getattr(image_processor, name, None) for name in ("crop_pct", "do_pad"))


def sees_whole_picture(image_processor: Any) -> bool:
    """Whether the model sees all of each picture, and nothing around it."""
    return not image_processor.do_center_crop and not has_own_rule(image_processor)


def seen_box(image_processor: Any, width: int, height: int) -> Box:
    """
    The part of a `width` x `height` image that the model sees: all of it, unless the image processor crops.

    Returns:
        (left, top, right, bottom) in pixels; outside of the image where the crop pads it.

    Raises:
        ValueError: if the image processor crops or pads by a rule of its own.
    """
    if sees_whole_picture(image_processor):
        return 0.0, 0.0, float(width), float(height)
    if has_own_rule(image_processor):
        raise ValueError(
            f"{type(image_processor).__name__} crops or pads pictures by a rule of its own, so relevance maps have no "
            'known place on them. Use a `ViTImageProcessorPil` with the same numbers and `size={"height": ..., '
            '"width": ...}`; `qca train` does so by itself.'
        )
    size, crop, across, down = image_processor.size, image_processor.crop_size, 1.0, 1.0
    if image_processor.do_resize and size.shortest_edge:
        across = down = size.shortest_edge / min(width, height)
    elif image_processor.do_resize:
        across, down = size.width / width, size.height / height
    left, top = (width - crop.width / across) / 2, (height - crop.height / down) / 2
    return left, top, width - left, height - top


def strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side on white, aligned at the top."""
    width = sum(picture.width for picture in pictures) + MARGIN * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + MARGIN
    return canvas


def text_strip(text: str, width: int) -> Image.Image:
    """`text` in black on white, wrapped to `width` pixels."""
    font = ImageFont.load_default(max(12, min(20, width // 25)))
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) <= width - 2 * MARGIN or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
    spacing = 4
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, _, bottom = draw.multiline_textbbox((MARGIN, MARGIN), "\n".join(lines), font=font, spacing=spacing)
    picture = Image.new("RGB", (width, int(bottom) + MARGIN), "white")
    ImageDraw.Draw(picture).multiline_text((MARGIN, MARGIN), "\n".join(lines), "black", font=font, spacing=spacing)
    return picture


def _pixels(box: Box | None, width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box or (0, 0, width, height)
    return round(left), round(top), round(right), round(bottom)


def _legend(width: int, peak: float) -> Image.Image:
    font = ImageFont.load_default(max(10, min(14, width // 25)))
    low, high = "0", f"{peak:.1%} a patch"
    left, right = MARGIN * 2 + int(font.getlength(low)), width - MARGIN * 2 - int(font.getlength(high))
    height = 3 * MARGIN
    picture = Image.new("RGB", (width, height), "white")
    bar = colors(np.linspace(0, 1, max(right - left, 1)))[None].repeat(MARGIN, axis=0)
    picture.paste(Image.fromarray(bar), (left, MARGIN))
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, height // 2), low, "black", font=font, anchor="lm")
    draw.text((right + MARGIN, height // 2), high, "black", font=font, anchor="lm")
    return picture


def _above(upper: Image.Image, lower: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (upper.width, upper.height + lower.height), "white")
    canvas.paste(upper, (0, 0))
    canvas.paste(lower, (0, upper.height))
    return canvas


__all__ = [
    *("Box", "colors", "has_own_rule", "kept_patches", "overlay", "place_maps", "seen_box", "sees_whole_picture"),
    *("strip", "text_strip"),
]
