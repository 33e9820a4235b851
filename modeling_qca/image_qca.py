"""Read an image from any source as upright RGB, or raise one message that says why it cannot be read."""

import math
import re
from base64 import b64decode
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from reprlib import repr as short
from time import monotonic
from typing import IO, Any

import numpy as np
import torch
from huggingface_hub.utils import httpx  # the client that transformers uses as well
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # no others: PIL starts a program to read EPS
MAXIMUM_PIXELS = 8192 * 6144
MAXIMUM_RATIO = 200  # of the sides; resizing a thin line until its shorter side fits would take all memory
MAXIMUM_DOWNLOAD = 64 * 2**20  # bytes
DOWNLOAD_SECONDS = 30
ORIENTATION = 0x0112  # of EXIF
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")  # shorter strings are file names
LOWEST_16_BIT_PEAK = 2**14  # below it the values are rather of 10, 12 or 14 bits

# What files that are no readable image look like: (first bytes at an offset, name)
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypheic", "a HEIC photo"),
    (4, b"ftypheix", "a HEIC photo"),
    (4, b"ftyphevc", "a HEIC photo"),
    (4, b"ftypmif1", "a HEIF photo"),
    (4, b"ftypmsf1", "a HEIF photo"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftypavis", "an AVIF image"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (4, b"ftyp", "a video"),
    (0, b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull` to fetch the image itself"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x93NUMPY", "a NumPy file; load it with `numpy.load` and pass the array"),
    (128, b"DICM", "a DICOM file; read its pixels with `pydicom` and pass an array"),
)

ImageSource = str | Path | bytes | IO[bytes] | Image.Image | np.ndarray | torch.Tensor | dict[str, Any]


def open_image(source: Any) -> Image.Image:
    """
    The picture as a person sees it, in 8-bit RGB.

    EXIF rotation is applied, transparency is put on white, and an animation gives its first frame. Values are scaled
    to 8 bits where their range is clear: floats in 0..1 (float arrays and mode `F`), integers in 0..255, and 16 bits.

    Args:
        source: path, `http(s):` or `data:` URL, base64 string, encoded bytes, open binary file, PIL image, RGB array
            or tensor (channels first or last), or `{"bytes": ..., "path": ...}` of an undecoded `datasets.Image`.

    Raises:
        ValueError: for a source that is no readable image, has more than `MAXIMUM_PIXELS`, or has values of an unclear
            range. The message names the source but never contains its pixels.
    """
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        return _from_array(source) if _is_array(source) else _upright_rgb(open_encoded(_encoded(source)))
    except Exception as error:  # of a damaged file, decoders raise almost anything
        reason = str(error)[:500] or type(error).__name__
        raise ValueError(f"Cannot read the image {describe_image(source)}: {reason}") from error


def open_encoded(source: str | Path | bytes) -> Image.Image:
    """
    The image in a file, or in its bytes, not yet decoded.

    Raises:
        ValueError: for another format than `FORMATS`, and for more pixels than may be decoded.
        OSError: where the file cannot be opened.
    """
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"cannot identify image: {_looks_like(_first_bytes(source))}. The formats read are {', '.join(FORMATS)}; "
            "save the image as PNG or JPEG."
        ) from error
    _check_size(*image.size)
    return image


def describe_image(source: Any) -> str:
    """A short name of an image source for messages, without pixels and without base64."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"of mode {source.mode} and {source.width} x {source.height} pixels"
    if _is_array(source):
        return f"array of {source.dtype} and shape {tuple(source.shape)}"
    if isinstance(source, dict):
        return f"of a mapping with the keys {short(sorted(map(str, source)))}"
    if isinstance(source, str) and source.startswith("data:"):
        return f"{source.partition(',')[0][:100]},..."
    if isinstance(source, str) and _is_base64(source):
        return f"base64 string of {len(source)} characters"
    if isinstance(source, (str, Path)):
        return str(source)[:300]
    return short(source)


def is_collection(value: Any) -> bool:
    """Whether `value` is a sized collection of images or questions, rather than one of them."""
    if isinstance(value, (str, bytes, bytearray, memoryview, dict, Path, Image.Image)) or _is_file(value):
        return False
    if _is_array(value):
        return len(value.shape) == 4 or (len(value.shape) == 1 and str(value.dtype)[0] in "<>|os")  # strings, objects
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def is_stream(value: Any) -> bool:
    """Whether `value` gives images or rows one after another and has no length: a generator, an iterable dataset."""
    one = isinstance(value, (str, bytes, bytearray, memoryview, dict, Path, Image.Image))
    return isinstance(value, Iterable) and not (one or _is_file(value) or _is_array(value) or is_collection(value))


def check_array(values: Any) -> None:
    """
    Raises:
        ValueError: for a numpy array or tensor that holds no RGB image, is too large, or has a value that is no finite
            number.
    """
    shape = tuple(values.shape)
    if len(shape) != 3 or 0 in shape or 3 not in (shape[0], shape[-1]):
        raise ValueError("it is no RGB image: pass [height, width, 3] or [3, height, width], or a PIL image")
    if math.prod(shape) > 3 * MAXIMUM_PIXELS:
        raise ValueError("it is larger than an image may be")
    if isinstance(values, torch.Tensor):
        finite = bool(values.isfinite().all())
    elif np.asarray(values).dtype.kind in "biuf":
        finite = bool(np.isfinite(values).all())
    else:
        raise ValueError(f"it is no image: its values are of type {values.dtype}, not numbers")
    if not finite:
        raise ValueError("it is no image: not all of its values are finite")


def _is_array(source: Any) -> bool:
    return hasattr(source, "shape") and hasattr(source, "dtype")


def _is_file(source: Any) -> bool:
    return hasattr(source, "read") or hasattr(source, "file")


def _is_base64(source: str) -> bool:
    if not BASE64.fullmatch(source):
        return False
    try:
        return not Path(source).exists()
    except OSError:  # too long for a file name
        return True


def _encoded(source: Any) -> Path | bytes:
    if isinstance(source, dict) and source.keys() & {"bytes", "path"}:
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if _is_file(source):
        return _file_bytes(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _download(source)
    if isinstance(source, str) and source.startswith("data:"):
        return b64decode(source.partition(",")[2])
    if isinstance(source, str) and _is_base64(source):
        return b64decode(source)
    return Path(source)


def _file_bytes(source: Any) -> bytes:
    """The content of an open file or of an upload, whose synchronous file is `.file` (Starlette, FastAPI)."""
    stream = source if not hasattr(source, "file") else source.file
    if stream.seekable():
        stream.seek(0)
    content = stream.read(MAXIMUM_DOWNLOAD + 1)
    if not isinstance(content, bytes):
        raise ValueError(f'it is opened as text; open it with mode "rb" (it reads {type(content).__name__})')
    if len(content) > MAXIMUM_DOWNLOAD:
        raise ValueError(f"it has more than {MAXIMUM_DOWNLOAD:,} bytes")
    return content


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


def _first_bytes(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:1024]
    with Path(source).open("rb") as file:
        return file.read(1024)


def _looks_like(head: bytes) -> str:
    for offset, signature, name in SIGNATURES:
        if head[offset:].startswith(signature):
            return f"it looks like {name}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text:
        return "it is empty"
    if b"<svg" in text:
        return "it looks like an SVG drawing"
    if text.startswith((b"<!doctype html", b"<html")) or b"<html" in text:
        return "it looks like a web page (HTML); the address may need a login or lead to a page about the image"
    return "it looks like text" if text.isascii() and b"\0" not in text else "its format is unknown"


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
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    upon_white = Image.new("RGB", image.size, "white")
    upon_white.paste(image, mask=image)
    return upon_white


def _from_array(values: Any) -> Image.Image:
    check_array(values)
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    array = np.asarray(values)
    array = array.transpose(1, 2, 0) if array.shape[0] == 3 else array
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(_to_8_bits(array)))


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """
    Scale values to 0..255 where their range is clear.

    Raises:
        ValueError: for values that may be of several ranges; 12 bits read as 16 would be nearly black.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("it is no image: not all of its values are finite")
    top = 0
    if low >= 0 and high <= 255:
        top = 1 if values.dtype.kind == "f" and high <= 1 else 255
    elif low >= 0 and values.dtype.kind in "iu" and LOWEST_16_BIT_PEAK <= high <= 65535:
        top = 65535
    if top:
        return (values.astype(np.float64) * (255 / top)).round().astype(np.uint8)
    raise ValueError(
        f"its values of type {values.dtype} are from {low:g} to {high:g}, a range without a clear meaning. Pass "
        "integers from 0 to 255 or floats from 0 to 1, for example `((x - low) / (high - low) * 255).astype('uint8')`"
    )


__all__ = ["ImageSource", "check_array", "describe_image", "is_collection", "is_stream", "open_encoded", "open_image"]
