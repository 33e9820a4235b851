"""Checks before a run trains: what cannot run is refused, what teaches nothing is named in a warning."""

import logging
from collections.abc import Mapping
from typing import Any

import datasets
import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from modeling_qca import QCAProcessor

from ..data.answers import answer_key, answer_scores
from ..data.collator import tokenize_questions
from .recipe import Recipe
from .splits import Splits

logger = logging.getLogger(__name__)
QUESTIONS_AT_ONCE = 1000


def check_arguments(arguments: TrainingArguments) -> None:
    """
    Raises:
        ValueError: `report_to` names a tracker that does not exist or is not installed.
    """
    available = get_available_reporting_integrations()
    for name in arguments.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise ValueError(f"`report_to`: there is no tracker {name!r}; the trackers are {known}")
        if name not in available:
            raise ValueError(
                f"`report_to`: the tracker {name!r} is not installed. Install its package, or leave `report_to` out; "
                f"installed are {', '.join(available) or 'none'}"
            )
    if arguments.bf16 and not has_bfloat16(arguments.device):
        logger.warning("`bf16` is turned off: this processor computes bfloat16 many times slower than float32")


def runnable_arguments(recipe: Recipe) -> TrainingArguments:
    """The trainer's arguments, without `bf16` on a processor that only emulates it."""
    arguments = recipe.training_arguments()
    if arguments.bf16 and not has_bfloat16(arguments.device):
        return recipe.training_arguments(bf16=False)
    return arguments


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16. A processor without instructions for it emulates them slowly."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def warn_of_missing_maps(recipe: Recipe, splits: Splits) -> None:
    """Warn if the recipe supervises attention and no training row has a relevance map."""
    rows, supervised = splits.train, recipe.attention_supervision != "none" and not recipe.object_words
    if supervised and isinstance(rows, datasets.Dataset) and not any(rows["relevance"]):
        logger.warning(
            "`attention_supervision: %s`, but no training row has a relevance map. Hops learn little without "
            "supervision: add maps, name the objects of your questions with `--object_words`, or train with "
            "`--attention_supervision none --num_attention_layers 0`",
            recipe.attention_supervision,
        )


def warn_of_unknown_answers(recipe: Recipe, splits: Splits, answers: list[str]) -> None:
    """Count the questions of each split none of whose answers is a class: they teach nothing and score nothing.

    Raises:
        ValueError: no training question has an answer that is a class.
    """
    known = frozenset(answer_key(answer, recipe.normalize_answers) for answer in answers)
    for split, rows in (("train", splits.answered), ("validation", splits.validation)):
        outside = [
            (question, [answer["answer"] for answer in given])
            for question, given in zip(rows["question_id"], rows["answers"], strict=True)
            if known.isdisjoint(answer_scores(given, recipe.answer_rule, recipe.normalize_answers))
        ]
        if split == "train" and len(outside) == len(rows):
            raise ValueError(
                f"no training question has an answer in the vocabulary of {len(answers)}: question {outside[0][0]} "
                f"has {', '.join(outside[0][1])}, the vocabulary has {', '.join(answers[:3])}, ...; leave "
                "`vocabulary` out to build it from these rows, and see `normalize_answers`"
            )
        if outside:
            logger.warning(
                "%s: %d of %d questions have no answer in the vocabulary of %d, the first is %s (%s); see "
                "`vocabulary` and `normalize_answers`",
                *(split, len(outside), len(rows), len(answers), outside[0][0], ", ".join(outside[0][1])),
            )


def tokenize_splits(processor: QCAProcessor, splits: Splits) -> list[Mapping[str, Any]]:
    """
    Tokenize all questions, so that one that is too long is found before training.

    Returns:
        The tokens of the training rows in batches; none of a stream, whose questions are not read here.

    Raises:
        ValueError: a question is too long; the message has its id.
    """
    training: list[Mapping[str, Any]] = []
    for rows in (splits.train, splits.validation):
        if isinstance(rows, datasets.Dataset):
            for batch in rows.select_columns(["question", "question_id"]).iter(QUESTIONS_AT_ONCE):
                tokens = tokenize_questions(processor, batch["question"], batch["question_id"])
                if rows is splits.train:
                    training.append(tokens)
    return training
