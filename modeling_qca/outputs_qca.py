"""Outputs of the QCA models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class QCAModelOutput(ModelOutput):
    """
    Args:
        query (`torch.FloatTensor` of shape `(questions, hidden_size)`):
            The query that the answer head reads: the initial one, or that after the last hop (`answer_query`).
        evidence (`torch.FloatTensor` of shape `(questions, hops, hidden_size)`):
            The evidence of each hop, followed by the mean of the patches if the answer head reads it.
        relevance (`torch.FloatTensor` of shape `(questions, hops, heads, patches)`):
            Relevance maps: probabilities over the patches of the full grid, float32. Zero for a patch that the token
            budget dropped.
        grid (`tuple[int, int]`, *optional*):
            (rows, columns) of the patches; `None` where each picture has a grid of its own (SigLIP 2 NaFlex).
        patch_boxes (`torch.FloatTensor` of shape `(questions, patches, 4)`):
            (left, top, right, bottom) of each patch in 0..1 of its picture. The box of padding is empty (zeros).
        budget_relevance (`torch.FloatTensor` of shape `(questions, patches)`, *optional*):
            Probabilities that the token budget ranked the patches by.
        patch_mask (`torch.BoolTensor` of shape `(questions, patches)`, *optional*):
            `True` for the patches that the token budget kept.
        zoom_boxes (`torch.FloatTensor` of shape `(questions, zoom_regions, 4)`, *optional*):
            (left, top, right, bottom) in 0..1 of the windows that each question chose, if the model zooms. The grid
            is then that of the picture at full detail, and the relevance of a patch of the whole picture made smaller
            is spread over the patches that it covers.
        vision_hidden_states, vision_attentions, text_hidden_states, text_attentions (*optional*):
            Of the layers of the encoders, with `output_hidden_states=True` and `output_attentions=True`. Vision layers
            that depend on the question have one row a question, those before them one row an image. Layers behind the
            last of `vision_feature_layers` do not run. With zoom they are those of the glance. Question tokens come
            first, padding behind them.
    """

    query: torch.Tensor | None = None
    evidence: torch.Tensor | None = None
    relevance: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    patch_boxes: torch.Tensor | None = None
    budget_relevance: torch.Tensor | None = None
    patch_mask: torch.Tensor | None = None
    zoom_boxes: torch.Tensor | None = None
    vision_hidden_states: tuple[torch.Tensor, ...] | None = None
    vision_attentions: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    text_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class QCAForVisualQuestionAnsweringOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, *optional*):
            `answer_loss + relevance_loss_weight * relevance_loss`, or the one of the two that has a target.
        logits (`torch.FloatTensor` of shape `(questions, answers)`): scores before softmax or sigmoid.
        answer_loss, relevance_loss (`torch.FloatTensor`, *optional*): the parts of the loss.

    The other fields are those of [`QCAModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    answer_loss: torch.Tensor | None = None
    relevance_loss: torch.Tensor | None = None
    relevance: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    patch_boxes: torch.Tensor | None = None
    budget_relevance: torch.Tensor | None = None
    patch_mask: torch.Tensor | None = None
    zoom_boxes: torch.Tensor | None = None
    vision_hidden_states: tuple[torch.Tensor, ...] | None = None
    vision_attentions: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    text_attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["QCAForVisualQuestionAnsweringOutput", "QCAModelOutput"]
