"""Reading the model: where it looked, and which words made it look there.

B questions, L question tokens, N patches, T hops, H heads, C answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from .gradient_qca import AttentionRecorder, gradient_relevance, pooling_weights
from .pairs_qca import pair_images
from .rollout_qca import ImageTokens, rollout, rollout_relevance


@dataclass
class QCAExplanation(ModelOutput):
    """
    `QCAProcessor.post_process_relevance` turns it into maps at the size of the images.

    Args:
        relevance (`torch.FloatTensor` of shape `(questions, maps, heads, patches)`):
            Shares of the patches, which sum to one. One map a hop; by gradient one for all, of a single head, which is
            zero everywhere if no attention raised the answer's score.
        grid (`tuple[int, int]`): (rows, columns) of the patches.
        token_relevance (`torch.FloatTensor` of shape `(questions, maps or 1, tokens)`, *optional*):
            Shares of the question's tokens, zero on padding; see [`word_relevance`]. `None` by the hops' own
            relevance, unless they attend to the question (`query_tokens="attended"`).
        logits (`torch.FloatTensor` of shape `(questions, answers)`).
        answers (`torch.LongTensor` of shape `(questions,)`): the answers explained.
        patch_mask (`torch.BoolTensor` of shape `(questions, patches)`, *optional*): patches the token budget kept.
    """

    relevance: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    token_relevance: torch.Tensor | None = None
    logits: torch.FloatTensor | None = None
    answers: torch.Tensor | None = None
    patch_mask: torch.BoolTensor | None = None


def explain(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    method: str = "relevance",
    answers: torch.Tensor | None = None,
) -> QCAExplanation:
    """
    Where a `QCAForVisualQuestionAnswering` looks when it is not being trained.

    Args:
        inputs: of the processor, on the model's device.
        method: `"relevance"`: the hops' own distributions over patches. `"rollout"`: these followed back through the
            vision encoder's self-attention to the patches of the image (Abnar & Zuidema 2020, eq. 1), and the pooling
            of the question through the text encoder's. `"gradient"`: the attention that raised the answer's score, in
            the hops and both encoders (Chefer et al. 2021); it gives every question an image of its own and keeps all
            attention maps with their gradients, so ask it for a few questions at a time.
        answers: `[B]` indices of the answers to explain, the model's own unless given. Only `"gradient"` depends on
            them.

    Raises:
        ValueError: for an unknown method, a model without hops, and inputs or encoders that the method cannot follow.
    """
    methods = {"relevance": _by_hops, "rollout": _by_rollout, "gradient": _by_gradient}
    if method not in methods:
        raise ValueError(f"Unknown `method` {method!r}; it is one of {', '.join(methods)}.")
    if model.config.num_attention_layers == 0:
        raise ValueError("A model with `num_attention_layers=0` averages all patches; there is no relevance to show.")
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if method != "relevance" and "pixel_values" not in inputs:
        raise ValueError(f"`method={method!r}` goes back to the image: pass `pixel_values`, not `image_features`.")
    words, places = _padding_behind(inputs)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        explanation = methods[method](model, {**inputs, **words}, answers)
    finally:
        for module, training in modes.items():
            module.training = training
    if explanation.token_relevance is not None:
        places = places[:, None].expand_as(explanation.token_relevance)
        explanation.token_relevance = explanation.token_relevance.gather(2, places)
    return explanation


def _padding_behind(inputs: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The questions as the text encoder reads them, padding behind the tokens, and where each token went, `[B, L]`."""
    order = _question_mask(inputs).int().sort(dim=1, descending=True, stable=True).indices
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    return {name: inputs[name].gather(1, order) for name in names}, order.argsort(dim=1)


@torch.no_grad()
def _by_hops(model: Any, inputs: dict, answers: torch.Tensor | None) -> QCAExplanation:
    with _recorded_words(model) as words:
        outputs = model(**inputs, return_dict=True)
    return _explanation(outputs, outputs.relevance, torch.cat(words, dim=1) if words else None, answers)


@torch.no_grad()
def _by_rollout(model: Any, inputs: dict, answers: torch.Tensor | None) -> QCAExplanation:
    with eager_attention(model), _recorded_words(model) as words:
        outputs = model(**inputs, output_attentions=True, return_dict=True)
    mask = _question_mask(inputs)[:, None]
    if words:
        read = torch.cat(words, dim=1)
    elif model.config.query_tokens == "all":
        read = mask / mask.sum(dim=-1, keepdim=True)
    else:
        read = pooling_weights(model.base_model.query_embedder, mask[:, 0])[:, None]
    token_relevance = read @ rollout(outputs.text_attentions) * mask  # [B, T or 1, L]
    relevance = rollout_relevance(model.config, outputs, _image_index(inputs))
    return _explanation(outputs, relevance, token_relevance, answers)


def _by_gradient(model: Any, inputs: dict, answers: torch.Tensor | None) -> QCAExplanation:
    pixel_values, mask = inputs["pixel_values"], _question_mask(inputs)
    pair_images(inputs.get("image_index"), len(pixel_values), len(mask), training=False)  # as the model would refuse
    pixel_values = pixel_values[_image_index(inputs)]
    with torch.enable_grad(), eager_attention(model), AttentionRecorder.of(model) as recorder:
        inputs["pixel_values"] = pixel_values.detach().requires_grad_()  # also where all weights are frozen
        inputs["image_index"] = torch.arange(len(mask), device=mask.device)
        outputs = model(**inputs, output_attentions=True, return_dict=True)
        answers = outputs.logits.argmax(dim=-1) if answers is None else answers
        tokens = ImageTokens.of(model.config, outputs)
        score = outputs.logits.gather(1, answers[:, None]).sum()
        attention = recorder.weighted(score, outputs, mask)
    with torch.no_grad():
        relevance, token_relevance = gradient_relevance(model.config, attention, tokens, mask)
        return _explanation(outputs, relevance[:, None, None], token_relevance[:, None], answers)


def _explanation(
    outputs: Any,
    relevance: torch.Tensor,
    token_relevance: torch.Tensor | None,
    answers: torch.Tensor | None,
) -> QCAExplanation:
    logits = outputs.logits.detach()
    return QCAExplanation(
        relevance=_shares(relevance),
        grid=outputs.grid,
        token_relevance=None if token_relevance is None else _shares(token_relevance),
        logits=logits,
        answers=logits.argmax(dim=-1) if answers is None else answers,
        patch_mask=outputs.patch_mask,
    )


def _shares(relevance: torch.Tensor) -> torch.Tensor:
    total = relevance.sum(dim=-1, keepdim=True)
    return relevance / total.clamp(min=torch.finfo(total.dtype).tiny)


def _image_index(inputs: Mapping[str, Any]) -> torch.Tensor:
    if "image_index" in inputs:
        return inputs["image_index"]
    return torch.arange(len(inputs["input_ids"]), device=inputs["input_ids"].device)


def _question_mask(inputs: Mapping[str, Any]) -> torch.Tensor:
    if "attention_mask" in inputs:
        return inputs["attention_mask"].bool()
    return torch.ones_like(inputs["input_ids"]).bool()


@contextmanager
def _recorded_words(model: Any) -> Iterator[list[torch.Tensor]]:
    """What each hop that attends to the question reads in it, `[B, 1, L]`, once the model has run."""
    words: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for layer in model.base_model.hops.layers:
            if layer.question_attention is not None:
                softmax = layer.question_attention.softmax
                hook = softmax.register_forward_hook(lambda module, inputs, output: words.append(output[:, 0]))
                hooks.enter_context(hook)
        yield words


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """The encoders return attention maps only where they compute them."""
    parts = (model, model.base_model.vision_encoder.backbone, model.base_model.text_encoder)
    implementations = [part.config._attn_implementation for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation("eager")
        yield
    finally:
        for part, implementation in zip(parts, implementations, strict=True):
            part.set_attn_implementation(implementation)


def word_relevance(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    attention_mask: torch.Tensor,
    token_relevance: torch.Tensor,
) -> list[list[list[tuple[str, float]]]]:
    """
    Relevance of the words of each question; special tokens are left out and the shares scaled to sum to one.

    Args:
        tokenizer: a fast one, which knows what words its tokens are of.
        attention_mask, token_relevance: `[B, L]` of the inputs and `[B, M, L]` of [`QCAExplanation`].

    Returns:
        For each question and each of its M maps the words in order, each with its share.
    """
    words = []
    for question, mask, maps in zip(questions, attention_mask.bool(), token_relevance, strict=True):
        encoding = tokenizer(question, truncation=True, max_length=int(mask.sum()))
        words.append([_words(question, encoding, relevance[mask].tolist()) for relevance in maps])
    return words


def _words(question: str, encoding: BatchEncoding, relevance: list[float]) -> list[tuple[str, float]]:
    shares: dict[int, float] = {}
    for word, share in zip(encoding.word_ids(), relevance, strict=True):
        if word is not None:
            shares[word] = shares.get(word, 0.0) + share
    total = sum(shares.values()) or 1.0
    spans = {word: encoding.word_to_chars(word) for word in shares}
    return [(question[spans[word].start : spans[word].end], share / total) for word, share in shares.items()]


__all__ = ["QCAExplanation", "eager_attention", "explain", "word_relevance"]
