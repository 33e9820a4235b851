"""Private data in published files: access tokens, folders of this machine, and picture metadata."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from PIL import Image

from .card import CARD

ALLOWED_SUFFIXES = {".json", ".jinja", ".md", ".model", ".png", ".py", ".safetensors", ".txt"}
TEXT_SUFFIXES = {".json", ".jinja", ".md", ".py", ".txt"}
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
ABSOLUTE_PATH = re.compile(r"(?<![\w/.:~])~?(?:/[\w.@+-]+){2,}/?|(?<!\w)[A-Za-z]:(?:\\{1,2}[\w.@+-]+)+")


def shorten_paths(value: Any) -> Any:
    """`value` with each absolute path in its strings replaced by the last part of the path."""
    if isinstance(value, dict):
        return {key: shorten_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shorten_paths(inner) for inner in value]
    if isinstance(value, str):
        return ABSOLUTE_PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], value)
    return value


def copy_pixels(source: Path, target: Path) -> None:
    """Write the pixels of a picture to a new PNG file, without EXIF, comments or other metadata."""
    with Image.open(source) as image:
        pixels = image.convert("RGB")
    clean = Image.new("RGB", pixels.size)
    clean.paste(pixels)
    clean.save(target, "PNG")


def check_private_data(folder: Path) -> None:
    """
    Raises:
        ValueError: A file may hold a pickle, an access token or an absolute path. The message names the file.
    """
    token = get_token()
    for path in sorted(folder.rglob("*"), key=lambda path: path.name == CARD):  # the card repeats the other files
        if path.suffix not in ALLOWED_SUFFIXES:
            raise ValueError(f"{path.name} is not published: only {', '.join(sorted(ALLOWED_SUFFIXES))} files are.")
        if path.suffix not in TEXT_SUFFIXES:
            continue
        text = path.read_text(encoding="utf-8")
        if TOKEN.search(text) or (token is not None and token in text):
            raise ValueError(f"{path.name} holds an access token; remove it, and revoke it if it was shared.")
        if path.name not in VOCABULARIES and (match := ABSOLUTE_PATH.search(text)):
            raise ValueError(f"{path.name} holds the absolute path {match[0]}; make it relative or remove it.")
