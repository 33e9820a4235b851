"""Questions as text: checks before the tokenizer, token counts, and the relevance of words.

B questions, L question tokens, M relevance maps.
"""

from collections.abc import Sequence
from reprlib import repr as short
from threading import Lock
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .image_qca import is_collection

LONGEST_QUESTION = 100_000  # characters; a tokenizer would work for seconds on more
WORD_START = "\u2581"  # of the tokens of a sentence-piece model
TOKENIZER_LOCK = Lock()  # fast tokenizers keep padding and truncation as their state, so threads take turns


def check_questions(questions: Any) -> list[str]:
    """
    Args:
        questions: a collection of questions.

    Raises:
        ValueError: naming the first question that is empty, too long, or no text.
    """
    if not is_collection(questions):
        raise ValueError(f"`text` must be a question or a list of questions, got {short(questions)}.")
    if len(questions) == 0:
        raise ValueError("`text` is empty; pass at least one question.")
    questions = list(questions)
    for position, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"Question {position} is empty ({short(question)}); every question needs text.")
        if len(question) > LONGEST_QUESTION:
            raise ValueError(
                f"Question {position} has {len(question):,} characters; shorten it to {LONGEST_QUESTION:,}."
            )
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Question {position} is no text: its character {error.start} is half of a surrogate pair."
            ) from error
    return questions


def flatten_questions(text: Any) -> tuple[list[str], list[int] | None]:
    """
    Args:
        text: a question, a list of questions, or a list with an entry (a question or a list of questions) an image.

    Returns:
        The questions in one list and, where `text` has a list of questions for an image, the entry of each.

    Raises:
        ValueError: for an entry without questions, and as [`check_questions`].
    """
    if isinstance(text, str):
        return check_questions([text]), None
    if not is_collection(text) or not any(is_collection(entry) for entry in text):
        return check_questions(text), None
    entries = [list(entry) if is_collection(entry) else [entry] for entry in text]
    if not all(entries):
        raise ValueError(f"Entry {entries.index([])} of `text` has no question; pass at least one for each image.")
    flat = [question for entry in entries for question in entry]
    return check_questions(flat), [index for index, entry in enumerate(entries) for _ in entry]


def check_token_counts(tokenizer: PreTrainedTokenizerBase, inputs: Any, questions: Sequence[str]):
    """
    Args:
        inputs: of the tokenizer. Padding does not count.

    Raises:
        ValueError: for a question without any token, or with more than the text encoder reads.
    """
    if "attention_mask" in inputs:
        counts = [int(np.sum(np.asarray(mask))) for mask in inputs["attention_mask"]]
    else:
        counts = [int(np.sum(np.asarray(ids) != tokenizer.pad_token_id)) for ids in inputs["input_ids"]]
    if 0 in counts:
        position = counts.index(0)
        raise ValueError(f"Question {position} is empty for the tokenizer ({short(questions[position])}).")
    most = max(range(len(counts)), key=counts.__getitem__)
    if counts[most] > tokenizer.model_max_length:
        raise ValueError(
            f"Question {most} has {counts[most]} tokens, the text encoder reads at most "
            f"{tokenizer.model_max_length}: shorten it, or pass `truncation=True` to cut it."
        )


def word_relevance(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    attention_mask: torch.Tensor,
    token_relevance: torch.Tensor,
) -> list[list[list[tuple[str, float]]]]:
    """
    Relevance of the words of each question. Special tokens are left out, and the shares are scaled to sum to one.

    A word is what the tokenizer calls one, split at spaces. A tokenizer without character offsets (one written in
    Python) gives its tokens instead of words, or joins those of a sentence-piece model.

    Args:
        attention_mask, token_relevance: `[B, L]` of the inputs and `[B, M, L]` of [`RelevanceOutput`].

    Returns:
        For each question and each of its M maps the words in order, each with its share.
    """
    words = []
    for question, mask, maps in zip(questions, attention_mask.bool().cpu(), token_relevance.cpu(), strict=True):
        pieces = _pieces(tokenizer, question, int(mask.sum()))
        words.append([_word_shares(pieces, relevance[mask].tolist()) for relevance in maps])
    return words


def word_tokens(
    tokenizer: PreTrainedTokenizerBase, question: str, attention_mask: torch.Tensor
) -> list[tuple[str, list[int]]]:
    """
    The words of a question in order, each with the places of its tokens; see [`word_relevance`].

    Args:
        attention_mask: `[L]` of the question.
    """
    places = attention_mask.nonzero()[:, 0].tolist()
    words: dict[tuple[Any, str], list[int]] = {}
    for piece, place in zip(_pieces(tokenizer, question, len(places)), places, strict=True):
        if piece is not None:
            words.setdefault(piece, []).append(place)
    return [(text, tokens) for (_, text), tokens in words.items()]


def _pieces(tokenizer: PreTrainedTokenizerBase, question: str, length: int) -> list[tuple[Any, str] | None]:
    """The word of each token as (key, text), `None` for special tokens and spaces."""
    if not tokenizer.is_fast:
        with TOKENIZER_LOCK:
            encoding = tokenizer(question, truncation=True, max_length=length, return_special_tokens_mask=True)
        tokens: Any = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
        return _joined(tokens, encoding["special_tokens_mask"])
    with TOKENIZER_LOCK:
        encoding = tokenizer(question, truncation=True, max_length=length, return_offsets_mapping=True)
    keys: list[tuple[int, int] | None] = []
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    for word, (start, end) in zip(encoding.word_ids(), encoding["offset_mapping"], strict=True):
        piece = question[start:end]
        if word is None or not piece.strip():
            keys.append(None)
            continue
        start += len(piece) - len(piece.lstrip())
        key = (word, len(question[: start + 1].split()))  # some tokenizers call a whole sentence one word
        spans[key] = (spans.get(key, (start, end))[0], end)
        keys.append(key)
    return [None if key is None else (key, question[slice(*spans[key])].strip()) for key in keys]


def _joined(tokens: list[str], special: list[int]) -> list[tuple[Any, str] | None]:
    """The word of each token, without offsets. A sentence-piece model marks the tokens that begin one."""
    marked = any(token.startswith(WORD_START) for token in tokens)
    words: list[str] = []
    places: list[int | None] = []
    for token, is_special in zip(tokens, special, strict=True):
        if is_special:
            places.append(None)
            continue
        if not marked or token.startswith(WORD_START) or not words:
            words.append("")
        words[-1] += token.removeprefix(WORD_START)
        places.append(len(words) - 1)
    return [None if place is None or not words[place] else (place, words[place]) for place in places]


def _word_shares(pieces: list[tuple[Any, str] | None], relevance: list[float]) -> list[tuple[str, float]]:
    shares: dict[tuple[Any, str], float] = {}
    for piece, share in zip(pieces, relevance, strict=True):
        if piece is not None:
            shares[piece] = shares.get(piece, 0.0) + share
    total = sum(shares.values()) or 1.0
    return [(text, share / total) for (_, text), share in shares.items()]


__all__ = [
    "TOKENIZER_LOCK",
    "check_questions",
    "check_token_counts",
    "flatten_questions",
    "word_relevance",
    "word_tokens",
]
