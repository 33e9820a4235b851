"""Words and phrases of questions that may name objects."""

import pytest

from modeling_qca.training.supervision.detection.question_words import object_phrases, object_words


@pytest.mark.parametrize(
    ("question", "phrases"),
    [
        ("What is the yellow mug on the table?", ["yellow mug", "table"]),
        ("is the chair to the left of the table", ["chair", "table"]),
        ("what shape is the yellow object", ["yellow object"]),
        ("is there a bed in the left half of the picture", ["bed"]),
        ("which is bigger the bed or the lamp", ["bed", "lamp"]),
        ("Is the dog's bed near the X-ray machine?", ["dog's bed", "x-ray machine"]),
        ("the lamp beside the lamp", ["lamp"]),
        ("what is that?", []),
        ("is the cafe\u0301 near the मेज?", ["café", "मेज"]),
    ],
)
def test_phrases_are_runs_of_words_that_may_name_objects(question, phrases):
    assert object_phrases(question) == phrases
    assert object_words(question) == [word for phrase in phrases for word in phrase.split()]
