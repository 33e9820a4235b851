"""Answers and their numbers: `id2label` and `label2id` of a config are two views of one list."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any


def complete_labels(
    id2label: Mapping[Any, Any] | None, label2id: Mapping[Any, Any] | None
) -> tuple[dict[int, Any] | None, dict[str, int] | None]:
    """
    Both directions, from one of them or from both.

    Ids may be integers or their text (`"0"`), as JSON stores them and guides write them.

    Raises:
        ValueError: if an id is not an integer, two answers share an id or a name, ids do not count from 0 without a
            gap, or the two directions contradict each other.
    """
    if id2label is None and label2id is None:
        return None, None
    if id2label is not None:
        names = _numbered([(key, name) for key, name in id2label.items()], "id2label")
    else:
        names = _numbered([(index, name) for name, index in (label2id or {}).items()], "label2id")
    numbers: dict[str, int] = {}
    for index, name in names.items():
        if str(name) in numbers:
            raise ValueError(
                f"`id2label` has the answer {str(name)[:100]!r} twice, as {numbers[str(name)]} and {index}."
            )
        numbers[str(name)] = index
    if id2label is not None and label2id is not None:
        _check_agreement(names, _numbered([(index, name) for name, index in label2id.items()], "label2id"))
    return names, numbers


def answer_numbers(answers: Sequence[str], id2label: Mapping[Any, Any]) -> list[int]:
    """
    The numbers of some answers of a model, in order and each once.

    Raises:
        ValueError: if there are none, or the model does not know one of them.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"`answers` must be a list of at least one answer, got {answers!r:.100}.")
    numbers = {str(label): number for number, label in id2label.items()}
    for answer in answers:
        if answer not in numbers:
            similar = get_close_matches(str(answer), numbers) or list(numbers)[:3]
            raise ValueError(
                f"`answers` has {str(answer)[:100]!r}, which is none of the {len(numbers)} answers of the model, such "
                f"as {', '.join(map(repr, similar))}. Choose from `config.id2label`, or train the model further on "
                "data with this answer."
            )
    return [numbers[answer] for answer in dict.fromkeys(answers)]


def _numbered(pairs: list[tuple[Any, Any]], field: str) -> dict[int, Any]:
    """The answers by their integer ids, in order."""
    names: dict[int, Any] = {}
    for key, name in pairs:
        try:
            index = int(key)
        except (TypeError, ValueError):
            index = None
        if index is None or isinstance(key, (float, bool)):
            raise ValueError(f"`{field}` must number the answers with integers from 0, got {str(key)[:100]!r}.")
        if index in names:
            raise ValueError(f"`{field}` has two answers with the id {index}.")
        names[index] = name
    names = dict(sorted(names.items()))
    if list(names) != list(range(len(names))):
        raise ValueError(f"`{field}` must number its {len(names)} answers from 0 without a gap.")
    return names


def _check_agreement(names: dict[int, Any], other: dict[int, Any]):
    for index in range(max(len(names), len(other))):
        first, second = (str(side[index]) if index in side else None for side in (names, other))
        if first != second:
            raise ValueError(
                f"`id2label` and `label2id` contradict each other: answer {index} is {_quoted(first)} in `id2label` "
                f"and {_quoted(second)} in `label2id`. Pass one of them; the other follows from it."
            )


def _quoted(name: str | None) -> str:
    return "missing" if name is None else repr(name[:100])


__all__ = ["answer_numbers", "complete_labels"]
