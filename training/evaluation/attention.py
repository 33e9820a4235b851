"""The quality of relevance maps against target regions, beside control maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from ..metrics.attention_quality.attention_quality import attention_quality, center_maps, shuffled_rows, uniform_maps

ATTENTION_MEASURES = ("pointing", "energy", "iou", "spearman", "nss", "auc_judd", "cc", "kl", "sim")


def attention_table(
    maps: Sequence[np.ndarray], rows: datasets.Dataset, shuffled: Mapping[int, np.ndarray]
) -> dict[str, dict[str, float]]:
    """
    The quality of the last hop's maps on the rows that have a target region, beside control maps.

    Args:
        maps: `[T, rows, columns]` of each row.
        shuffled: row index -> the maps of another question about the same image, where there is one.

    Returns:
        For each measure of `attention_quality` its mean under `model`, `center`, `uniform` and, unless `shuffled` is
        empty, `shuffled_question`; `maps` says how many maps each mean is over. Empty if no row has a target region
        or the model has no hop.
    """
    chosen = _with_target(rows)
    if not chosen or not len(maps[0]):
        return {}
    grid = maps[0].shape[1:]
    targets = np.stack([_resized(rows[index]["relevance"][-1], grid) for index in chosen])
    measured = {
        "model": np.stack([maps[index][-1] for index in chosen]),
        "center": center_maps(len(chosen), *grid),
        "uniform": uniform_maps(len(chosen), *grid),
    }
    scores = {name: attention_quality(values, targets) for name, values in measured.items()}
    places = [place for place, index in enumerate(chosen) if index in shuffled]
    if places:
        other = np.stack([shuffled[chosen[place]][-1] for place in places])
        scores["shuffled_question"] = attention_quality(other, targets[places])
    counts: dict[str, float] = {name: len(values[ATTENTION_MEASURES[0]]) for name, values in scores.items()}
    return {"maps": counts} | {
        measure: {name: float(values[measure].mean()) for name, values in scores.items()}
        for measure in ATTENTION_MEASURES
    }


def shuffle_questions(rows: datasets.Dataset, seed: int) -> tuple[datasets.Dataset, list[int]]:
    """The rows whose image has several questions, each with another question about its image; and their indices."""
    targets, sources = shuffled_rows(rows["image_id"], seed)
    other = dict(zip(targets.tolist(), sources.tolist(), strict=True))
    indices, questions = sorted(other), rows["question"][:]
    shuffled = rows.select(indices).remove_columns("question")
    return shuffled.add_column("question", [questions[other[index]] for index in indices]), indices


def pointing_hits(maps: Sequence[np.ndarray], rows: datasets.Dataset) -> dict[int, float]:
    """The pointing accuracy of the last hop's map of each row that has a target region, by the index of the row.

    Args:
        maps: `[T, rows, columns]` of each row.
    """
    chosen = _with_target(rows) if len(maps[0]) else []
    if not chosen:
        return {}
    targets = np.stack([_resized(rows[index]["relevance"][-1], maps[0].shape[1:]) for index in chosen])
    hits = attention_quality(np.stack([maps[index][-1] for index in chosen]), targets)["pointing"]
    return dict(zip(chosen, hits.tolist(), strict=True))


def _with_target(rows: datasets.Dataset) -> list[int]:
    return [index for index, target in enumerate(rows["relevance"]) if target is not None and np.any(target[-1:])]


def _resized(target: Any, grid: tuple[int, int]) -> np.ndarray:
    values = torch.as_tensor(np.asarray(target, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(values, size=tuple(grid), mode="area")[0, 0].numpy()
