"""Answers of visual question answering: normalization, agreement scores, answer types.

The rules are those of the official VQA evaluation (Antol et al., ICCV 2015; Goyal et al., CVPR 2017), written anew.
"""

import re
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
# The published list maps a contraction that lacks one of its apostrophes to the whole one, with one slip of its own.
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTED for place in range(len(word)) if word[place] == "'"
}


def clean_answer(answer: str) -> str:
    """`answer` without line breaks, tabs and outer spaces: all the official evaluation does to unanimous answers."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(answer: str) -> str:
    """`answer` in the form in which the official VQA evaluation compares answers that differ.

    Punctuation is dropped (or becomes a space between words), periods outside numbers go, letters are lower case,
    number words become digits, articles go, contractions get their apostrophe.
    """
    answer = clean_answer(answer)
    comma_in_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        drop = comma_in_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if drop else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def count_answers(answers: Iterable[str]) -> list[dict[str, Any]]:
    """The `answers` of one question as the row schema holds them, in order of first appearance."""
    return [{"answer": answer, "count": count} for answer, count in Counter(answers).items()]


def agreement(matches: int, annotators: int) -> float:
    """Accuracy of an answer given by `matches` of `annotators` people, in [0, 1].

    The mean of min(1, matches / 3) over the subsets that leave one annotator out (VQA evaluation code). Where fewer
    than three are left, matching all of them is 1.
    """
    if annotators == 1:
        return float(matches)
    enough = min(3, annotators - 1)
    included, left_out = min(1.0, matches / enough), min(1.0, max(matches - 1, 0) / enough)
    return ((annotators - matches) * included + matches * left_out) / annotators


def answer_scores(
    answers: Iterable[Mapping[str, Any]], rule: AnswerRule = "consensus", normalize: bool = True
) -> dict[str, float]:
    """Training target of a question: score in (0, 1] of each answer worth something.

    Args:
        answers: `{"answer", "count"}` of one row.
        rule: `consensus`: the answers are votes of annotators, scored by `agreement`. `set`: the answers are members
            of one set that is right as a whole (DAQUAR), each of which scores 1.
        normalize: merge answers that are equal after `normalize_answer`.
    """
    answers = list(answers)
    votes = _votes(answers, normalize)
    if rule == "set":
        return dict.fromkeys(votes, 1.0)
    annotators = sum(answer["count"] for answer in answers)
    return {answer: agreement(count, annotators) for answer, count in votes.items()}


def majority_answer(answers: Iterable[Mapping[str, Any]], normalize: bool = True) -> str | None:
    """The most frequent answer of a row, the first of equals; None where nothing is left after normalization."""
    votes = _votes(answers, normalize)
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def answer_type(answers: Iterable[Mapping[str, Any]]) -> str:
    """`yes/no`, `number` or `other`, the answer types of VQA v2, from the most frequent answer of a row."""
    answer = majority_answer(answers)
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer is not None and re.fullmatch(r"\d+(\.\d+)?", answer) else "other"


def _votes(answers: Iterable[Mapping[str, Any]], normalize: bool) -> Counter[str]:
    """Annotators per answer, without answers that are empty (an article alone, once normalized): they are no class."""
    votes: Counter[str] = Counter()
    for answer in answers:
        text = normalize_answer(answer["answer"]) if normalize else clean_answer(answer["answer"])
        if text:
            votes[text] += answer["count"]
    return votes
