"""results.json: written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

RESULTS = "results.json"
QUESTIONS = "questions.parquet"  # beside it: every question with its answer and score
OVERLAY = "overlay.png"  # and an answered question, with where the model looked


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content`, so that nobody ever reads half of it."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)
