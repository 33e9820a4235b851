"""Answers of the pipeline, compared."""

import pytest

QUESTIONS = ["what is the color of the ball", "is there a big red cube", "how many"]


def scores(answers: list[dict]) -> dict[str, float]:
    return {answer["answer"]: answer["score"] for answer in answers}


def assert_same(answers, expected):
    if isinstance(expected, dict):
        assert answers["answer"] == expected["answer"]
        assert answers["score"] == pytest.approx(expected["score"], abs=1e-5)
    else:
        assert len(answers) == len(expected)
        for one, other in zip(answers, expected, strict=True):
            assert_same(one, other)
