"""Answer vocabularies: which answers become classes, and what share of the data they can answer."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from modeling_qca import QCAConfig

from .answers import AnswerRule, answer_key, answer_scores, majority_answer
from .formats import checked_options
from .rows import load_rows

logger = logging.getLogger(__name__)

# Marks that change the meaning of an answer, and that normalization drops: -5 and 5, <3 and >3, 1/2 and 1-2.
_MEANINGFUL_MARKS = re.compile(r"[<>=+±]|(?<!\w)-(?=\d)|(?<=\d)[-/](?=\d)")
Answers = Sequence[Mapping[str, Any]]


def build_vocabulary(
    answers: Iterable[Answers],
    *,
    minimum_count: int | None = None,
    top_k: int | None = None,
    rule: AnswerRule = "consensus",
    normalize: bool = True,
) -> list[str]:
    """The classes of a classifier, most frequent first, equally frequent ones in alphabetical order.

    A warning names answers of different meaning that normalization merges, such as -5 and 5.

    Args:
        answers: the `answers` of each row, such as `dataset["answers"]`.
        minimum_count: keep answers with at least this many rows. 9 on train + validation is the VQA v2 rule
            (Teney et al., CVPR 2018), which gives 3129 classes there.
        top_k: keep this many. Give at most one of the two; neither keeps all.
        rule: what a row adds to: its majority answer (`consensus`) or each of its answers (`set`).
        normalize: count answers by `answers.answer_key`, otherwise as they are written.

    Raises:
        ValueError: both limits are given, a limit is not a whole number of at least 1, or no answer is left.
    """
    if minimum_count is not None and top_k is not None:
        raise ValueError("give minimum_count or top_k, not both")
    limit = minimum_count if minimum_count is not None else top_k
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise ValueError(f"minimum_count and top_k must be whole numbers of at least 1, not {limit!r}")
    answers = answers if isinstance(answers, Sized) else list(answers)
    if normalize:
        _warn_of_merged(answers)
    counts = _count(answers, rule, normalize)
    ranked = sorted(counts, key=lambda answer: (-counts[answer], answer))
    if minimum_count is not None:
        ranked = [answer for answer in ranked if counts[answer] >= minimum_count]
    vocabulary = ranked[:top_k]
    if not vocabulary:
        most = max(counts.values(), default=0)
        raise ValueError(f"the vocabulary is empty: the most frequent answer occurs {most} times in these rows")
    return vocabulary


def vocabulary_reach(
    answers: Iterable[Answers], vocabulary: Iterable[str], rule: AnswerRule = "consensus", normalize: bool = True
) -> dict[str, float]:
    """The best result that a classifier over `vocabulary` can have on these rows.

    Returns:
        `rows`; `coverage`, the share of rows with at least one answer in the vocabulary that scores; and
        `oracle_ceiling`, the mean over rows of the best score (`answers.answer_scores`) within the vocabulary.

    Raises:
        ValueError: `answers` is empty.
    """
    classes = frozenset(answer_key(answer, normalize) for answer in vocabulary)
    best = [
        max((score for answer, score in answer_scores(row, rule, normalize).items() if answer in classes), default=0.0)
        for row in answers
    ]
    if not best:
        raise ValueError("no rows to measure the vocabulary on")
    return {
        "rows": len(best),
        "coverage": sum(score > 0 for score in best) / len(best),
        "oracle_ceiling": sum(best) / len(best),
    }


def store_vocabulary(
    data: str,
    folder: Path,
    minimum_count: int | None,
    top_k: int | None,
    options: Mapping[str, Any],
    rule: AnswerRule = "consensus",
) -> dict[str, dict[str, float]]:
    """
    Build the vocabulary of the train split of `data` and write it into the config in `folder`.

    Args:
        data, options: of [`load_rows`].
        folder: it has the `config.json` of a preset. A recipe with `vocabulary: null` trains it with these answers.
        minimum_count, top_k, rule: of [`build_vocabulary`].

    Returns:
        [`vocabulary_reach`] on the train split, and on validation where there is one.

    Raises:
        ValueError: `folder` has trained weights of other answers, or see [`build_vocabulary`] and `load_rows`.
    """
    options = checked_options(options)
    config = QCAConfig.from_pretrained(folder)
    train = load_rows(data, split="train", **options)
    vocabulary = build_vocabulary(train["answers"], minimum_count=minimum_count, top_k=top_k, rule=rule)
    if any(folder.glob("*.safetensors")) and config.id2label != dict(enumerate(vocabulary)):
        raise ValueError(
            f"{folder}: its weights are trained for other answers than these {len(vocabulary)}; choose a folder "
            "without weights, or train them further by a recipe with this `model` and its own `vocabulary`"
        )
    splits = {"train": train}
    try:
        splits["validation"] = load_rows(data, split="validation", **options)
    except ValueError as error:
        logger.warning("the reach on validation is not measured: %s", error)
    config.id2label = dict(enumerate(vocabulary))
    config.label2id = {answer: index for index, answer in enumerate(vocabulary)}
    config.save_pretrained(folder)
    return {name: vocabulary_reach(rows["answers"], vocabulary, rule) for name, rows in splits.items()}


def merged_answers(answers: Iterable[Answers]) -> dict[str, list[str]]:
    """Answers of different meaning that are one class after normalization: {"5": ["-5", "5"]}.

    Answers differ in meaning here if they differ in a sign, comparison or fraction. Case, articles, number words and
    other punctuation do not count.
    """
    forms: dict[str, dict[tuple[str, ...], str]] = {}
    for text in sorted({answer["answer"] for row in answers for answer in row}):
        forms.setdefault(answer_key(text), {}).setdefault(tuple(_MEANINGFUL_MARKS.findall(text)), text)
    return {key: list(texts.values()) for key, texts in forms.items() if len(texts) > 1}


def _warn_of_merged(answers: Iterable[Answers]) -> None:
    if merged := merged_answers(answers):
        named = list(merged.items())[:5]
        examples = "; ".join(f"{' and '.join(map(repr, texts))} are {key!r}" for key, texts in named)
        logger.warning(
            "normalization merges %d answers of different meaning: %s. Pass normalize=False (`normalize_answers: "
            "false` in a recipe) to keep them apart",
            *(len(merged), examples),
        )


def _count(answers: Iterable[Answers], rule: AnswerRule, normalize: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in answers:
        if rule == "set":
            counts.update(answer_scores(row, rule, normalize).keys())
        elif (majority := majority_answer(row, normalize)) is not None:
            counts[majority] += 1
    return counts
