"""A hook of mkdocs: lay the packages out in `build/api` as a wheel does, so that mkdocstrings finds their modules.

`modeling_qca.training` lies in `training/` here, and a tool that reads files looks for it in `modeling_qca/training/`.
"""

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
    return config
