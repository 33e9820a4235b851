"""Answers about one image, and why an answer does not count."""

import json

from helpers.tiny import save_tiny_model, tiny_image

from modeling_qca.training.prediction.ask import answer_questions


def test_the_answer_that_abstains_is_that_of_the_training(tmp_path):
    save_tiny_model(tmp_path)
    tiny_image().save(tmp_path / "image.png")
    arguments = str(tmp_path), str(tmp_path / "image.png"), ["where is it"], 1, None
    (plain,) = answer_questions(*arguments)
    best = plain.answers[0]["answer"]
    (tmp_path / "run.json").write_text(json.dumps({"abstain_answer": best}))
    (found,) = answer_questions(*arguments)
    assert not plain.abstained and found.reason == f"the model says {best!r}"
