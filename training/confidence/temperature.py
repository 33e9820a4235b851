"""The temperature at which a model's probabilities fit held-out questions (Guo et al. 2017)."""

import logging

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp

logger = logging.getLogger(__name__)
BOUNDS = (0.05, 20.0)
EPSILON = 1e-7


def best_probability(logits: np.ndarray, temperature: float, several: bool) -> np.ndarray:
    """The probability `[n]` of the best answer, from `logits` `[n, C]`.

    Args:
        several: sigmoid for each answer, in place of softmax.
    """
    best = logits.max(axis=1, keepdims=True)
    if several:
        return expit(best[:, 0] / temperature)
    return np.exp(-logsumexp((logits - best) / temperature, axis=1))


def fit_temperature(logits: np.ndarray, score: np.ndarray, several: bool = False) -> float:
    """
    The temperature of least log loss of "the best answer is right", in `BOUNDS`.

    Guo et al. take the log loss of the right answer's class. That leaves out questions whose answer is not a class of
    the model. Here such a question counts as answered wrong, and partly right answers (scores between 0 and 1) count
    as such.

    Args:
        logits: `[n, C]`.
        score: `[n]` accuracy of the best answer, in [0, 1].
        several: see [`best_probability`].
    """
    logits, score = np.asarray(logits, dtype=np.float64), np.asarray(score, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        sure = np.clip(best_probability(logits, float(np.exp(log_temperature)), several), EPSILON, 1 - EPSILON)
        return -float(np.mean(score * np.log(sure) + (1 - score) * np.log1p(-sure)))

    low, high = np.log(BOUNDS)
    found = float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4}).x))
    if not BOUNDS[0] * 1.01 < found < BOUNDS[1] / 1.01:
        logger.warning("the temperature %.3g is at its limit: one temperature cannot calibrate these answers", found)
    return found
