"""How sure the model is of an answer: probabilities at the config's temperature, and abstention below a threshold."""

import torch
from transformers import PreTrainedConfig


def answer_probabilities(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """
    Probabilities of the answers, in float32: softmax or sigmoid of `logits / config.temperature` (temperature scaling,
    Guo et al. 2017).

    Args:
        logits: `[B, C]`.
        config: of the model, with `temperature` and `problem_type`.

    Returns:
        `[B, C]`: with `problem_type="multi_label_classification"` a probability for each answer by itself, else a
        distribution over the answers.
    """
    scaled = logits.float() / config.temperature
    return scaled.sigmoid() if config.problem_type == "multi_label_classification" else scaled.softmax(dim=-1)


def abstains(answer: str, probability: float, threshold: float = 0.0, abstain_answer: str | None = None) -> bool:
    """
    Whether the model leaves a question without an answer.

    Args:
        answer, probability: the best answer.
        threshold: the lowest probability of an answer that is given.
        abstain_answer: an answer that means "no answer", such as `unanswerable` of VizWiz.
    """
    return probability < threshold or answer == abstain_answer


__all__ = ["abstains", "answer_probabilities"]
