"""results.json: written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

RESULTS = "results.json"
OVERLAY = "overlay.png"  # beside it: an answered question, and where the model looked


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content`, so that nobody ever reads half of it."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)
