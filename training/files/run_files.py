"""The files of a run, an evaluation and a table of results: their names, and how they are read and written."""

import json
import re
from pathlib import Path
from typing import Any

from .atomic_write import atomic_write

# in the folder of a training, beside the checkpoint
RECIPE = "_recipe.json"  # the recipe of the run; `Trainer` does not push files that begin so
RUN = "run.json"  # the data, split, answers and training images of the run; see `read_run`
REFERENCE_WEIGHTS = "reference_model.safetensors"  # weights of the reference model; no config, so no loader takes them
OVERLAY = "overlay.png"  # one answered question with its relevance map
CALIBRATION = "calibration.json"  # see `confidence.abstention.read_calibration`
TRAINED_QUESTIONS = "trained_questions.safetensors"  # see `confidence.familiarity`
FAITHFULNESS = ("faithfulness.json", "faithfulness.png")

# in the folder of a training, an evaluation or a table
RESULTS = "results.json"
EVALUATION = "_evaluation.json"  # the checkpoint and the data of an evaluation
QUESTIONS = "questions.parquet"  # every question with its answer, score and expected answers
REPORT = "results.md"  # the results of a table
FIGURE = "results.png"

RUN_KEYS = {
    *("data", "format", "data_options", "validation_data", "validation_options", "validation_ratio", "group_by"),
    *("data_seed", "split", "answers", "answer_rule", "normalize_answers", "training_images"),
    *("on_bad_image", "majority_answer"),
}
OPTIONAL_RUN_KEYS = {"abstain_answer"}
_INTERMEDIATE = re.compile(r"checkpoint-\d+")
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


def folder_of_run(checkpoint: str | Path) -> str:
    """The folder of the training that wrote `checkpoint`: the one above an intermediate `checkpoint-N`."""
    folder = Path(checkpoint)
    intermediate = _INTERMEDIATE.fullmatch(folder.name) and not (folder / RUN).is_file()
    return str(folder.parent if intermediate and (folder.parent / RUN).is_file() else checkpoint)


def read_run(checkpoint: str | Path) -> dict[str, Any] | None:
    """
    The `run.json` of the training that wrote `checkpoint`, see [`folder_of_run`]; None if there is none.

    Returns:
        `data`, `format`, `data_options`, `validation_data`, `validation_options`, `validation_ratio`, `group_by`,
        `data_seed` and `on_bad_image` as in its recipe; `split`, the split it was measured on; `answers` in the order
        of their classes, `answer_rule` and `normalize_answers`; `majority_answer`, the one answer that scores most on
        the training rows; `training_images`, the sorted digests of the images it was trained on
        (`data.image_digests`), or None for a stream; `abstain_answer` as in its recipe; and `blank_images`, whether it
        was shown a gray picture in the place of every image (missing in runs of earlier releases).

    Raises:
        ValueError: the file is not one that a training wrote.
    """
    file = Path(folder_of_run(checkpoint)) / RUN
    if not file.is_file():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        missing = sorted(RUN_KEYS - run.keys())
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: not the run.json of a training: {error}") from error
    if missing:
        raise ValueError(f"{file}: not the run.json of a training: it has no `{missing[0]}`")
    return {"abstain_answer": None} | run
