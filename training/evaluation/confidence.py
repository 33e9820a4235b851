"""How sure a checkpoint is of its answers to the rows of a data set."""

import json
from pathlib import Path

import datasets
import torch

from ..data.collator import QuestionCollator
from ..files.run_files import write_json
from .checkpoint import load_checkpoint, load_processor
from .evaluation_data import shown_rows
from .predictions import predict, sort_by_image


def question_confidence(checkpoint: str, rows: datasets.Dataset, file: Path) -> list[float]:
    """
    The probability of the best answer to each row.

    Args:
        checkpoint: folder or Hub id.
        rows: images not decoded.
        file: remembers the result, so that the same checkpoint does not answer the same questions again.

    Raises:
        ValueError: see `checkpoint.load_checkpoint`, or a question is too long.
    """
    weights = sorted(path.stat().st_mtime_ns for path in Path(checkpoint).glob("*.safetensors"))
    source = {"checkpoint": checkpoint, "weights": weights}
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if any(known.get(name) != value for name, value in source.items()):
        known = {**source, "confidence": {}}
    confidence: dict[str, float] = known["confidence"]
    missing = [index for index, name in enumerate(rows["question_id"]) if name not in confidence]
    if missing:
        asked = sort_by_image(rows.select(missing))
        confidence |= zip(asked["question_id"], _answer(checkpoint, asked), strict=True)
        write_json(file, known)
    return [confidence[name] for name in rows["question_id"]]


def _answer(checkpoint: str, rows: datasets.Dataset) -> list[float]:
    model, processor = load_checkpoint(checkpoint), load_processor(checkpoint)
    processor.set_max_question_length(model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    collator = QuestionCollator(processor, model.config)
    shown = shown_rows(checkpoint, rows)
    return predict(model.to(device), shown, collator, description="Asking the model")["confidence"]  # type: ignore[arg-type]
