"""Models of recipes: the answer head of a checkpoint, and vision layers that nothing reads."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from helpers.tiny import ANSWERS, save_tiny_model, tiny_batch, tiny_image, tiny_tokenizer
from transformers import ConvNextImageProcessorPil, LevitImageProcessorPil, SamImageProcessorPil

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.overlay_qca import sees_whole_picture
from modeling_qca.training.fitting.model_factory import build_model, image_shape, training_answers
from modeling_qca.training.fitting.recipe import make_recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_model(folder)
    return folder


def built(checkpoint, answers, **config):
    return build_model(make_recipe({"data": "d", "model": str(checkpoint), **config}, "test"), answers)[0].eval()


def test_known_answers_keep_their_weights_at_new_positions(checkpoint, caplog):
    answers = ["no", "purple", "red", "blue"]
    before = QCAForVisualQuestionAnswering.from_pretrained(checkpoint).eval()
    after = built(checkpoint, answers)
    assert (after.config.id2label, after.config.num_labels) == (dict(enumerate(answers)), 4)
    assert after.config.label2id == {answer: index for index, answer in enumerate(answers)}
    known = [index for index, answer in ANSWERS.items() if answer in answers]
    there = [answers.index(ANSWERS[index]) for index in known]
    logits = after(**tiny_batch()).logits
    torch.testing.assert_close(logits[:, there], before(**tiny_batch()).logits[:, known])
    assert len(known) == 3 and "1 of 4 answers start anew" in caplog.text
    assert "2 of 5 answers of the checkpoint are dropped: `keep_answers: true` keeps them" in caplog.text
    weight = after.classifier[-1].weight[answers.index("purple")]
    assert 0 < weight.abs().max() < 1 and torch.equal(after.classifier[-1].bias[1], torch.zeros(()))


def test_keep_answers_adds_new_answers_to_those_of_the_checkpoint(checkpoint):
    rows = datasets.Dataset.from_dict({"answers": [[{"answer": answer, "count": 1}] for answer in ("Purple", "Red")]})
    recipe = {"data": "d", "model": str(checkpoint), "keep_answers": True}
    assert training_answers(make_recipe(recipe, "test"), rows) == [*ANSWERS.values(), "purple"]
    encoders = {"data": "d", "vision_encoder": "v", "text_encoder": "t", "keep_answers": True}
    with pytest.raises(ValueError, match="`keep_answers` keeps those of a checkpoint, and there is no `model`"):
        make_recipe(encoders, "test")


def test_reordered_answers_keep_their_weights(checkpoint, caplog):
    answers = list(ANSWERS.values())
    for order in (answers, answers[::-1]):
        logits = built(checkpoint, order)(**tiny_batch()).logits
        expected = QCAForVisualQuestionAnswering.from_pretrained(checkpoint).eval()(**tiny_batch()).logits
        torch.testing.assert_close(logits[:, [order.index(answer) for answer in answers]], expected)
    assert not caplog.text


def test_warns_of_vision_layers_that_nothing_reads(checkpoint, caplog):
    built(checkpoint, list(ANSWERS.values()), vision_feature_layers=[1, 3])
    assert "layers, and those after" not in caplog.text
    built(checkpoint, list(ANSWERS.values()), vision_feature_layers=[1, 2])
    assert "has 3 layers, and those after layer 2 are not used: `vision_feature_layers` is [1, 2]" in caplog.text


@pytest.mark.parametrize(
    "images",
    [
        ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}),
        LevitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    ],
    ids=lambda images: type(images).__name__,
)
def test_processor_that_crops_by_its_own_rule_is_replaced_by_a_plain_one(checkpoint, tmp_path, images):
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    QCAProcessor(images, tiny_tokenizer()).save_pretrained(tmp_path / "checkpoint")
    recipe = make_recipe({"data": "d", "model": str(tmp_path / "checkpoint")}, "test")
    _, processor = build_model(recipe, list(ANSWERS.values()))
    plain, picture = processor.image_processor, tiny_image(size=(96, 48))
    assert sees_whole_picture(plain) and dict(plain.size) == {"height": 32, "width": 32}
    pixels = np.asarray(picture.resize((32, 32), images.resample), dtype=np.float64) / 255
    expected = (pixels - images.image_mean) / images.image_std
    seen = processor(images=picture)["pixel_values"][0].permute(1, 2, 0)
    torch.testing.assert_close(seen, torch.tensor(expected, dtype=torch.float32), atol=2e-2, rtol=0)
    shape = image_shape(recipe)
    assert (shape.height, shape.width) == (32, 32)
