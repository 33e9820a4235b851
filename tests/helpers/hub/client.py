"""Clients of the local Hub, each in a process of its own."""

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from .local_hub import TOKEN, LocalHub

WITHOUT_WAITING = "import time; time.sleep = lambda seconds: None  # between the client's retries\n"


@dataclass(frozen=True)
class Client:
    """Runs Python programs as clients of `hub`, each in a fresh process, in an empty folder with an empty cache."""

    hub: LocalHub
    folder: Path

    def run(
        self, program: str, *arguments: object, token: str | None = TOKEN, before: str = "", home: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`before` runs first; `home` names a cache to share between calls."""
        place = self.folder / (home or f"client-{len(list(self.folder.iterdir()))}")
        place.mkdir(exist_ok=True)
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "PYTHON"))
        }
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", before + textwrap.dedent(program), *map(str, arguments)],
            env=inherited | self.hub.env(place / "hf_home", token) | {"OMP_NUM_THREADS": "1"},
            cwd=place,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def output(self, program: str, *arguments: object, before: str = "", home: str | None = None) -> str:
        """What the program printed; it must succeed."""
        done = self.run(program, *arguments, before=before, home=home)
        assert done.returncode == 0, done.stderr
        return done.stdout
