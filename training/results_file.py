"""results.json: written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from .whole_file import whole_file

RESULTS = "results.json"
QUESTIONS = "questions.parquet"  # beside it: every question with its answer and score
OVERLAY = "overlay.png"  # and an answered question, with where the model looked


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content`, see [`whole_file`]."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
