"""Answer vocabularies: which answers become classes, and how much of the data they can reach."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_qca import QCAConfig

from .answers import AnswerRule, answer_scores, majority_answer
from .formats import checked_options
from .rows import load_rows

logger = logging.getLogger(__name__)
Answers = Sequence[Mapping[str, Any]]


def build_vocabulary(
    answers: Iterable[Answers],
    *,
    minimum_count: int | None = None,
    top_k: int | None = None,
    rule: AnswerRule = "consensus",
    normalize: bool = True,
) -> list[str]:
    """The classes of a classifier, most frequent first, equals in alphabetical order.

    Args:
        answers: the `answers` of each row, such as `dataset["answers"]`.
        minimum_count: keep answers with at least this many rows. 9 on train + validation is the VQA v2 rule
            (Teney et al., CVPR 2018), which gives 3129 classes there.
        top_k: keep this many. Give at most one of the two; neither keeps all.
        rule: what a row adds to: its majority answer (`consensus`) or each of its answers (`set`).
        normalize: count answers in the form of the official VQA evaluation.

    Raises:
        ValueError: both limits given, a limit that is no whole number of at least 1, or no answer left.
    """
    if minimum_count is not None and top_k is not None:
        raise ValueError("give minimum_count or top_k, not both")
    limit = minimum_count if minimum_count is not None else top_k
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise ValueError(f"minimum_count and top_k must be whole numbers of at least 1, not {limit!r}")
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
    """How far a classifier over `vocabulary` can get on these rows.

    Returns:
        `rows`; `coverage`, the share of rows with at least one answer in the vocabulary that scores; and
        `oracle_ceiling`, the mean over rows of the best score (`answers.answer_scores`) within the vocabulary.

    Raises:
        ValueError: there are no rows.
    """
    classes = frozenset(vocabulary)
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
    Build the vocabulary of `data`'s train split and write it into the config in `folder`.

    Args:
        data, options: of [`load_rows`].
        folder: with the `config.json` of a preset; `vocabulary: null` trains it with these answers.
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
            f"{folder}: its weights are trained for other answers than these {len(vocabulary)}; choose another folder "
            "without weights, or let a recipe with this `model` and its own `vocabulary` train them on"
        )
    splits = {"train": train}
    try:
        splits["validation"] = load_rows(data, split="validation", **options)
    except ValueError as error:
        logger.warning("nothing is said of validation: %s", error)
    config.id2label = dict(enumerate(vocabulary))
    config.label2id = {answer: index for index, answer in enumerate(vocabulary)}
    config.save_pretrained(folder)
    return {name: vocabulary_reach(rows["answers"], vocabulary, rule) for name, rows in splits.items()}


def _count(answers: Iterable[Answers], rule: AnswerRule, normalize: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in answers:
        if rule == "set":
            counts.update(answer_scores(row, rule, normalize).keys())
        elif (majority := majority_answer(row, normalize)) is not None:
            counts[majority] += 1
    return counts
