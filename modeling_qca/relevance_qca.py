"""Explain a prediction: relevance of image patches and of question tokens, by hops, rollout or gradient.

Explaining is a pure function of the model and its inputs. Hooks and attention settings go to an [`evaluation_copy`].

B questions, L question tokens, N patches, T hops, H heads, C answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from .evaluation_copy_qca import evaluation_copy, is_training, unwrapped_model
from .gradient_qca import AttentionRecorder, gradient_relevance, pooling_weights
from .rollout_qca import ImageTokens, rollout, rollout_relevance


@dataclass
class RelevanceOutput(ModelOutput):
    """
    `QCAProcessor.post_process_relevance` resizes its maps to the images.

    Args:
        relevance (`torch.FloatTensor` of shape `(questions, maps, heads, patches)`):
            Shares of the patches, which sum to one. There is one map a hop. By gradient there is one map of a single
            head, which is zero everywhere if no attention raised the score of the answer.
        grid (`tuple[int, int]`, *optional*): (rows, columns) of the patches, if all images have the same.
        patch_boxes (`torch.FloatTensor` of shape `(questions, patches, 4)`):
            (left, top, right, bottom) of each patch in 0..1 of its picture. The box of padding is empty (zeros).
        token_relevance (`torch.FloatTensor` of shape `(questions, maps or 1, tokens)`, *optional*):
            Shares of the question tokens, zero on padding; see [`word_relevance`]. With `method="relevance"` it is
            there only for hops that attend to the question (`query_tokens="attended"`).
        logits (`torch.FloatTensor` of shape `(questions, answers)`): scores before softmax or sigmoid.
        answers (`torch.LongTensor` of shape `(questions,)`): the explained answers.
        patch_mask (`torch.BoolTensor` of shape `(questions, patches)`, *optional*): patches the token budget kept.
        zoom_boxes (`torch.FloatTensor` of shape `(questions, zoom_regions, 4)`, *optional*):
            (left, top, right, bottom) in 0..1 of the windows that each question chose, if the model zooms.
    """

    relevance: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    patch_boxes: torch.Tensor | None = None
    token_relevance: torch.Tensor | None = None
    logits: torch.FloatTensor | None = None
    answers: torch.Tensor | None = None
    patch_mask: torch.BoolTensor | None = None
    zoom_boxes: torch.Tensor | None = None


def explain(
    model: Any, inputs: Mapping[str, Any], method: str = "relevance", answers: torch.Tensor | None = None
) -> RelevanceOutput:
    """
    Where a `QCAForVisualQuestionAnswering` looks, in evaluation mode.

    The model is not changed, so threads may explain with the same model. It works in training mode, under
    `torch.no_grad()` and under `torch.inference_mode()`.

    Args:
        model: a QCA model, or a PEFT model around one.
        inputs: of the processor, on the device of the model.
        method: `"relevance"`: the relevance maps of the hops. `"rollout"`: these maps followed back through the
            self-attention of the vision encoder to the patches of the image (Abnar & Zuidema 2020, eq. 1), and the
            pooling of the question through the text encoder. `"gradient"`: the attention that raised the score of the
            answer, in the hops and both encoders (Chefer et al. 2021). It copies the image for every question and
            keeps all attention maps with their gradients, so pass few questions at a time. A model without hops has
            `"gradient"` alone, one with `zoom_factor` `"relevance"` alone.
        answers: `[B]` indices of the answers to explain, by default the predicted ones. Only `"gradient"` depends on
            them.

    Raises:
        ValueError: for an unknown method, one that needs hops in a model without, and inputs or encoders that the
            method cannot follow.
    """
    methods = {"relevance": _by_hops, "rollout": _by_rollout, "gradient": _by_gradient}
    if method not in methods:
        raise ValueError(f"Unknown `method` {method!r}; it is one of {', '.join(methods)}.")
    model = unwrapped_model(model)
    zooms = model.config.zoom_factor > 1
    if zooms and model.config.num_attention_layers == 0:
        raise ValueError("A model with `zoom_factor` and without hops has no maps: train it without `zoom_factor`.")
    if zooms and method != "relevance":
        raise ValueError("A model with `zoom_factor` has `method='relevance'` alone.")
    if available_method(model.config, method) != method:
        raise ValueError("A model with `num_attention_layers=0` averages all patches: pass `method='gradient'`.")
    inputs = {name: value for name, value in inputs.items() if value is not None}
    for name, cached in (("pixel_values", "image_features"), ("input_ids", "text_features")):
        if method != "relevance" and name not in inputs:
            raise ValueError(f"`method={method!r}` needs the encoders: pass `{name}`, not `{cached}`.")
    with torch.inference_mode(False):
        inputs = {name: _normal(value) for name, value in inputs.items()}
        inputs, places = _padding_behind(_one_row_a_question(inputs))
        explanation = methods[method](model, inputs, None if answers is None else _normal(answers))
        if explanation.token_relevance is not None and places is not None:
            relevance = explanation.token_relevance  # [B, M, longest]
            relevance = nn.functional.pad(relevance, (0, places.shape[1] - relevance.shape[2]))
            explanation.token_relevance = relevance.gather(2, places[:, None].expand_as(relevance))
    return explanation


def available_method(config: PreTrainedConfig, method: str) -> str:
    """`method`, or the only one that the model has: `"gradient"` without hops, whose average of all patches has no
    other map, and `"relevance"` with zoom, whose windows the other methods do not follow."""
    if config.zoom_factor > 1 and config.num_attention_layers:
        return "relevance"
    return method if config.num_attention_layers else "gradient"


def _normal(value: Any) -> Any:
    """`value`; a copy of a tensor that was made in inference mode, which autograd cannot read."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value


def _one_row_a_question(inputs: dict[str, Any]) -> dict[str, Any]:
    """Repeat questions that `question_index` uses for several images."""
    if "question_index" not in inputs or "input_ids" not in inputs:
        return inputs
    index = inputs["question_index"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    repeated = {name: inputs[name].index_select(0, index) for name in names if name in inputs}
    return {name: value for name, value in inputs.items() if name != "question_index"} | repeated


def _padding_behind(inputs: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
    """
    Move padding behind the tokens, as the text encoder reads them, and cut columns of padding alone.

    Returns:
        The inputs, and the new place of each token `[B, L]`; `None` without tokens.
    """
    if "input_ids" not in inputs:
        return inputs, None
    mask = _question_mask(inputs)
    order = mask.int().sort(dim=1, descending=True, stable=True).indices
    kept = order[:, : max(int(mask.sum(dim=1).max()), 1)]
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    return inputs | {name: inputs[name].gather(1, kept) for name in names}, order.argsort(dim=1)


@torch.no_grad()
def _by_hops(model: Any, inputs: dict, answers: torch.Tensor | None) -> RelevanceOutput:
    reads_words = any(layer.question_attention is not None for layer in model.base_model.hops.layers)
    if reads_words or is_training(model):
        model = evaluation_copy(model)
    words = _record_words(model)
    outputs = model(**inputs, return_dict=True)
    return _relevance_output(outputs, outputs.relevance, torch.cat(words, dim=1) if words else None, answers)


@torch.no_grad()
def _by_rollout(model: Any, inputs: dict, answers: torch.Tensor | None) -> RelevanceOutput:
    model = evaluation_copy(model, eager_attention=True)
    words = _record_words(model)
    outputs = model(**inputs, output_attentions=True, return_dict=True)
    mask = _question_mask(inputs)[:, None]
    pooled = pooling_weights(model.base_model.query_embedder, mask[:, 0])[:, None]
    read = torch.cat(words, dim=1) if words else pooled
    token_relevance = read @ rollout(outputs.text_attentions) * mask  # [B, T or 1, L]
    questions = torch.arange(len(mask), device=mask.device)
    relevance = rollout_relevance(model.config, outputs, inputs.get("image_index", questions))
    return _relevance_output(outputs, relevance, token_relevance, answers)


def _by_gradient(model: Any, inputs: dict, answers: torch.Tensor | None) -> RelevanceOutput:
    model, mask = evaluation_copy(model, eager_attention=True), _question_mask(inputs)
    index = inputs.pop("image_index", None)
    pixel_values = _image_of_each_question(index, inputs["pixel_values"])
    for name in ("spatial_shapes", "pixel_attention_mask"):
        if name in inputs:
            inputs[name] = _image_of_each_question(index, inputs[name])
    with torch.enable_grad(), AttentionRecorder(model) as recorder:
        inputs["pixel_values"] = pixel_values.detach().requires_grad_()  # also where all weights are frozen
        outputs = model(**inputs, output_attentions=True, return_dict=True)
        answers = outputs.logits.argmax(dim=-1) if answers is None else answers
        tokens = ImageTokens.of(model.config, outputs)
        score = outputs.logits.gather(1, answers[:, None]).sum()
        attention = recorder.weighted(score, outputs, mask, _kept_patches(outputs.patch_mask, tokens))
    with torch.no_grad():
        relevance, token_relevance = gradient_relevance(model.config, attention, tokens, mask)
        return _relevance_output(outputs, relevance[:, None, None], token_relevance[:, None], answers)


def _kept_patches(patch_mask: torch.Tensor | None, tokens: ImageTokens) -> torch.Tensor | None:
    """`[B, N] -> [B, N or K]`, at the patches that the head reads."""
    return None if patch_mask is None else tokens.of_patches(patch_mask[:, None, None])[:, 0, 0]


def _image_of_each_question(image_index: torch.Tensor | None, pixel_values: torch.Tensor) -> torch.Tensor:
    """`[I, ...] -> [B, ...]`, so that the gradient of each question is its own."""
    if image_index is None:
        return pixel_values
    if not ((image_index >= 0) & (image_index < len(pixel_values))).all():
        raise ValueError(f"`image_index` must be from 0 to {len(pixel_values) - 1}, got {image_index.tolist()}.")
    return pixel_values.index_select(0, image_index)


def _relevance_output(
    outputs: Any, relevance: torch.Tensor, token_relevance: torch.Tensor | None, answers: torch.Tensor | None
) -> RelevanceOutput:
    logits = outputs.logits.detach()
    return RelevanceOutput(
        relevance=_shares(relevance),
        grid=outputs.grid,
        patch_boxes=outputs.patch_boxes,
        token_relevance=None if token_relevance is None else _shares(token_relevance),
        logits=logits,
        answers=logits.argmax(dim=-1) if answers is None else answers,
        patch_mask=outputs.patch_mask,
        zoom_boxes=outputs.zoom_boxes,
    )


def _shares(relevance: torch.Tensor) -> torch.Tensor:
    total = relevance.sum(dim=-1, keepdim=True)
    return relevance / total.clamp(min=torch.finfo(total.dtype).tiny)


def _question_mask(inputs: Mapping[str, Any]) -> torch.Tensor:
    if "attention_mask" in inputs:
        return inputs["attention_mask"].bool()
    return torch.ones_like(inputs["input_ids"]).bool()


def _record_words(model: Any) -> list[torch.Tensor]:
    """A list that `model` fills when it runs: the share of each token that a hop reads in the question, `[B, 1, L]`
    for each hop that attends to the question."""
    words: list[torch.Tensor] = []
    for layer in model.base_model.hops.layers:
        if layer.question_attention is not None:
            layer.question_attention.softmax.register_forward_hook(
                lambda module, inputs, output: words.append(output[:, 0])
            )
    return words


__all__ = ["RelevanceOutput", "available_method", "explain"]
