"""Seeded hostile text: questions in any script, and configs and recipes that ask for too much."""

import json
from random import Random
from typing import Any

import yaml

from modeling_qca.training.fitting.recipe import ARGUMENT_FIELDS, CONFIG_FIELDS, OWN_FIELDS

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


def question(generator: Random) -> Any:
    """Text of any length in any script, a list of texts, or something else."""
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
    """A value that a field must refuse, or can only just accept."""
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
