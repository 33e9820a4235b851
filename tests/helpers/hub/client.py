"""Clients of the local Hub, each in a process of its own."""

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from .local_hub import TOKEN, LocalHub


@dataclass(frozen=True)
class Client:
    """Runs Python programs as clients of `hub`, each in a fresh process with an empty folder and cache."""

    hub: LocalHub
    folder: Path

    def run(self, program: str, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
        """Run `before` and then `program`, in one process."""
        place = self.folder / f"client-{len(list(self.folder.iterdir()))}"
        place.mkdir()
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "PYTHON"))
        }
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", before + textwrap.dedent(program), *map(str, arguments)],
            env=inherited | self.hub.env(place / "hf_home", TOKEN) | {"OMP_NUM_THREADS": "1"},
            cwd=place,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def output(self, program: str, *arguments: object, before: str = "") -> str:
        """The output of a program that succeeds."""
        done = self.run(program, *arguments, before=before)
        assert done.returncode == 0, done.stderr
        return done.stdout
