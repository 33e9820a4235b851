"""Pictures of relevance with nothing but PIL: a heat map on the image, its legend, the question and the answer."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

# 17 evenly spaced colors of viridis, which is perceptually uniform and survives color blindness and gray printing
# (Smith & van der Walt 2015); the ones between are within 6 of 255 of the original.
VIRIDIS = np.array(
    [(68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142)]
    + [(38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98), (132, 212, 75)]
    + [(173, 220, 48), (216, 226, 25), (253, 231, 37)]
)
MAP_SHARE = 0.6  # of the heat map in the blend
MARGIN = 8  # pixels

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
) -> Image.Image:
    """
    A heat map on an image.

    Args:
        image: as the model saw it, see `open_image`.
        relevance: `[rows, columns]` shares of any grid, or of the image's own size; resized bilinearly. The brightest
            color is its largest share.
        caption: printed below, such as the question and the answer.
        legend: print the scale below.
        box: (left, top, right, bottom) in pixels of the part of the image that `relevance` is of; all of it unless
            given. The rest keeps its colors.

    Returns:
        RGB, as large as the image plus the caption and the legend.

    Raises:
        ValueError: where `relevance` is no map.
    """
    if relevance.dim() != 2:
        raise ValueError(f"`relevance` must be one map [rows, columns], got shape {tuple(relevance.shape)}.")
    image = image.convert("RGB")
    left, top, right, bottom = _pixels(box, image)
    size = (bottom - top, right - left)
    shares = nn.functional.interpolate(relevance[None, None].float().cpu(), size=size, mode="bilinear")[0, 0].numpy()
    peak = float(relevance.max())
    heat = Image.fromarray(colors(shares / peak if peak > 0 else shares))
    seen = image.crop((left, top, right, bottom))
    picture = image.copy()
    picture.paste(Image.blend(seen.convert("L").convert("RGB"), heat, MAP_SHARE), (left, top))
    if legend:
        picture = _above(picture, _legend(image.width, peak))
    return picture if caption is None else _above(picture, text_strip(caption, image.width))


def kept_patches(image: Image.Image, kept: torch.Tensor, box: Box | None = None) -> Image.Image:
    """`image` with the patches that the token budget dropped grayed out; `kept` is `[rows, columns]`, boolean, of the
    part of the image in `box`."""
    image = image.convert("RGB")
    left, top, right, bottom = _pixels(box, image)
    faded = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.75)
    mask = Image.new("L", image.size, 255)
    cells = Image.fromarray(kept.cpu().numpy()).convert("L")
    mask.paste(cells.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return Image.composite(image, faded, mask)


def strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side on white, their tops aligned."""
    width = sum(picture.width for picture in pictures) + MARGIN * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + MARGIN
    return canvas


def text_strip(text: str, width: int) -> Image.Image:
    """`text` in black on white, its lines wrapped to `width` pixels."""
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


def _pixels(box: Box | None, image: Image.Image) -> tuple[int, int, int, int]:
    left, top, right, bottom = box or (0, 0, image.width, image.height)
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


__all__ = ["Box", "colors", "kept_patches", "overlay", "strip", "text_strip"]
