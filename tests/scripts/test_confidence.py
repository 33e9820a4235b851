"""`scripts/confidence/figures.py`: what its figures are computed with."""

import numpy as np
import pytest
from confidence.figures import auroc, shuffled_words
from sklearn.metrics import roc_auc_score


def test_auroc_equals_that_of_scikit_learn_also_with_ties():
    generator = np.random.default_rng(0)
    usual, unusual = generator.integers(0, 6, 80), generator.integers(2, 8, 50)
    labels = np.repeat([0, 1], [80, 50])
    assert auroc(usual, unusual) == pytest.approx(roc_auc_score(labels, np.concatenate([usual, unusual])))


def test_words_are_in_another_order_and_a_question_of_one_word_is_left_out():
    questions = ["why", "is there a bed?", "what is on the table"]
    shuffled = shuffled_words(questions)
    assert [sorted(text.rstrip("?").split()) for text in shuffled] == [
        sorted(text.rstrip("?").split()) for text in questions[1:]
    ]
    assert not set(shuffled) & set(questions) and [text[-1] == "?" for text in shuffled] == [True, False]
