"""How much the question alone gives away: an accuracy that needs neither images nor training."""

from collections import defaultdict

import datasets

from ..data.answers import AnswerRule, answer_scores
from ..evaluation.accuracy import answer_accuracy, best_answer, best_single_answer


def question_key(question: str) -> str:
    """The form in which questions are compared: lower case, single spaces, no punctuation at the end."""
    return " ".join(question.lower().split()).rstrip("?!. ")


def question_only_accuracy(
    train: datasets.Dataset, validation: datasets.Dataset, answer_rule: AnswerRule, normalize: bool
) -> float:
    """
    The accuracy on `validation` of the answer that scores most among the training rows with the same question.

    A question that no training row asks gets the majority answer of all training rows.
    """
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for question, answers in zip(train["question"], train["answers"], strict=True):
        for answer, score in answer_scores(answers, answer_rule, normalize).items():
            totals[question_key(question)][answer] += score
    majority = best_single_answer(train, answer_rule, normalize)
    best = {question: best_answer(scores) for question, scores in totals.items()}
    guesses = [best.get(question_key(question), majority) for question in validation["question"]]
    return float(answer_accuracy(guesses, validation, answer_rule, normalize).mean())
