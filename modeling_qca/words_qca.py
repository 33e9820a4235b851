"""Importance of the words of a question, measured by leaving each of them out.

Attention and gradients also give shares of words. They rank words in another order than this loss does, see
docs/explaining.md. Leaving words out is exact, and cheap, because the image is encoded once. With zoom, the glance and
the chosen windows are encoded once for every `ROWS` shortened questions.

B questions, W words of a question, R rows, L question tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .confidence_qca import answer_probabilities
from .evaluation_copy_qca import evaluation_copy, is_training, unwrapped_model
from .question_qca import word_tokens

ROWS = 64  # shortened questions that are answered at once


@torch.no_grad()
def word_importance(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    inputs: Mapping[str, Any],
    answers: torch.Tensor | None = None,
) -> list[list[tuple[str, float]]]:
    """
    How much of an answer's probability is lost when a word is left out of the question.

    The model is not changed, so threads may share it.

    Args:
        model: a `QCAForVisualQuestionAnswering`, or a PEFT model around one.
        questions: the texts of `inputs`.
        inputs: of the processor for these questions, on the device of the model.
        answers: `[B]` indices of answers, by default the predicted ones.

    Returns:
        For each question its words in order, each with the probability of the answer minus that without the word. It
        is negative for a word that lowers the probability.
    """
    model = unwrapped_model(model)
    model = evaluation_copy(model) if is_training(model) else model
    inputs = _with_image_features(model, inputs)
    words = [word_tokens(tokenizer, *pair) for pair in zip(questions, inputs["attention_mask"].cpu(), strict=True)]
    logits = model(**inputs, return_dict=True).logits
    answers = logits.argmax(dim=-1) if answers is None else answers
    whole = answer_probabilities(logits, model.config).gather(1, answers[:, None])
    left_out = [(question, tokens) for question, found in enumerate(words) for _, tokens in found]
    without = iter(probabilities_without(model, inputs, left_out, answers))
    return [
        [(word, float(probability) - next(without)) for word, _ in found]
        for found, probability in zip(words, whole, strict=True)
    ]


@torch.no_grad()
def probabilities_without(
    model: Any, inputs: Mapping[str, Any], left_out: Sequence[tuple[int, Sequence[int]]], answers: torch.Tensor
) -> list[float]:
    """
    The probabilities of answers to shortened questions.

    Args:
        left_out: R pairs of a question's row in `inputs` and the places of the tokens to leave out.
        answers: `[B]` indices.
    """
    found: list[float] = []
    for start in range(0, len(left_out), ROWS):
        part = left_out[start : start + ROWS]
        rows = torch.tensor([row for row, _ in part], device=answers.device)
        mask = inputs["attention_mask"].index_select(0, rows)
        for number, (_, tokens) in enumerate(part):
            mask[number, list(tokens)] = 0
        shortened = _rows(inputs, rows) | {"attention_mask": mask}
        logits = model(**shortened, return_dict=True).logits
        found += answer_probabilities(logits, model.config).gather(1, answers[rows, None])[:, 0].tolist()
    return found


def _with_image_features(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` whose images are encoded, with the image of each question. With zoom they
    stay as they are, because the questions choose what is encoded."""
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if "pixel_values" in inputs and model.config.zoom_factor == 1:
        shapes = {"spatial_shapes": inputs.get("spatial_shapes")}  # of SigLIP 2 NaFlex; they say what is padding
        features = model.get_image_features(inputs.pop("pixel_values"), return_dict=True, **shapes)
        inputs.pop("pixel_attention_mask", None)
        inputs |= {"image_features": features.last_hidden_state, "image_grid": features.grid}
    places = torch.arange(len(inputs["input_ids"]), device=inputs["input_ids"].device)
    return {"attention_mask": torch.ones_like(inputs["input_ids"]), "image_index": places} | inputs


def _rows(inputs: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    texts = ("input_ids", "token_type_ids", "image_index")
    chosen = {name: value.index_select(0, rows) if name in texts else value for name, value in inputs.items()}
    if "pixel_values" in inputs:  # with zoom: encode the images of these questions alone
        used, chosen["image_index"] = chosen["image_index"].unique(return_inverse=True)
        chosen["pixel_values"] = inputs["pixel_values"][used]
    return chosen


__all__ = ["probabilities_without", "word_importance"]
