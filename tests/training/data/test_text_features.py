"""Cached features of a frozen text encoder equal fresh ones, and each question is encoded once."""

import pytest
import torch
from helpers.tiny import tiny_batch, tiny_model

from modeling_qca.training.data import text_features
from modeling_qca.training.data.text_features import TextFeatureCache


def frozen_model():
    model = tiny_model()
    model.qca.text_encoder.requires_grad_(False)
    return model


def questions_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def count_reads(model) -> list[tuple[int, ...]]:
    read: list[tuple[int, ...]] = []
    model.qca.text_encoder.embeddings.register_forward_hook(
        lambda module, args, output: read.append(tuple(output.shape[:2]))
    )
    return read


def test_cached_features_give_the_logits_and_gradients_of_fresh_ones():
    model = frozen_model()
    batches = [tiny_batch(questions=4, seed=seed) for seed in (0, 1, 0)]
    for name in ("input_ids", "attention_mask"):
        batches[2][name][3] = batches[1][name][0]
    cache = TextFeatureCache(model, map(questions_of, batches))
    assert len(cache) == 8  # the third batch has no new question

    def outputs(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(**batch).logits
        logits.square().sum().backward()
        return [logits.detach(), model.qca.query_embedder.projection.weight.grad.clone()]

    for batch in batches:
        images = {name: batch[name] for name in ("pixel_values", "image_index")}
        for cached, fresh in zip(outputs(cache.read(questions_of(batch)) | images), outputs(batch), strict=True):
            torch.testing.assert_close(cached, fresh, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("maximum", "batch_size", "expected"),
    [
        (100, 64, [(3, 3), (2, 5), (1, 7)]),
        (100, 2, [(2, 3), (1, 3), (2, 5), (1, 7)]),
        (4, 64, [(2, 3), (1, 5), (1, 7)]),
    ],
)
def test_questions_of_one_length_are_encoded_together(monkeypatch, maximum, batch_size, expected):
    """Whichever side they are padded on; the first `MAXIMUM_QUESTIONS` of them."""
    monkeypatch.setattr(text_features, "MAXIMUM_QUESTIONS", maximum)
    monkeypatch.setattr(text_features, "BATCH_SIZE", batch_size)
    model, lengths = frozen_model(), [3, 5, 3, 7, 5, 3]
    questions = [torch.arange(length) + 5 + row for row, length in enumerate(lengths)]
    left, right = torch.zeros(2, len(lengths), 8, dtype=torch.long)
    for row, question in enumerate(questions):
        right[row, : len(question)] = left[row, 8 - len(question) :] = question
    batches = [
        {"input_ids": ids[rows], "attention_mask": (ids[rows] > 0).long()}
        for ids, rows in ((right, slice(4)), (left, slice(2, 6)))
    ]
    read = count_reads(model)
    cache = TextFeatureCache(model, batches)
    assert read == expected and len(cache) == min(maximum, len(questions))
    found = [
        cache.read({"input_ids": question[None], "attention_mask": torch.ones(1, len(question), dtype=torch.long)})
        for question in questions
    ]
    assert [features is None for features in found] == [row >= maximum for row in range(len(questions))]
    for question, features in zip(questions, found, strict=True):
        if features is not None:
            fresh = model.get_text_features(question[None]).last_hidden_state
            torch.testing.assert_close(features["text_features"], fresh, rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_batch_that_is_asked():
    """A resumed run asks the questions in other batches."""
    model = frozen_model()
    batch = questions_of(tiny_batch(questions=6))
    cache = TextFeatureCache(model, [batch])
    whole = cache.read(batch)
    for row in range(6):
        alone = cache.read({name: values[row : row + 1] for name, values in batch.items()})
        length = alone["attention_mask"].sum()
        assert torch.equal(alone["text_features"][0], whole["text_features"][row, :length])


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(text_features, "MAXIMUM_BYTES", 0)
    batch = questions_of(tiny_batch())
    cache = TextFeatureCache(frozen_model(), [batch])
    assert len(cache) == 0 and cache.read(batch) is None


def test_refuses_a_text_encoder_that_trains():
    with pytest.raises(ValueError, match="add `text` to `freeze`"):
        TextFeatureCache(tiny_model(), [])


def test_encoding_leaves_the_mode_of_the_model():
    model = frozen_model().train()
    TextFeatureCache(model, [questions_of(tiny_batch())])
    assert model.training and model.qca.text_encoder.training
