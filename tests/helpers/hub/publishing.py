"""Pushes to a local Hub, and a checkpoint that many tests load after one push."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_qca.hub_card.publish import push

from .client import Client
from .connection import connected
from .local_hub import LocalHub

Job = tuple[Path, str, dict[str, Any]]


def run_pushes(hub: LocalHub, cache: Path, *jobs: Job) -> list[str]:
    """The URL of the commit or the error of each push."""
    outcomes = []
    with connected(hub, cache):
        for checkpoint, repo_id, options in jobs:
            try:
                outcomes.append(str(push(checkpoint, repo_id, **options).url))
            except (ValueError, OSError) as error:
                outcomes.append(f"{type(error).__name__}: {error}")
    return outcomes


@dataclass(frozen=True)
class Published:
    """A checkpoint that was pushed as user/model, tag v1, and a photo to ask about."""

    checkpoint: Path
    photo: Path
    hub: LocalHub
    client: Client
