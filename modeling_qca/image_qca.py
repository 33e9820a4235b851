"""An image from anywhere, read as a person sees it; or one message that says why it cannot be."""

import math
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from huggingface_hub.utils import httpx  # whichever it has, as in transformers
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # no others: PIL starts a program to read EPS
MAXIMUM_PIXELS = 8192 * 6144
MAXIMUM_RATIO = 200  # of the sides; resizing a thin line until its shorter side fits would take all memory
MAXIMUM_DOWNLOAD = 64 * 2**20  # bytes
DOWNLOAD_SECONDS = 30
ORIENTATION = 0x0112  # of EXIF


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """
    The picture as a person sees it, in RGB: EXIF rotation applied, transparency on white, 16 bits scaled to 8, the
    first frame of an animation.

    Args:
        source: path, `http(s):` or `data:image/` URL, encoded bytes or PIL image.

    Raises:
        ValueError: for what is no readable image, or one of more than `MAXIMUM_PIXELS`; the message names it.
    """
    try:
        return _upright_rgb(source if isinstance(source, Image.Image) else open_encoded(_fetched(source)))
    except Exception as error:  # of a damaged file, decoders raise almost anything
        name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)[:300]
        raise ValueError(f"Cannot read the image {name}: {str(error)[:300] or type(error).__name__}") from error


def open_encoded(source: str | Path | bytes) -> Image.Image:
    """
    The image in a file, or in its bytes, not yet decoded.

    Raises:
        ValueError: where it has more pixels than may be decoded.
        Exception: of PIL, for what is no image.
    """
    image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    _check_size(*image.size)
    return image


def check_array(image: Any) -> None:
    """
    Raises:
        ValueError: for a numpy array or tensor that holds no RGB image or several stacks of them, is too large, or has
            a value that is no finite number.
    """
    name = f"An array of {image.dtype} and shape {tuple(image.shape)}"
    if not 3 <= len(image.shape) <= 4 or 0 in image.shape or 3 not in (image.shape[-1], image.shape[-3]):
        raise ValueError(f"{name} is no RGB image: pass [height, width, 3] or [3, height, width], or a PIL image.")
    if math.prod(image.shape) > 4 * MAXIMUM_PIXELS:
        raise ValueError(f"{name} is larger than an image may be.")
    try:
        finite = bool(torch.as_tensor(image).isfinite().all())
    except TypeError as error:
        raise ValueError(f"{name} is no image: {error}") from error
    if not finite:
        raise ValueError(f"{name} is no image: not all of its values are finite.")


def _fetched(source: Any) -> Path | bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _download(source)
    if isinstance(source, str) and source.startswith("data:image/"):
        return b64decode(source.partition(",")[2])
    return Path(source)


def _download(url: str) -> bytes:
    encoded, started = bytearray(), monotonic()
    with httpx.stream("GET", url, timeout=DOWNLOAD_SECONDS, follow_redirects=True) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            encoded += piece
            if len(encoded) > MAXIMUM_DOWNLOAD:
                raise ValueError(f"it has more than {MAXIMUM_DOWNLOAD:,} bytes")
            if monotonic() - started > DOWNLOAD_SECONDS:
                raise ValueError(f"it takes longer than {DOWNLOAD_SECONDS} seconds to arrive")
    return bytes(encoded)


def _check_size(width: int, height: int) -> None:
    if width * height > MAXIMUM_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAXIMUM_PIXELS:,}; make it smaller")
    if not 0 < max(width, height) <= MAXIMUM_RATIO * min(width, height):
        raise ValueError(f"of {width} x {height} pixels, one side is over {MAXIMUM_RATIO} times the other")


def _upright_rgb(image: Image.Image) -> Image.Image:
    _check_size(*image.size)
    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    upon_white = Image.new("RGB", image.size, "white")
    upon_white.paste(image, mask=image)
    return upon_white


__all__ = ["check_array", "open_encoded", "open_image"]
