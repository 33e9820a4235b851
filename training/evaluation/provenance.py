"""What a reader needs to repeat a measurement: data, versions, device and command."""

import hashlib
import platform
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch

from .device import device_name

PACKAGES = ("modeling-qca", "torch", "transformers", "datasets", "peft", "accelerate")


def provenance(rows: datasets.Dataset, name: str, split: str, device: torch.device) -> dict[str, Any]:
    """The entries `data` (with a fingerprint of `rows`), `versions`, `device` and `command` of a results file."""
    digest = hashlib.sha256()
    for question_id, question, answers in zip(rows["question_id"], rows["question"], rows["answers"], strict=True):
        digest.update(repr((question_id, question, answers)).encode())
    return {
        "data": {
            "name": name,
            "split": split,
            "rows": len(rows),
            "images": len(set(rows["image_id"])),
            "fingerprint": digest.hexdigest()[:16],
        },
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "device": device_name(device),
        "command": command_line(),
    }


def command_line() -> str:
    """The command that is running, without the folders of absolute paths: they name this machine's user."""
    return shlex.join([Path(sys.argv[0]).name, *map(_without_folder, sys.argv[1:])])


def _without_folder(argument: str) -> str:
    return re.sub(r"(?<![^\s={:'\"])/(?:[^/\s]+/)*", "", argument)
