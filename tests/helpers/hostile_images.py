"""Seeded hostile images: damaged, disguised and oversized files, arrays of any shape, and values that are no image."""

import base64
import io
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from .hostile_text import PATHS

FORMATS = {  # what PIL can write, with a color mode it writes
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB", "1"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "PPM": ("1", "L", "RGB"),
    "ICO": ("RGBA",),
    "TGA": ("RGB",),
    "EPS": ("L", "RGB"),
    "PCX": ("L",),
    "PDF": ("RGB",),
}
MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
    "La",
    "RGBa",
)
MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\0\0\0\0WEBP",
    b"%!PS-Adobe",
    b"<svg",
)


def image(generator: Random, folder: Path) -> Any:
    """Encoded bytes, a path, a URL, a PIL image, an array, or something else."""
    make = generator.choice(
        [_encoded, _damaged, _damaged, _truncated, _magic, _png_bomb, _animation, _oriented, _huge_header, _thin]
        + [_pil, _array, _source, _png_chunks]
    )
    made = make(generator)
    if isinstance(made, bytes) and generator.random() < 0.3:
        path = folder / f"image.{generator.choice(['png', 'jpg', 'tiff', 'eps', 'txt'])}"
        path.write_bytes(made)
        return generator.choice([path, str(path)])
    if isinstance(made, bytes) and generator.random() < 0.1:
        return "data:image/png;base64," + base64.b64encode(made).decode()
    return made


def _noise(generator: Random, mode: str, size: tuple[int, int]) -> Image.Image:
    channels = {"LA": 2, "PA": 2, "La": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "HSV": 3, "RGBA": 4, "RGBX": 4, "RGBa": 4}
    depth = {"I": 4, "F": 4, "I;16": 2}.get(mode, channels.get(mode, 4 if mode == "CMYK" else 1))
    width, height = size
    row = (width + 7) // 8 if mode == "1" else width * depth
    return Image.frombytes(mode, size, generator.randbytes(row * height))


def _size(generator: Random) -> tuple[int, int]:
    return generator.choice([1, 2, 7, 32, 33, 100]), generator.choice([1, 3, 16, 32, 64])


def _encoded(generator: Random) -> bytes:
    kind = generator.choice(sorted(FORMATS))
    picture, buffer = _noise(generator, generator.choice(FORMATS[kind]), _size(generator)), io.BytesIO()
    options: dict[str, Any] = {}
    if kind == "PNG" and generator.random() < 0.3:
        options["transparency"] = 0
    if kind == "TIFF":
        options["compression"] = generator.choice([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
    try:
        picture.save(buffer, kind, **options)
    except (ValueError, OSError, TypeError):  # a transparency the mode cannot have
        picture.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _damaged(generator: Random) -> bytes:
    whole = bytearray(_encoded(generator))
    for _ in range(generator.choice([1, 3, 10, 100])):
        start = (
            generator.randrange(len(whole)) if generator.random() < 0.5 else generator.randrange(min(64, len(whole)))
        )
        whole[start] = generator.choice([0, 1, 127, 128, 255, generator.randrange(256)])
    return bytes(whole)


def _truncated(generator: Random) -> bytes:
    whole = _encoded(generator)
    return whole[: generator.randrange(len(whole))] + generator.randbytes(generator.choice([0, 0, 100]))


def _magic(generator: Random) -> bytes:
    return generator.choice([*MAGIC, b""]) + generator.randbytes(generator.choice([0, 1, 20, 1000]))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, data: bytes, depth: int = 8, color: int = 0, extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return MAGIC[0] + header + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _png_bomb(generator: Random) -> bytes:
    if generator.random() < 0.05:  # as large as is let through, and all there
        width, height = generator.choice([(8192, 6144), (6144, 8192), (8193, 6144)])
        return _png(width, height, zlib.compress(bytes((width + 1) * height), 1))
    sides = [1, 1000, 10_000, 50_000, 2**16, 2**24, 2**31 - 1, 2**32 - 1]
    return _png(
        generator.choice(sides),
        generator.choice(sides),
        zlib.compress(bytes(1000)),
        color=generator.choice([0, 2, 6]),
    )


def _png_chunks(generator: Random) -> bytes:
    extra = b"".join(
        _chunk(generator.choice([b"PLTE", b"tRNS", b"eXIf", b"zTXt", b"iCCP", b"acTL", b"fcTL", b"gAMA", b"tEXt"]),
               generator.choice([b"", b"\0" * 7, generator.randbytes(30), b"x\0\0" + zlib.compress(bytes(10**6))]))
        for _ in range(generator.randint(1, 4))
    )  # fmt: skip
    depth, color = generator.choice([1, 2, 4, 8, 16]), generator.choice([0, 2, 3, 4, 6])
    return _png(9, 9, zlib.compress(generator.randbytes(9 * 100)), depth, color, extra)


def _animation(generator: Random) -> bytes:
    frames, buffer = [_noise(generator, "RGB", (9, 9)) for _ in range(generator.randint(2, 5))], io.BytesIO()
    frames[0].save(buffer, generator.choice(["GIF", "PNG", "WEBP", "TIFF"]), save_all=True, append_images=frames[1:])
    whole = buffer.getvalue()
    return whole if generator.random() < 0.5 else whole[: generator.randrange(len(whole))]


def _oriented(generator: Random) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = generator.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
    encoded = bytearray(exif.tobytes())
    if generator.random() < 0.5:
        encoded[generator.randrange(len(encoded))] = generator.randrange(256)
    picture = _noise(generator, "RGB", _size(generator))
    picture.save(buffer, generator.choice(["JPEG", "PNG", "WEBP"]), exif=bytes(encoded))
    return buffer.getvalue()


def _huge_header(generator: Random) -> bytes:
    side = generator.choice([5000, 30_000, 65_535])
    gif = (
        b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b",\0\0\0\0"
        + struct.pack("<HHB", side, side, 0)
        + b"\x02"
    )
    bmp = b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side, generator.choice([side, -side]), 1, 24, 0, 0, 0, 0, 0, 0
    )
    jpeg = bytearray(_jpeg(generator))
    at = jpeg.find(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, generator.choice([1, side]))
    return generator.choice([gif + bytes(200), bmp + bytes(300), bytes(jpeg)])


def _jpeg(generator: Random) -> bytes:
    buffer = io.BytesIO()
    _noise(generator, "RGB", (16, 16)).save(buffer, "JPEG")
    return buffer.getvalue()


def _thin(generator: Random) -> bytes:
    long, buffer = generator.choice([200, 201, 5000, 60_000]), io.BytesIO()
    Image.new("L", generator.choice([(1, long), (long, 1)])).save(buffer, "PNG")
    return buffer.getvalue()


def _pil(generator: Random) -> Image.Image:
    if generator.random() < 0.1:
        return Image.new("RGB", generator.choice([(0, 0), (0, 5), (5, 0), (1, 900)]))
    return _noise(generator, generator.choice(MODES), _size(generator))


def _array(generator: Random) -> Any:
    shape = generator.choice(
        [
            (),
            (0,),
            (3,),
            (8, 8),
            (8, 8, 3),
            (3, 8, 8),
            (1, 8, 8),
            (8, 8, 4),
            (2, 3, 8, 8),
            (0, 8, 3),
            (5, 5, 5, 5, 5),
            (2, 2),
        ]
    )
    kind = generator.choice(["uint8", "float32", "float64", "bool", "int64", "uint16", "complex64", "object", "U4"])
    array = np.full(shape, generator.choice([0, 0.5, 1, 200, 255, 4095, -1])).astype(kind)
    act = generator.random()
    if act < 0.2 and kind.startswith("float") and array.size:
        array[...] = generator.choice([np.nan, np.inf, -np.inf, 1e38])
    elif act < 0.3:
        return np.broadcast_to(np.uint8(1), generator.choice([(10**6, 10**6, 3), (3, 10**9, 10), (10**5, 1, 3)]))
    elif act < 0.4:
        return [array, array]
    elif act < 0.6 and kind not in ("object", "U4", "uint16"):
        return torch.from_numpy(array)
    return array


def _source(generator: Random) -> Any:
    return generator.choice(
        [
            *PATHS,
            "data:image/png;base64,",
            "data:image/png;base64,!!",
            "data:image/svg+xml,<svg/>",
            "http://",
            "http://[::1",
            "https://\0",
        ]
        + [
            "http://127.0.0.1:9/x.png",
            "x" * 5000,
            b"",
            b"\0" * 100,
            None,
            7,
            [],
            {},
            ["a", "b"],
            object(),
            Path("."),
            Path("\0"),
        ]
    )
