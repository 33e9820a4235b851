"""Answers of visual question answering: normalization, agreement scores, answer types.

The rules are those of the official VQA evaluation (Antol et al., ICCV 2015; Goyal et al., CVPR 2017), reimplemented.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

AnswerRule = Literal["consensus", "set"]

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905
# The published list maps a contraction that lacks one of its apostrophes to the complete one. It has one mistake.
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTED for place in range(len(word)) if word[place] == "'"
}


def clean_answer(answer: str) -> str:
    """`answer` without line breaks, tabs and outer spaces, as the official evaluation compares unanimous answers."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(answer: str) -> str:
    """`answer` in the form in which the official VQA evaluation compares answers that differ.

    Punctuation is dropped, or becomes a space between words. Periods outside numbers and articles are dropped. Letters
    become lower case, number words become digits, and contractions get their apostrophe.
    """
    answer = clean_answer(answer)
    comma_in_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        drop = comma_in_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if drop else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def answer_key(answer: str, normalize: bool = True) -> str:
    """The form in which answers of rows and classes of a model are compared.

    It is `normalize_answer`, except for answers that would vanish, such as `A` of multiple choice or a word of another
    language that is an English article. They keep their text in lower case. Without `normalize` it is `clean_answer`.
    """
    if not normalize:
        return clean_answer(answer)
    composed = unicodedata.normalize("NFC", answer)
    return normalize_answer(composed) or clean_answer(composed).lower()


def count_answers(answers: Iterable[str]) -> list[dict[str, Any]]:
    """The `answers` of one question as the row schema holds them, in order of first appearance."""
    return [{"answer": answer, "count": count} for answer, count in Counter(answers).items()]


def agreement(matches: int, annotators: int) -> float:
    """Accuracy of an answer given by `matches` of `annotators` people, in [0, 1].

    The mean of min(1, matches / 3) over the subsets that leave one annotator out (VQA evaluation code). With fewer
    than three annotators left, an answer that matches all of them scores 1.
    """
    if annotators == 1:
        return float(matches)
    enough = min(3, annotators - 1)
    included, left_out = min(1.0, matches / enough), min(1.0, max(matches - 1, 0) / enough)
    return ((annotators - matches) * included + matches * left_out) / annotators


def answer_scores(
    answers: Iterable[Mapping[str, Any]], rule: AnswerRule = "consensus", normalize: bool = True
) -> dict[str, float]:
    """Training target of a question: the answers that score above 0, with their score in (0, 1].

    Args:
        answers: `{"answer", "count"}` of one row.
        rule: `consensus`: the answers are votes of annotators, scored by `agreement`. `set`: the answers are members
            of one set that is right as a whole (DAQUAR), and each member scores 1.
        normalize: merge answers with the same `answer_key`.
    """
    answers = list(answers)
    votes = _votes(answers, normalize)
    if rule == "set":
        return dict.fromkeys(votes, 1.0)
    annotators = sum(answer["count"] for answer in answers)
    return {answer: agreement(count, annotators) for answer, count in votes.items()}


def majority_answer(answers: Iterable[Mapping[str, Any]], normalize: bool = True) -> str | None:
    """The most frequent answer of a row, the first of equally frequent ones; None for a row without answers."""
    votes = _votes(answers, normalize)
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def answer_type(answers: Iterable[Mapping[str, Any]]) -> str:
    """`yes/no`, `number` or `other`, the answer types of VQA v2, from the most frequent answer of a row."""
    answer = majority_answer(answers)
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer is not None and re.fullmatch(r"\d+(\.\d+)?", answer) else "other"


def _votes(answers: Iterable[Mapping[str, Any]], normalize: bool) -> Counter[str]:
    """Annotators per answer. An empty answer is no answer."""
    votes: Counter[str] = Counter()
    for answer in answers:
        if text := answer_key(answer["answer"], normalize):
            votes[text] += answer["count"]
    return votes
