"""Timing of a model."""

import io

import datasets
from helpers.tiny import tiny_image, tiny_model, tiny_processor

from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.evaluation.predictions import milliseconds_per_question


def test_times_each_question_with_an_image_of_its_own():
    """The vision encoder would run only once for questions that share an image."""
    model, seen, png = tiny_model(), [], io.BytesIO()
    tiny_image().save(png, "PNG")
    picture = {"path": None, "bytes": png.getvalue()}
    answers = [{"answer": "red", "count": 1}]
    row = {"image": picture, "image_id": "blank", "question": "red", "answers": answers}
    rows = datasets.Dataset.from_list([row] * 3).cast_column("image", datasets.Image(decode=False))
    model.register_forward_pre_hook(lambda _, args, inputs: seen.append(len(inputs["pixel_values"])), with_kwargs=True)
    assert milliseconds_per_question(model, rows, QuestionCollator(tiny_processor(), model.config), rounds=1) > 0
    assert set(seen) == {3}
