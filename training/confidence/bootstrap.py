"""Intervals by resampling images, each with all of its questions: answers about one image are not independent."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
DRAWS_AT_ONCE = 10_000_000  # entries of the table of resampled counts


def cluster_sums(values: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """The sums of `values` `[n, K]` over the rows of each cluster: `[clusters, K]`."""
    _, which = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((which.max() + 1, values.shape[1]))
    np.add.at(sums, which, values)
    return sums


def resampled_totals(sums: np.ndarray, seed: int = 0) -> np.ndarray:
    """Column totals `[RESAMPLES, K]` of clusters that are drawn with replacement from `sums` `[clusters, K]`."""
    count, generator = len(sums), np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // count)
    parts = []
    for start in range(0, RESAMPLES, step):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(step, RESAMPLES - start))
        parts.append(drawn @ sums)
    return np.concatenate(parts)


def bootstrap_interval(
    sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """
    The 95 % percentile interval of a statistic (cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Args:
        sums: `[clusters, K]`, of [`cluster_sums`].
        statistic: `[R, K]` totals -> `[R]` values.
    """
    values = statistic(resampled_totals(sums, seed))
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
