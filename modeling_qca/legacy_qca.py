"""Fields of configs that release 0.1 wrote: what was renamed, removed, or had another default."""

from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

# Release 0.1 stored all its fields; a config written by hand may leave out any of them.
DEFAULTS_OF_0_1 = {
    "question_pooling": "cls",
    "relevance_scorer": "dot_product",
    "num_attention_heads": 8,
    "num_classifier_layers": 2,
    "answer_query": "updated",
    "evidence_dropout": 0.0,
    "classifier_dropout": 0.1,
}
# Removed fields and the value that had no effect.
REMOVED_FIELDS = {"answer_fusion": "concatenation", "attention_dropout": 0.0}
REMOVED_VALUES = {"query_tokens": "all", "patch_update": "gated"}
RENAMED_VALUES = {"answer_query": {"asked": "initial"}}


def upgrade_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    `fields` of a config by their names and values of today.

    Raises:
        ValueError: if they describe a model that only release 0.1 can read.
    """
    fields = dict(fields)
    for name, neutral in REMOVED_FIELDS.items():
        if fields.pop(name, neutral) not in (neutral, None):
            raise ValueError(_unreadable(name))
    for name, removed in REMOVED_VALUES.items():
        if fields.get(name) == removed:
            raise ValueError(_unreadable(f"{name}={removed!r}"))
    for name, renamed in RENAMED_VALUES.items():
        old = fields.get(name)
        if isinstance(old, str) and old in renamed:
            logger.warning_once(f"`{name}: {old}` is now called `{name}: {renamed[old]}`; please rename it.")
            fields[name] = renamed[old]
    return fields


def _unreadable(field: str) -> str:
    return (
        f"`{field}` was removed after release 0.1. To read this model, install that release: "
        '`pip install "modeling-qca<0.2"`.'
    )


__all__ = ["DEFAULTS_OF_0_1", "REMOVED_FIELDS", "upgrade_fields"]
