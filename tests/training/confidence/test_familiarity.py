"""Distances of questions from those trained on, against SciPy."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from modeling_qca.training.confidence.familiarity import QuestionFamiliarity, fit_familiarity


def embeddings(count, seed, shift=0.0, width=8):
    return np.random.default_rng(seed).normal(size=(count, width)) + 2 + shift * np.eye(width)[0]


def test_distances_equal_those_of_scipy():
    trained, asked = embeddings(400, 0), embeddings(5, 1)
    units, unit = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (trained, asked))
    covariance = np.cov(units.T, bias=True)
    covariance = 0.99 * covariance + 0.01 * np.trace(covariance) / 8 * np.eye(8)
    expected = [mahalanobis(one, units.mean(axis=0), np.linalg.inv(covariance)) for one in unit]
    assert fit_familiarity(trained, asked).distances(asked) == pytest.approx(expected, rel=1e-4)


def test_threshold_flags_one_in_twenty_questions_like_those_trained_on_and_all_others():
    familiarity = fit_familiarity(embeddings(2000, 0), embeddings(2000, 1))
    usual, foreign = (familiarity.distances(embeddings(2000, 2, shift)) for shift in (0, -30))
    assert (usual > familiarity.threshold).mean() == pytest.approx(0.05, abs=0.02)
    assert (foreign > familiarity.threshold).all()


@pytest.mark.parametrize("count", [1, 3])
def test_few_training_questions_give_finite_distances(count):
    familiarity = fit_familiarity(embeddings(count, 0), embeddings(4, 1))
    assert np.isfinite(familiarity.distances(embeddings(4, 2))).all()
    assert familiarity.distances(embeddings(1, 0))[0] < familiarity.distances(-embeddings(1, 0))[0]


def test_written_file_is_read_back_exactly(tmp_path):
    familiarity = fit_familiarity(embeddings(50, 0), embeddings(50, 1))
    familiarity.write(tmp_path / "questions.safetensors")
    read = QuestionFamiliarity.read(tmp_path / "questions.safetensors")
    assert read.threshold == familiarity.threshold
    assert (read.distances(embeddings(9, 3)) == familiarity.distances(embeddings(9, 3))).all()


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "questions.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"questions\.safetensors: not the questions that `qca calibrate` stores"):
        QuestionFamiliarity.read(tmp_path / "questions.safetensors")
