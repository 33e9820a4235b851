"""Seeded hostile inputs: damaged and disguised images, text of any kind, configs and recipes that ask for too much."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from modeling_qca.training.fitting.recipe import ARGUMENT_FIELDS, CONFIG_FIELDS, OWN_FIELDS

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
CHARACTERS = (
    (0x20, 0x7E), (0x00, 0x1F), (0x80, 0x24F), (0x300, 0x36F), (0x590, 0x6FF), (0x900, 0xDFF), (0x1100, 0x11FF),
    (0x2000, 0x206F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xD800, 0xDFFF), (0xE000, 0xF8FF), (0xFE00, 0xFE0F),
    (0xFFF0, 0xFFFF), (0x1F300, 0x1FAFF), (0xE0000, 0xE007F), (0x10FF00, 0x10FFFF),
)  # fmt: skip
PATHS = ("../../etc/passwd", "/etc/passwd", "C:\\Windows\\win.ini", "file:///etc/passwd", "..", "a/b", "\0", "~", "")
WORDS = (
    "what",
    "is",
    "the",
    "red",
    "[MASK]",
    "[PAD]",
    "[SEP]",
    "{}",
    "%s",
    "<image>",
    "${HOME}",
    "\\",
    "'",
    '"',
    "\n",
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


def question(generator: Random) -> Any:
    """Text of any length in any script, a list of such, or no text at all."""
    if generator.random() < 0.1:
        return generator.choice(
            [None, 7, 0.5, b"what", {}, [], [[]], {"what": 1}, ("what", None), [["what"]], object()]
        )
    if generator.random() < 0.15:
        return [_text(generator) for _ in range(generator.randint(1, 6))]
    return _text(generator)


def config(generator: Random, fields: dict[str, Any]) -> bytes:
    """A config.json made from the `fields` of a good one."""
    if generator.random() < 0.1:
        return _no_config(generator, json.dumps(fields))
    for _ in range(generator.choice([1, 1, 2, 3])):
        part = fields
        if generator.random() < 0.6:
            part = fields.get(generator.choice(["vision_config", "text_config"]))
        if not isinstance(part, dict):
            continue
        act = generator.random()
        name = generator.choice(
            [*sorted(part), "num_labels", "dtype", "attn_implementation", "auto_map", "extra", "rope_theta"]
        )
        if act < 0.1:
            part.pop(name, None)
        elif act < 0.15:
            part["model_type"] = generator.choice(
                [
                    "bert",
                    "roberta",
                    "t5",
                    "gpt2",
                    "swin",
                    "resnet",
                    "clip",
                    "vit",
                    "dinov2",
                    "qca",
                    "siglip_text_model",
                ]
            )
        else:
            part[name] = value(generator, part.get(name))
    return json.dumps(fields).encode()


def recipe(generator: Random) -> bytes:
    """A recipe.yaml: good keys with bad values, bad keys, bombs."""
    if generator.random() < 0.25:
        return generator.choice(RECIPES)(generator)
    values: dict[str, Any] = {"data": "rooms", "model": "qca-tiny", "learning_rate": 1e-4}
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        known = generator.choice([sorted(OWN_FIELDS), sorted(CONFIG_FIELDS), sorted(ARGUMENT_FIELDS)])
        name = generator.choice(known)
        if generator.random() < 0.1:
            name = generator.choice([name[:-1], name.upper(), "hub_token", "extends", 7, None, _text(generator)[:40]])
        good = generator.choice([1, 2, 0.5, True, False, "no", "1e-3", None, ["vision"]])
        values[name] = good if generator.random() < 0.3 else value(generator, good)
    text = yaml.safe_dump(_plain(values), allow_unicode=generator.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def value(generator: Random, good: Any) -> Any:
    """Something that a field should not hold, or only just may."""
    numbers = [0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 10**12, 10**40, -(2**31), 1 << 20, 1e308, -0.5, 1e-30, 1e30]
    specials = [float("nan"), float("inf"), float("-inf"), True, False, None, "", "no", "1e-4", "nan"]
    choice = generator.random()
    if choice < 0.35:
        return generator.choice(numbers)
    if choice < 0.55:
        return generator.choice(specials)
    if choice < 0.65:
        return generator.choice(PATHS)
    if choice < 0.7:
        return _text(generator)[:200]
    if choice < 0.75:
        return _nested(generator.choice([2, 10, 17, 30, 100]), generator.random() < 0.5)
    if choice < 0.85:
        return [value(generator, good) for _ in range(generator.randint(0, 4))]
    if choice < 0.92:
        return {generator.choice(["0", "1", "a", "", "__class__"]): value(generator, good) for _ in range(2)}
    if type(good) is int:
        return generator.choice(
            [good * 10**3, good * 10**6, good * 10**9, -good, good + 1, float(good), str(good), [good]]
        )
    return [good] * generator.randint(1, 3)


def _nested(depth: int, lists: bool) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner] if lists else {"a": inner}
    return inner


def _plain(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _plain(inner) for key, inner in found.items()}
    if isinstance(found, list):
        return [_plain(inner) for inner in found]
    return found.encode("utf-8", "ignore").decode() if isinstance(found, str) else found


def _text(generator: Random) -> str:
    length = generator.choice([0, 1, 2, 10, 40, 40, 500, 5000, 99_999, 100_001, 2_000_000])
    kind = generator.random()
    if kind < 0.3:
        return " ".join(generator.choice(WORDS) for _ in range(min(length, 200)))
    if kind < 0.5:
        first, last = generator.choice(CHARACTERS)
        unit = "".join(chr(generator.randint(first, last)) for _ in range(10))
        return (unit * (length // 10 + 1))[:length]
    if kind < 0.6:
        return generator.choice(["a", " ", "\0", "é", "\u0301", "😀", "red ", "\u200d", "\n", "[PAD]"]) * (length // 2)
    some = generator.sample(CHARACTERS, 3)
    ranges = generator.choices(some, k=min(length, 200))
    return "".join(chr(generator.randint(first, last)) for first, last in ranges)


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
    array = np.ones(shape).astype(kind)
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


def _no_config(generator: Random, whole: str) -> bytes:
    return generator.choice(
        [
            whole[: generator.randrange(len(whole))].encode(),
            b"",
            b"[1, 2]",
            b"7",
            b'"qca"',
            b"null",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"model_type": "qca", "hidden_size": ' + b"9" * 5000 + b"}",
            b"\xff\xfe" + generator.randbytes(100),
            whole.encode("utf-16"),
            generator.randbytes(300),
            b'{"model_type": "qca", "x": ' + b"[" * 900 + b"]" * 900 + b"}",
            b'{"model_type": "../../x"}',
            b'{"configuration_files": ["../config.4.0.0.json"], "model_type": "qca"}',
        ]
    )


def _bomb(generator: Random) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, generator.choice([4, 9, 30])):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return ("data: &d d\nmodel: *d\n" * (generator.random() < 0.2) + "\n".join(lines)).encode()


RECIPES = [
    _bomb,
    lambda generator: b"data: " + b"[" * generator.choice([50, 1000, 50_000]),
    lambda generator: b"a: " * generator.choice([2, 300, 20_000]),
    lambda generator: b"data: d\nmodel: !!python/object/apply:os.system ['touch left']\n",
    lambda generator: b"extends: recipe.yaml\ndata: d\n",
    lambda generator: (
        b"extends: " + generator.choice([b"/etc/passwd", b"[a]", b"7", b"../..", b"null", b"{}", b"'a\\0b'"])
    ),
    lambda generator: generator.randbytes(generator.choice([0, 10, 1000])),
    lambda generator: b"\xff\xfedata: d",
    lambda generator: b"data: d\nmodel: m\nx: " + b"y" * generator.choice([10, 10**6]),
    lambda generator: b"- " * 10 + b"a",
    lambda generator: (
        b"data: d\nmodel: m\nseed: " + generator.choice([b"2020-13-45", b"0x" + b"f" * 9000, b"9" * 9000, b"!!int x"])
    ),
    lambda generator: (
        b"data: d\nmodel: m\nseed: !!"
        + generator.choice([b"timestamp x", b"bool maybe", b"float ''", b"binary '#'", b"set {a}"])
    ),
    lambda generator: b"? [a]\n: b\n",
    lambda generator: b"&a [*a]\n",
    lambda generator: b"data: &a [*a]\nmodel: m\n",
    lambda generator: b"<<: {data: d, model: m}\n<<: 7\n",
    lambda generator: (
        b"data: d\nmodel: m\n" + b"".join(b"key%d: %d\n" % (i, i) for i in range(generator.choice([10, 20_000])))
    ),
]
