"""results.json: written whole or not at all, and how its values read."""

import json
from pathlib import Path
from typing import Any

from .atomic_write import atomic_write

RESULTS = "results.json"
RECIPE = "_recipe.json"  # in a training's folder, what it is of; a trainer does not push what begins so
QUESTIONS = "questions.parquet"  # beside it: every question with its answer and score
REPORT = "results.md"  # a table's results, to read
FIGURE = "results.png"  # and to see
DOCUMENT = "document.safetensors"  # of the source document's model; without a config no loader takes them for ours
OVERLAY = "overlay.png"  # and an answered question, with where the model looked
FAITHFULNESS = ("faithfulness.json", "faithfulness.png")  # whether the answers hang on it

ATTENTION_SOURCES = ("model", "center", "uniform", "shuffled_question")


def format_value(value: Any) -> str:
    """A value as text: `0.728`, `0.728 ± 0.012`, `12,345`, the text itself, or a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return f"{value['mean']:.3f} ± {value['std']:.3f}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if type(value) is int else str(value)


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content`, see [`atomic_write`]."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
