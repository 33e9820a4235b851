"""Expected calibration error: how far probabilities are from the share of right answers.

n questions, S bins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bootstrap import bootstrap_interval, cluster_sums

BINS = 15
DRAWS = 200  # of answers of a calibrated model


def calibration_error(confidence: np.ndarray, score: np.ndarray) -> float:
    """Expected calibration error in 15 bins of equal width (Naeini et al. 2015; Guo et al. 2017).

    Args:
        confidence: `[n]` probability of the best answer.
        score: `[n]` its accuracy in [0, 1].
    """
    return float(_error(_bin_values(confidence, score).sum(axis=0)[None])[0])


def calibration_table(
    confidence: np.ndarray, score: np.ndarray, image_ids: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """
    Args:
        confidence, score: see [`calibration_error`].
        image_ids: `[n]`.
        seed: of the resamples.

    Returns:
        `ece`; `ece_interval`, its 95 % interval, resampled by image; `ece_if_calibrated`, the mean error of answers
        drawn with the stated probabilities: so few questions cannot show a smaller one; `confidence`, the mean; and
        `bins`: `questions`, `confidence` and `accuracy` of each bin that has questions.
    """
    values = _bin_values(confidence, score)
    totals = values.sum(axis=0).reshape(3, BINS)
    generator = np.random.default_rng(seed)
    drawn = [generator.random(len(confidence)) < confidence for _ in range(DRAWS)]
    return {
        "ece": float(_error(totals.reshape(1, -1))[0]),
        "ece_interval": list(bootstrap_interval(cluster_sums(values, image_ids), _error, seed)),
        "ece_if_calibrated": float(np.mean([calibration_error(confidence, right) for right in drawn])),
        "confidence": float(np.mean(confidence)),
        "bins": [
            {"questions": int(count), "confidence": float(sure / count), "accuracy": float(right / count)}
            for count, sure, right in totals.T
            if count
        ],
    }


def _bin_values(confidence: np.ndarray, score: np.ndarray) -> np.ndarray:
    """`[n, 3 S]`: in the column of its bin, each question's count, confidence and score. A bin is (i/15, (i+1)/15]."""
    bins = np.clip(np.ceil(np.asarray(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    values = np.zeros((len(bins), 3, BINS))
    values[np.arange(len(bins)), :, bins] = np.stack([np.ones(len(bins)), confidence, score], axis=1)
    return values.reshape(len(bins), -1)


def _error(totals: np.ndarray) -> np.ndarray:
    """`[R, 3 S]` -> `[R]`."""
    count, confidence, score = np.moveaxis(totals.reshape(len(totals), 3, BINS), 1, 0)
    return np.abs(confidence - score).sum(axis=1) / count.sum(axis=1)
