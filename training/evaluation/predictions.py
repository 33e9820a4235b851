"""The answers and relevance maps of a model for rows of questions."""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering
from modeling_qca.confidence_qca import answer_probabilities

from ..data.collator import QuestionCollator
from ..files.progress import track

BATCH_SIZE = 128  # questions


def sort_by_image(rows: datasets.Dataset) -> datasets.Dataset:
    """`rows` in the order of their `image_id`: [`predict`] then encodes an image in one batch, not in several."""
    image_ids = rows["image_id"][:]
    return rows.select(sorted(range(len(image_ids)), key=image_ids.__getitem__))


@torch.no_grad()
def forward_batches(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    batch_size: int = BATCH_SIZE,
    description: str = "Answering",
) -> Iterator[Any]:
    """The outputs of `model` in evaluation mode for each batch of `rows` (images not decoded), in order."""
    was_training = model.training
    model.eval()
    loader = DataLoader(rows, batch_size, collate_fn=collator.inputs)
    try:
        for batch in track(loader, description, total=len(loader)):
            inputs = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
            yield model(**inputs)
    finally:
        model.train(was_training)


def predict(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    batch_size: int = BATCH_SIZE,
    description: str = "Answering",
) -> dict[str, list[Any]]:
    """
    Answer every row of `rows` (images not decoded), in order.

    Returns:
        Columns `answer`, `confidence` and `relevance`: `[T, rows, columns]` float32, the mean over heads.
    """
    columns: dict[str, list[Any]] = {"answer": [], "confidence": [], "relevance": []}
    for outputs in forward_batches(model, rows, collator, batch_size, description):
        best = answer_probabilities(outputs.logits, model.config).max(dim=-1)
        columns["answer"] += [model.config.id2label[index] for index in best.indices.tolist()]
        columns["confidence"] += best.values.tolist()
        columns["relevance"] += [grid.float().cpu().numpy() for grid in _maps(outputs, collator, model.config)]
    return columns


def _maps(outputs: Any, collator: QuestionCollator, config: QCAConfig) -> list[torch.Tensor]:
    """`[T, rows, columns]` of each question, on one grid: maps on grids of their own are resized to that of the
    encoder's own images, and their mass is kept."""
    maps = collator.processor.post_process_relevance(outputs)
    if not config.has_native_shapes:
        return maps
    resized = [interpolate(one[None], size=config.image_grid, mode="bilinear")[0] for one in maps]
    return [one / one.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-12) for one in resized]


@torch.no_grad()
def milliseconds_per_question(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    batch_size: int = 8,
    rounds: int = 3,
) -> float:
    """Median time of one forward pass, divided by the questions of its batch.

    The rows of the batch are spread over `rows`. Each question has an image of its own, because the vision encoder
    would run only once for questions that share an image.
    """
    spread = range(0, len(rows), max(1, len(rows) // batch_size))[:batch_size]
    fresh = {"image_features": None, "text_features": None}
    batch = dataclasses.replace(collator, **fresh, attention_supervision="none", with_question_ids=False)(
        [rows[index] | {"image_id": str(index)} for index in spread]
    )
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    was_training = model.training
    model.eval()
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        model(**inputs).logits.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    model.train(was_training)
    return 1000 * statistics.median(seconds[1:]) / len(spread)
