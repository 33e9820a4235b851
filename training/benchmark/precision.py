"""The share of answers that a trained checkpoint keeps in lower precision."""

from typing import Any

import datasets
import numpy as np
import torch

from ..data.collator import QuestionCollator
from ..evaluation.checkpoint import load_checkpoint, load_processor
from ..evaluation.predictions import predict

PAIRS = 500


def answer_agreement(
    checkpoint: str,
    rows: datasets.Dataset,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    pairs: int = PAIRS,
    seed: int = 0,
) -> dict[str, float]:
    """
    Answer random rows of `rows` (images not decoded) in float32 and in `dtype`.

    Args:
        checkpoint: folder or Hub id of a trained model and its processor.
        rows: the questions; at least `pairs`.

    Returns:
        `pairs`, and `agreement`: the share of pairs whose best answer is the same.

    Raises:
        ValueError: there are fewer rows than `pairs`.
    """
    if len(rows) < pairs:
        raise ValueError(f"{pairs} pairs are compared, but there are only {len(rows)} rows")
    chosen = np.random.default_rng(seed).choice(len(rows), size=pairs, replace=False)
    rows = rows.select(sorted(chosen.tolist()))
    model: Any = load_checkpoint(checkpoint)
    collator = QuestionCollator(load_processor(checkpoint), model.config)
    exact = predict(model.to(device).float(), rows, collator)["answer"]
    rounded = predict(model.to(dtype), rows, collator)["answer"]
    return {"pairs": pairs, "agreement": float(np.mean([a == b for a, b in zip(exact, rounded, strict=True)]))}
