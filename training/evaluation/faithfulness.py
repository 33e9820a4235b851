"""Faithfulness of relevance: how the answer's probability changes when patches are removed by relevance.

B questions, I images, N patches, F fractions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from modeling_qca import QCAForVisualQuestionAnswering, QCAModel, QCAProcessor
from modeling_qca.confidence_qca import answer_probabilities
from modeling_qca.evaluation_copy_qca import evaluation_copy

from ..data.image_features import check_one_grid
from ..data.images import read_image
from ..files.progress import track
from ..files.run_files import FAITHFULNESS, write_json

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
CURVES = ("deletion", "insertion")
ORDERS = ("positive", "negative")
Curve = dict[str, list[float]]


def faithfulness_curves(
    model: QCAForVisualQuestionAnswering,
    processor: QCAProcessor,
    rows: datasets.Dataset,
    method: str = "relevance",
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Deletion and insertion curves (Samek et al. 2017; Petsiuk et al. 2018) of the answer to the whole image.

    A removed patch gets the mean color of the image. `deletion` starts from the whole image and removes patches.
    `insertion` starts from no patch and restores them. The order `positive` begins with the most relevant patch,
    `negative` with the least relevant. Faithful relevance has a small area under `deletion.positive` and a large one
    under `insertion.positive`. The controls are a random order and the vision encoder's CLS attention.

    Args:
        rows: in the row schema; every question is asked about 46 or 68 altered images.
        method: of `explain`. Its maps are averaged over hops and heads, because the answer head reads every hop.
        seed: of the random order, and of the order of equally relevant patches.

    Returns:
        `fractions`; `curves[source][curve][order]` with `probability`, the mean at each fraction, and `agreement`,
        the share of questions whose best answer is still the same; `auc`, the area under each of these; and
        `questions`, `images`, `method`, `seed`. `source` is the method, `random` or, for an encoder with a CLS token,
        `cls_attention`.
    """
    check_one_grid(model.config, "Faithfulness")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, dict[tuple[str, float], np.ndarray]] = {}
    was_training = model.training
    model.eval()
    for start in track(range(0, len(rows), batch_size), "Removing patches"):
        batch = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
        for source, measured in _measure(model, processor, batch, method, generator).items():
            sums = totals.setdefault(source, {})
            for key, values in measured.items():
                sums[key] = sums.get(key, 0) + values
    model.train(was_training)
    curves = {source: _curves(sums, len(rows)) for source, sums in totals.items()}
    return {
        "method": method,
        "seed": seed,
        "questions": len(rows),
        "images": len(set(rows["image_id"])),
        "fractions": list(FRACTIONS),
        "curves": curves,
        "auc": {source: _areas(curve) for source, curve in curves.items()},
    }


def measure_faithfulness(
    model: QCAForVisualQuestionAnswering,
    processor: QCAProcessor,
    rows: datasets.Dataset,
    output_dir: Path,
    questions: int,
    method: str = "relevance",
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """[`faithfulness_curves`] of at most `questions` random rows, written to `faithfulness.json` and
    `faithfulness.png` in `output_dir`."""
    from .figures import faithfulness_figure, write_figure

    rows = rows.shuffle(seed=seed).select(range(min(questions, len(rows))))
    results = faithfulness_curves(model, processor, rows, method, batch_size, seed)
    output_dir.mkdir(parents=True, exist_ok=True)
    numbers, figure = (output_dir / name for name in FAITHFULNESS)
    write_json(numbers, results)
    write_figure(faithfulness_figure(results), figure)
    return results


def remove_patches(pixel_values: torch.Tensor, removed: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """
    Args:
        pixel_values: `[B, 3, h, w]`.
        removed: `[B, N]` boolean.
        patch_size: (height, width) in pixels.

    Returns:
        `[B, 3, h, w]`, in which removed patches have the mean color of their image.
    """
    height, width = patch_size
    mask = removed.unflatten(-1, (pixel_values.shape[-2] // height, pixel_values.shape[-1] // width))
    mask = mask.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    whole = torch.zeros_like(pixel_values[:, :1], dtype=torch.bool)
    whole[..., : mask.shape[1], : mask.shape[2]] = mask[:, None]
    return torch.where(whole, pixel_values.mean(dim=(2, 3), keepdim=True), pixel_values)


def ranks(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rank of each patch of `scores` `[B, N]`, 0 for the highest; equal scores are ranked at random."""
    shuffled = torch.rand(scores.shape, generator=generator).argsort(dim=-1).to(scores.device)
    order = shuffled.gather(1, scores.gather(1, shuffled).argsort(dim=-1, descending=True, stable=True))
    return order.argsort(dim=-1)


@torch.no_grad()
def cls_attention(body: QCAModel, pixel_values: torch.Tensor) -> torch.Tensor | None:
    """The attention of the CLS token in the vision encoder's last layer, which no question reaches.

    Returns:
        `[I, N]`, the mean over heads; `None` for an encoder without a CLS token.
    """
    if body.vision_encoder.shape.prefix == 0:
        return None
    encoder = evaluation_copy(body, eager_attention=True).vision_encoder
    outputs = encoder.backbone(
        pixel_values=pixel_values, output_attentions=True, **encoder._interpolation(*pixel_values.shape[-2:])
    )
    rows, columns = encoder.grid(*pixel_values.shape[-2:])
    prefix = encoder.shape.prefix
    if not outputs.get("attentions") or outputs.attentions[-1].shape[-1] != prefix + rows * columns:
        return None
    return outputs.attentions[-1].mean(dim=1)[:, 0, prefix:]


def _measure(
    model: QCAForVisualQuestionAnswering,
    processor: QCAProcessor,
    batch: list[dict[str, Any]],
    method: str,
    generator: torch.Generator,
) -> dict[str, dict[tuple[str, float], np.ndarray]]:
    """For each source and each (order, removed fraction): sums over questions of probability and agreement."""
    images = {row["image_id"]: row for row in batch}
    index = [list(images).index(row["image_id"]) for row in batch]
    pictures = [read_image(row) for row in images.values()]
    inputs = processor(images=pictures, text=[row["question"] for row in batch], image_index=index).to(model.device)
    explanation = model.explain(inputs, method)
    scores = {method: explanation.relevance.mean(dim=(1, 2))}
    scores["random"] = torch.rand(scores[method].shape, generator=generator).to(model.device)
    attention = cls_attention(model.qca, inputs["pixel_values"])
    if attention is not None:
        scores["cls_attention"] = attention[index]
    pixel_values = inputs["pixel_values"][index]
    inputs["image_index"] = torch.arange(len(batch), device=model.device)
    answers = explanation.logits.argmax(dim=-1)

    def ask(removed: torch.Tensor) -> np.ndarray:
        inputs["pixel_values"] = remove_patches(pixel_values, removed, model.config.patch_size)
        return _answered(model, dict(inputs), answers)

    nothing = torch.zeros_like(scores[method], dtype=torch.bool)
    ends = {0.0: ask(nothing), 1.0: ask(~nothing)}
    return {source: _by_fraction(ranks(values, generator), ask, ends) for source, values in scores.items()}


def _by_fraction(
    rank: torch.Tensor, ask: Callable[[torch.Tensor], np.ndarray], ends: dict[float, np.ndarray]
) -> dict[tuple[str, float], np.ndarray]:
    measured = {(order, fraction): values for order in ORDERS for fraction, values in ends.items()}
    inner = {round(share, 2) for fraction in FRACTIONS for share in (fraction, 1 - fraction)} - ends.keys()
    for fraction in sorted(inner):
        count = round(fraction * rank.shape[1])
        measured["positive", fraction] = ask(rank < count)
        measured["negative", fraction] = ask(rank >= rank.shape[1] - count)
    return measured


@torch.no_grad()
def _answered(model: QCAForVisualQuestionAnswering, inputs: dict[str, Any], answers: torch.Tensor) -> np.ndarray:
    logits = model(**inputs).logits
    probabilities = answer_probabilities(logits, model.config)
    given = probabilities.gather(1, answers[:, None])
    return np.array([float(given.sum()), float((logits.argmax(dim=-1) == answers).sum())])


def _curves(sums: dict[tuple[str, float], np.ndarray], questions: int) -> dict[str, dict[str, Curve]]:
    def curve(order: str, fractions: list[float]) -> Curve:
        means = np.stack([sums[order, round(fraction, 2)] for fraction in fractions], axis=1) / questions
        probability, agreement = means
        return {"probability": probability.tolist(), "agreement": agreement.tolist()}

    # restoring the most relevant 30 % equals removing the least relevant 70 %
    opposite = {"positive": "negative", "negative": "positive"}
    return {
        "deletion": {order: curve(order, list(FRACTIONS)) for order in ORDERS},
        "insertion": {order: curve(opposite[order], [1 - fraction for fraction in FRACTIONS]) for order in ORDERS},
    }


def _areas(curves: dict[str, dict[str, Curve]]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {
            order: {measure: _area(values) for measure, values in curve.items()} for order, curve in by_order.items()
        }
        for name, by_order in curves.items()
    }


def _area(values: list[float]) -> float:
    return float(torch.trapezoid(torch.tensor(values, dtype=torch.float64), torch.tensor(FRACTIONS)))
