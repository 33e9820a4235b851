"""Pushes by client processes, and a checkpoint that was pushed once for many tests to load."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .client import Client
from .local_hub import LocalHub

# Arguments and keyword arguments of one `push` after another; prints the outcome of each.
PUSH = """
    import json, sys
    from modeling_qca.hub_card.publish import push
    for checkpoint, repo_id, options in json.loads(sys.argv[1]):
        try:
            print(push(checkpoint, repo_id, **options).url)
        except (ValueError, OSError) as error:
            print(f"{type(error).__name__}: {error}")
"""

Job = tuple[Path, str, dict[str, Any]]


def run_pushes(client: Client, *jobs: Job, before: str = "") -> list[str]:
    """The commit's URL or the error of each push, all made by one client process."""
    encoded = json.dumps([(str(checkpoint), repo_id, options) for checkpoint, repo_id, options in jobs])
    return client.output(PUSH, encoded, before=before).splitlines()


@dataclass(frozen=True)
class Published:
    """A checkpoint that was pushed as user/model, tag v1, and a photo to ask about."""

    checkpoint: Path
    photo: Path
    hub: LocalHub
    client: Client
