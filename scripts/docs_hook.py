"""A hook of mkdocs: lay the packages out in `build/api` as a wheel does, so that mkdocstrings finds their modules.

`modeling_qca.training` lies in `training/` here, and a tool that reads files looks for it in `modeling_qca/training/`.
"""

import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
API = ROOT / "build" / "api"
PACKAGES = {"modeling_qca": ".", "training": "training", "hub_card": "hub_card"}


def on_config(config: Any) -> Any:
    """Called by mkdocs before it reads a page."""
    shutil.rmtree(API, ignore_errors=True)
    for folder, place in PACKAGES.items():
        python = shutil.ignore_patterns("__pycache__", "*.md", "*.txt")
        shutil.copytree(ROOT / folder, API / "modeling_qca" / place, dirs_exist_ok=True, ignore=python)
    for file in API.rglob("*.py"):
        file.write_text(plain_markup(file.read_text()))
    return config


def plain_markup(source: str) -> str:
    """Docstrings with the markup of transformers taken out: "[`X`]" and "(`str`, *optional*, defaults to `"a"`):"."""
    source = re.sub(r"\[(`[\w.]+`)\](?![\[(])", r"\1", source)
    typed = re.compile(r"^(\s+\w[\w, ]* \()(.*`.*|\*optional\*)(\):)", re.MULTILINE)
    return typed.sub(lambda entry: entry[1] + entry[2].replace("`", "").replace("*", "") + entry[3], source)
