"""Losses of the answers and of the relevance maps.

B questions, T hops, N patches, C answers.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)


def answer_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """
    Cross-entropy for one correct answer, binary cross-entropy for soft VQA scores.

    Args:
        logits: `[B, C]`.
        labels: `[B]` answer indices, -100 for an answer outside the vocabulary (it is ignored), or `[B, C]` scores
            in [0, 1].
        problem_type: `single_label_classification` or `multi_label_classification`; `None`
            decides by the dtype of the labels.

    Returns:
        Scalar, mean over questions. The binary cross-entropy is summed over answers, as in ViLT (Kim et al. 2021).

    Raises:
        ValueError: if the labels do not fit the problem type or the answers.
    """
    labels = labels.to(logits.device)  # the parts of a model may lie on several devices
    if problem_type is None:
        problem_type = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem_type == "multi_label_classification":
        if labels.shape != logits.shape:
            raise ValueError(
                f"multi_label_classification needs `labels` of shape {tuple(logits.shape)}, got {tuple(labels.shape)}."
            )
        scores = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return scores.sum(-1).mean()
    if problem_type != "single_label_classification":
        raise ValueError(
            f"`problem_type` is {problem_type!r}; use 'single_label_classification' or 'multi_label_classification'."
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"single_label_classification needs `labels` of shape ({len(logits)},), got {tuple(labels.shape)}."
        )
    known = labels != -100
    outside = known & ((labels < 0) | (labels >= logits.shape[1]))
    if not torch.compiler.is_compiling() and outside.any():
        question = int(outside.nonzero()[0])
        raise ValueError(
            f"The label of question {question} is {int(labels[question])}, but there are {logits.shape[1]} answers; "
            "use -100 for an answer that is not among them."
        )
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
    return total / known.sum().clamp(min=1)


def keep_problem_type(model: PreTrainedModel):
    """Note in the config of a model that it is trained on soft scores. A saved one would otherwise read its scores as
    those of a single answer."""
    if model.config.problem_type is not None:
        return
    model.config.problem_type = "multi_label_classification"
    if hasattr(model, "peft_config") and not torch.compiler.is_compiling():
        logger.warning_once(
            "The labels are soft scores, so `problem_type` is now `multi_label_classification`. An adapter does not "
            'keep that: load its base model with `problem_type="multi_label_classification"`.'
        )


def relevance_loss(
    relevance: torch.Tensor, target_relevance: torch.Tensor, patch_mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Attention supervision \\(D_{KL}(t \| r)\\), mean over the maps that have a target.

    Args:
        relevance: `[B, T, N]` probabilities (head mean).
        target_relevance: `[B, N]` for the last hop or `[B, T, N]` for each hop, non-negative and of any scale. An
            all-zero map is ignored.
        patch_mask: `[B, N]` patches that the token budget kept; targets are renormalized over them.

    Returns:
        Scalar in nats; 0 if no map has a target.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if target_relevance.dim() == 2:
        target_relevance, relevance = target_relevance[:, None], relevance[:, -1:]  # [B, 1, N]
    if target_relevance.shape != relevance.shape:
        raise ValueError(
            f"`target_relevance` {tuple(target_relevance.shape)} must be [questions, patches] or "
            f"[questions, hops, patches] = {tuple(relevance.shape)}."
        )
    target = target_relevance.to(relevance)
    if patch_mask is not None:
        target = target * patch_mask[:, None].to(target)
    mass = target.sum(-1, keepdim=True)
    target = target / mass.clamp(min=torch.finfo(target.dtype).tiny)
    log_relevance = relevance.clamp(min=torch.finfo(relevance.dtype).tiny).log()
    divergence = (torch.special.xlogy(target, target) - target * log_relevance).sum(-1)  # [B, T]
    supervised = mass.squeeze(-1) > 0
    return (divergence * supervised).sum() / supervised.sum().clamp(min=1)


__all__ = ["answer_loss", "keep_problem_type", "relevance_loss"]
