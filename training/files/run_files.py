"""results.json: written whole or not at all, and how its values read."""

import json
from pathlib import Path
from typing import Any

from .atomic_write import atomic_write

RESULTS = "results.json"
RECIPE = "_recipe.json"  # in a training's folder, what it is of; a trainer does not push what begins so
EVALUATION = "_evaluation.json"  # beside the results of an evaluation, what they are of
RUN = "run.json"  # the data, split, answers and training images of a training; see `read_run`
QUESTIONS = "questions.parquet"  # beside it: every question with its answer and score
REPORT = "results.md"  # a table's results, to read
FIGURE = "results.png"  # and to see
DOCUMENT = "document.safetensors"  # of the source document's model; without a config no loader takes them for ours
OVERLAY = "overlay.png"  # and an answered question, with where the model looked
FAITHFULNESS = ("faithfulness.json", "faithfulness.png")  # whether the answers hang on it

RUN_KEYS = {
    *("data", "format", "data_options", "validation_data", "validation_options", "validation_ratio", "group_by"),
    *("data_seed", "split", "answers", "answer_rule", "normalize_answers", "training_images"),
    *("on_bad_image", "majority_answer"),
}
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


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """
    What a training in `folder` remembers of its data; None where there is no `run.json`.

    Returns:
        `data`, `format`, `data_options`, `validation_data`, `validation_options`, `validation_ratio`, `group_by`,
        `data_seed` and `on_bad_image` as in its recipe; `split`, the split it was measured on; `answers` in the order
        of their classes, `answer_rule` and `normalize_answers`; `majority_answer`, the one answer that scores most on
        the training rows; and `training_images`, the sorted digests of the images it was trained on
        (`data.image_digests`), or None for a stream.

    Raises:
        ValueError: the file is not one that a training wrote.
    """
    file = Path(folder) / RUN
    if not file.is_file():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        missing = sorted(RUN_KEYS - run.keys())
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: not the memory of a training run: {error}") from error
    if missing:
        raise ValueError(f"{file}: not the memory of a training run: it has no `{missing[0]}`")
    return run
