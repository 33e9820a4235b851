"""The fitted temperature, against a known one and a search over a grid."""

import numpy as np
import pytest
import torch

from modeling_qca.training.confidence.temperature import best_probability, fit_temperature


def overconfident_logits(temperature, questions=4000, answers=6, seed=0):
    """Logits of a calibrated model times `temperature`, and whether the best answer is right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(questions, answers))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right = np.array([generator.choice(answers, p=row) for row in probabilities])
    return logits * temperature, (logits.argmax(axis=1) == right).astype(float)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_finds_the_temperature_that_a_calibrated_model_was_scaled_by(temperature):
    assert fit_temperature(*overconfident_logits(temperature)) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("several", [False, True])
def test_no_temperature_of_a_grid_has_a_smaller_loss(several):
    logits, score = overconfident_logits(2.0, questions=300)
    score[::3] *= 0.6  # partly right

    def loss(temperature):
        scaled = torch.from_numpy(logits) / temperature
        best = (scaled.sigmoid() if several else scaled.softmax(-1)).amax(-1)
        return torch.nn.functional.binary_cross_entropy(best, torch.from_numpy(score)).item()

    grid = np.exp(np.linspace(np.log(0.06), np.log(19), 400))
    assert loss(fit_temperature(logits, score, several)) <= min(map(loss, grid)) + 1e-6


def test_questions_without_a_known_answer_raise_the_temperature():
    logits, score = overconfident_logits(1.0)
    score[::2] = 0  # their answer is not a class
    assert fit_temperature(logits, score) > 1.5


def test_warns_when_no_temperature_fits(caplog):
    logits, _ = overconfident_logits(1.0, questions=50)
    assert fit_temperature(logits, np.zeros(50)) > 15
    assert "one temperature cannot calibrate" in caplog.text


def test_best_probability_equals_torch_softmax_and_sigmoid():
    logits = np.random.default_rng(0).normal(scale=30, size=(20, 5))
    scaled = torch.from_numpy(logits) / 2.5
    assert best_probability(logits, 2.5, False) == pytest.approx(scaled.softmax(-1).amax(-1).numpy())
    assert best_probability(logits, 2.5, True) == pytest.approx(scaled.sigmoid().amax(-1).numpy())
