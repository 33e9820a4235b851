"""Questions unlike any trained on: how far a question's embedding is from those of the training questions.

n questions, M training questions, E width of the text encoder.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..files.atomic_write import atomic_write

SHRINKAGE = 0.01  # share of the covariance that is the same in every direction
FALSE_ALARMS = 0.05  # share of the held-out questions that the threshold flags
SMALLEST_VARIANCE = 1e-6  # of the training questions in any direction; float32 rounds unit vectors by 1e-7


@dataclass(frozen=True)
class QuestionFamiliarity:
    """
    Args:
        mean: `[E]` of the training questions' embeddings, each scaled to length 1.
        whitening: `[E, E]`; a difference times it has the Mahalanobis distance as its length.
        threshold: the largest distance of a question that is like those trained on.
    """

    mean: np.ndarray
    whitening: np.ndarray
    threshold: float

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """`[n, E]` -> `[n]`: Mahalanobis distances from the training questions (Lee et al. 2018)."""
        return np.linalg.norm((unit_vectors(embeddings) - self.mean) @ self.whitening, axis=1)

    def write(self, file: Path) -> None:
        with atomic_write(file) as unfinished:
            values = {"mean": self.mean, "whitening": self.whitening}
            save_file(values, unfinished, {"threshold": repr(self.threshold)})

    @classmethod
    def read(cls, file: Path) -> "QuestionFamiliarity":
        """
        Raises:
            ValueError: `file` is not what [`write`] wrote.
        """
        try:
            with safe_open(file, "numpy") as stored:
                values = stored.get_tensor("mean"), stored.get_tensor("whitening")
                return cls(*values, float(stored.metadata()["threshold"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: not the questions that `qca calibrate` stores: {error}") from error


def fit_familiarity(trained: np.ndarray, held_out: np.ndarray) -> QuestionFamiliarity:
    """
    Args:
        trained: `[M, E]` embeddings of the distinct training questions.
        held_out: `[n, E]` embeddings of held-out questions. The threshold flags 5 % of them.
    """
    units = unit_vectors(trained).astype(np.float64)
    mean = units.mean(axis=0)
    covariance = (units - mean).T @ (units - mean) / len(units)
    width = len(mean)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / width * np.eye(width)
    variances, directions = np.linalg.eigh(covariance)
    whitening = directions / np.sqrt(np.maximum(variances, SMALLEST_VARIANCE))
    found = QuestionFamiliarity(mean.astype(np.float32), np.ascontiguousarray(whitening, np.float32), 0.0)
    threshold = float(np.quantile(found.distances(held_out), 1 - FALSE_ALARMS))
    return QuestionFamiliarity(found.mean, found.whitening, threshold)


def unit_vectors(values: np.ndarray) -> np.ndarray:
    """`[n, E]` float32 vectors of length 1."""
    values = np.asarray(values, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
