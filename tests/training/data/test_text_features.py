"""A frozen text encoder reads each question once, and its states are those it would have given anyway."""

import pytest
import torch
from helpers.tiny import tiny_batch, tiny_model

from modeling_qca.training.data import text_features as question_cache
from modeling_qca.training.data.text_features import cache_text_features


def test_questions_are_read_once_and_give_the_same_gradients():
    model = tiny_model().train()
    model.qca.text_encoder.eval().requires_grad_(False)
    model.classifier.eval(), model.fusion.eval(), model.qca.patch_embedder.eval(), model.qca.hops.eval()
    batches = [tiny_batch(questions=4, seed=seed) for seed in (0, 1, 0)]
    batches[2]["input_ids"][3] = batches[1]["input_ids"][0]
    batches[2]["attention_mask"][3] = batches[1]["attention_mask"][0]

    def gradients() -> list[torch.Tensor]:
        found = []
        for batch in batches:
            model.zero_grad()
            model(**batch).logits.square().sum().backward()
            found.append(model.qca.query_embedder.projection.weight.grad.clone())
        return found

    read = []
    handle = model.qca.text_encoder.encoder.layer[0].register_forward_pre_hook(
        lambda module, args: read.append(len(args[0]))
    )
    with cache_text_features(model, True):
        remembered = gradients()
    assert read == [1] * 8  # the third batch brings no new question
    expected = gradients()
    assert read == [1] * 8 + [4] * 3
    handle.remove()
    for ours, theirs in zip(remembered, expected, strict=True):
        assert ours.allclose(theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("maximum", "together", "expected"),
    [
        (100, 64, [(3, 3), (2, 5), (1, 7)]),
        (100, 2, [(2, 3), (1, 3), (2, 5), (1, 7)]),
        (4, 64, [(2, 3), (1, 5), (1, 7)]),
    ],
)
def test_known_questions_are_read_together_when_the_first_is_asked(monkeypatch, maximum, together, expected):
    """Those of one length in one batch, whatever company they come in later, padded on either side."""
    monkeypatch.setattr(question_cache, "MAXIMUM", maximum)
    monkeypatch.setattr(question_cache, "TOGETHER", together)
    model = tiny_model().train()
    encoder = model.qca.text_encoder.requires_grad_(False)
    lengths = [3, 5, 3, 7, 5, 3]
    questions = [torch.arange(length) + 5 + row for row, length in enumerate(lengths)]
    left, right = torch.zeros(2, len(lengths), 8, dtype=torch.long)
    for row, question in enumerate(questions):
        right[row, : len(question)] = left[row, 8 - len(question) :] = question
    batches = [
        {"input_ids": ids[rows], "attention_mask": (ids[rows] > 0).long()}
        for ids, rows in ((right, slice(4)), (left, slice(2, 6)))
    ]

    def alone(question: torch.Tensor) -> torch.Tensor:
        return encoder(question[None], torch.ones(1, len(question), dtype=torch.long)).last_hidden_state[0]

    read = []
    encoder.embeddings.register_forward_hook(lambda module, args, output: read.append(tuple(output.shape[:2])))
    with cache_text_features(model, True, batches):
        assert encoder.training and not read
        encoder.eval()
        found = [alone(question) for question in questions]
        assert read[: len(expected)] == expected
        assert len(read) - len(expected) == max(len(questions) - maximum, 0)  # no room for these
    for question, states in zip(questions, found, strict=True):
        assert states.allclose(alone(question), rtol=1e-5, atol=1e-6)


def test_an_encoder_that_trains_is_asked_every_time():
    model, read = tiny_model().train(), []
    model.qca.text_encoder.embeddings.register_forward_hook(lambda module, args, output: read.append(len(output)))
    with cache_text_features(model, False):
        assert "forward" not in vars(model.qca.text_encoder)
    with cache_text_features(model, True):
        for _ in range(2):
            model(**tiny_batch(questions=4))
    assert read == [4, 4]
    assert "forward" not in vars(model.qca.text_encoder)
