"""How well relevance maps agree with where one should look, as an `evaluate` metric.

Shapes: `n` maps of `rows` x `columns` cells, flattened to [n, N]. The measures are those of Bylinskii et al., "What do
different evaluation metrics tell us about saliency models?" (TPAMI 2019), with the cells of the target in place of
fixations: a cell is `inside` when its target is at least half of the map's largest target.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.stats import rankdata

Maps = NDArray[np.float64]

_DESCRIPTION = """\
Agreement of predicted relevance maps with target maps: IoU at equal area, Spearman, pointing game, NSS, AUC-Judd, CC,
KL, SIM and the energy inside the target, beside the same measures for a center, a uniform and a shuffled map.
"""
_CITATION = """\
@article{bylinskii2019saliency,
  title={What Do Different Evaluation Metrics Tell Us About Saliency Models?},
  author={Bylinskii, Zoya and Judd, Tilke and Oliva, Aude and Torralba, Antonio and Durand, Fr{\\'e}do},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2019}
}
"""
_INPUTS = """\
Args:
    predictions: relevance maps [n][rows][columns], not negative.
    references: target maps of the same shape, not negative, each with a cell above zero.
    groups: per map the image it belongs to. The shuffled baseline then gives each question the map of another question
        about the same image; images with one map are left out of it. Without groups it gives the map of any other row.
    seed: of the shuffled baseline.
Returns:
    the mean of each measure, the same under `center`, `uniform` and `shuffled` (None where nothing can be shuffled),
    and the number of maps, `maps` and `shuffled_maps`.
"""


def attention_quality(predictions: ArrayLike, references: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """The measures of each of n predicted maps against its target, name -> [n].

    Args:
        predictions, references: [n, rows, columns], not negative; scale does not matter.

    Raises:
        ValueError: shapes differ, a value is negative or not finite, or a target has no cell above zero.
    """
    predicted, target = _flatten(predictions, "predictions"), _flatten(references, "references")
    if np.shape(predictions) != np.shape(references):
        raise ValueError(
            f"predictions are {np.shape(predictions)} but references {np.shape(references)}: resize first"
        )
    if not target.max(axis=1, initial=0).all():
        raise ValueError(f"reference map {int((target.max(axis=1) > 0).argmin())} is all zero: leave such rows out")
    inside = target >= 0.5 * target.max(axis=1, keepdims=True)
    return {
        "iou": _iou_at_equal_area(predicted, inside),
        "spearman": _correlation(rankdata(predicted, axis=1), rankdata(target, axis=1)),
        "pointing": _pointing(predicted, inside),
        "nss": _nss(predicted, inside),
        "auc_judd": np.array([_auc_judd(*pair) for pair in zip(predicted, inside, strict=True)]),
        "cc": _correlation(predicted, target),
        "kl": _kl(_distribution(target), _distribution(predicted)),
        "sim": np.minimum(_distribution(predicted), _distribution(target)).sum(axis=1),
        "energy": (_distribution(predicted) * inside).sum(axis=1),
    }


def center_maps(count: int, rows: int, columns: int) -> Maps:
    """[count, rows, columns] of a Gaussian at the center, its deviation a quarter of each side."""
    side = [np.exp(-0.5 * ((np.arange(size) + 0.5 - size / 2) / (size / 4)) ** 2) for size in (rows, columns)]
    return np.broadcast_to(np.outer(*side), (count, rows, columns)).copy()


def uniform_maps(count: int, rows: int, columns: int) -> Maps:
    """[count, rows, columns] of equal cells."""
    return np.ones((count, rows, columns))


def shuffled_rows(groups: Sequence[Any], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (row, other row of the same group), each row of a group of two or more once on either side.

    Returns:
        `rows` and `others`, two index arrays: compare the prediction of `others[i]` with the target of `rows[i]`.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    generator = np.random.default_rng(seed)
    cycles = [generator.permutation(group) for group in members.values() if len(group) > 1]
    if not cycles:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(cycles), np.concatenate([np.roll(cycle, 1) for cycle in cycles])


class AttentionQuality(evaluate.Metric):
    """Means of `attention_quality` over a data set, beside three baselines."""

    def _info(self) -> evaluate.MetricInfo:
        relevance = datasets.List(datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": relevance, "references": relevance}),
            reference_urls=["https://arxiv.org/abs/1604.03605"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[Sequence[float]]],
        references: Sequence[Sequence[Sequence[float]]],
        groups: Sequence[Any] | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        predicted, target = _array(predictions, "predictions"), _array(references, "references")
        if groups is not None and len(groups) != len(target):
            raise ValueError(f"{len(groups)} groups for {len(target)} maps")
        rows, others = shuffled_rows([0] * len(target) if groups is None else groups, seed)
        return {
            **_means(predicted, target),
            "center": _means(center_maps(*target.shape), target),
            "uniform": _means(uniform_maps(*target.shape), target),
            "shuffled": _means(predicted[others], target[rows]) if len(rows) else None,
            "maps": len(target),
            "shuffled_maps": len(rows),
        }


def _means(predictions: Maps, references: Maps) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in attention_quality(predictions, references).items()}


def _array(maps: ArrayLike, name: str) -> Maps:
    try:
        array = np.asarray(maps, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{name} must be maps of one size: resize them to one grid first") from error
    if array.ndim != 3 or not array.size:
        raise ValueError(f"{name} must be [n, rows, columns] with n >= 1, not {array.shape}")
    return array


def _flatten(maps: ArrayLike, name: str) -> Maps:
    """[n, rows, columns] -> [n, N], checked."""
    array = _array(maps, name)
    flat = array.reshape(len(array), -1)
    wrong = ~(np.isfinite(flat) & (flat >= 0)).all(axis=1)
    if wrong.any():
        raise ValueError(f"{name} {int(wrong.argmax())} holds a value that is negative or not finite")
    return flat


def _distribution(maps: Maps) -> Maps:
    """Each map scaled to sum 1; a map of zeros says nothing and becomes uniform."""
    total = maps.sum(axis=1, keepdims=True)
    return np.where(total > 0, maps / np.where(total > 0, total, 1), 1 / maps.shape[1])


def _iou_at_equal_area(predicted: Maps, inside: NDArray[np.bool_]) -> Maps:
    """Intersection over union of the target with as many of the highest predicted cells.

    Cells that tie for the last places share them, so that a flat map does not gain from the order of the cells.
    """
    area = inside.sum(axis=1, keepdims=True)
    last = np.take_along_axis(-np.sort(-predicted, axis=1), area - 1, axis=1)
    above, tied = predicted > last, predicted == last
    share = (area - above.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)
    intersection = ((above + share * tied) * inside).sum(axis=1)
    return intersection / (2 * area[:, 0] - intersection)


def _pointing(predicted: Maps, inside: NDArray[np.bool_]) -> Maps:
    """Share of the highest cells (one, unless they tie) that lie inside the target (Zhang et al., IJCV 2018)."""
    highest = predicted == predicted.max(axis=1, keepdims=True)
    return (highest & inside).sum(axis=1) / highest.sum(axis=1)


def _standardized(maps: Maps) -> Maps:
    """Zero mean and unit deviation over the cells; zeros for a flat map."""
    centered = maps - maps.mean(axis=1, keepdims=True)
    deviation = centered.std(axis=1, keepdims=True)
    flat = np.ptp(maps, axis=1, keepdims=True) == 0
    return np.where(flat, 0, centered / np.where(flat, 1, deviation))


def _correlation(first: Maps, second: Maps) -> Maps:
    """Pearson's correlation over the cells; 0 where a map is flat."""
    return (_standardized(first) * _standardized(second)).mean(axis=1)


def _nss(predicted: Maps, inside: NDArray[np.bool_]) -> Maps:
    """Mean standardized prediction inside the target."""
    return (_standardized(predicted) * inside).sum(axis=1) / inside.sum(axis=1)


def _auc_judd(predicted: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    """Area under the curve of hits over false alarms, thresholds at the values inside the target; [N] -> a number.

    0.5 where the target covers every cell.
    """
    if inside.all():
        return 0.5
    thresholds = np.unique(predicted[inside])[::-1]
    hits, alarms = (
        1 - np.searchsorted(np.sort(cells), thresholds, side="left") / len(cells)
        for cells in (predicted[inside], predicted[~inside])
    )
    return float(trapezoid([0, *hits, 1], [0, *alarms, 1]))


def _kl(target: Maps, predicted: Maps) -> Maps:
    """Kullback-Leibler divergence of prediction from target, in nats, with the epsilon of the benchmark code."""
    epsilon = np.finfo(np.float64).eps
    return (target * np.log(epsilon + target / (predicted + epsilon))).sum(axis=1)
