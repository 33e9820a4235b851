"""How many answers of a checkpoint an exported program changes, on questions of the checkpoint's own data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_qca import QCAProcessor
from modeling_qca.training.data.images import read_image
from modeling_qca.training.evaluation.evaluation_data import EvaluationData

PAIRS, AT_ONCE = 200, 8


@dataclass(frozen=True)
class AnswerChanges:
    """
    Args:
        changed, answers: how many answers differ, of how many.
        data: where the images come from.
    """

    changed: int
    answers: int
    data: str


def count_answer_changes(
    model: Callable[..., Any],
    program: Callable[..., Any],
    processor: QCAProcessor,
    chosen: EvaluationData,
    ask_rows: bool,
    seed: int = 0,
) -> AnswerChanges:
    """
    Compare the best answers to up to `PAIRS` random rows.

    Args:
        model, program: take the processor's inputs.
        ask_rows: ask the question of each row; otherwise pass its image alone.

    Raises:
        ValueError: see `EvaluationData.rows`.
    """
    changed = answers = 0
    for inputs in _inputs(processor, chosen, ask_rows, seed):
        with torch.inference_mode():
            expected = model(**inputs).logits.argmax(dim=-1)
            found = program(**inputs).logits.argmax(dim=-1)
        changed, answers = changed + int((found != expected).sum()), answers + expected.numel()
    return AnswerChanges(changed, answers, f"{chosen.name}, {chosen.split_name}")


def _inputs(processor: QCAProcessor, chosen: EvaluationData, ask_rows: bool, seed: int) -> Iterator[dict[str, Any]]:
    rows = chosen.rows()
    places = np.random.default_rng(seed).permutation(len(rows))[:PAIRS].tolist()
    for start in range(0, len(places), AT_ONCE):
        part = [rows[place] for place in places[start : start + AT_ONCE]]
        images = [read_image(row) for row in part]
        if ask_rows:
            yield {**processor(images, [row["question"] for row in part]), "image_index": torch.arange(len(part))}
        else:
            yield {**processor(images)}
