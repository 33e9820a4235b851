"""Multiple choice: an answer that is the number or the letter of one of its choices."""

import ast
import json
import re
from string import ascii_uppercase
from typing import Any

from ..schema import Record
from .cells import as_python, cell_text, is_empty

_LETTER = re.compile(r"\(?([A-Z])[).]?")


def lettered_choices(record: Record) -> list[Any] | None:
    """The choices of a record with columns `A`, `B`, ... (MMBench); None where it has none."""
    if not {"A", "B"} <= record.keys():
        return None
    letters = [letter for letter in ascii_uppercase if letter in record]
    return [record[letter] for letter in letters if not is_empty(record[letter])]


def chosen_answer(answer: Any, choices: Any, place: str) -> Any:
    """The text of the choice that `answer` names.

    A number is an index from 0 (ScienceQA). A text is one of the choices, or a letter (`B`), or an index. A text that
    is none of them is the answer itself.

    Raises:
        ValueError: the choices are no list, the index is out of range, or a text can be read in two ways.
    """
    answer, texts = as_python(answer), _texts(choices, place)
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and not is_empty(answer):
        return _at(answer, texts, place)
    if not isinstance(answer, str):
        return answer
    text = answer.strip()
    letter = _LETTER.fullmatch(text)
    index = ascii_uppercase.index(letter[1]) if letter else int(text) if text.isdecimal() else None
    if text in texts:
        if index is not None and index < len(texts) and texts[index] != text:
            raise ValueError(
                f"{place}: the answer {text!r} is one of its choices and also stands for choice {texts[index]!r}; "
                "write the text of the choice, or a number"
            )
        return text
    return answer if index is None else _at(index, texts, place)


def _at(index: float, texts: list[str], place: str) -> str:
    if index not in range(len(texts)):
        raise ValueError(f"{place}: choice {index} of {len(texts)} choices; the first is 0")
    return texts[int(index)]


def _texts(choices: Any, place: str) -> list[str]:
    """The choices as texts; a table of text may hold a list as JSON or as Python writes it."""
    if isinstance(choices, str):
        for parse in (json.loads, ast.literal_eval):
            try:
                choices = parse(choices)
                break
            except (ValueError, SyntaxError):
                continue
    choices = as_python(choices)
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"{place}: its choices are a list of texts, not {choices!r:.80}")
    return [cell_text(choice, place, "choice") for choice in choices]
