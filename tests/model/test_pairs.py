"""Images and questions are passed once; `image_index` and `question_index` say which of them each pair has."""

import pytest
import torch
from helpers.tiny import tiny_batch, tiny_image, tiny_model, tiny_processor
from transformers.utils import logging

PAIRS = {"image_index": torch.tensor([0, 1, 1, 0, 1]), "question_index": torch.tensor([0, 2, 1, 1, 0])}
VARIANTS = pytest.mark.parametrize(
    "fields",
    [
        {},
        {"query_tokens": "attended", "question_pooling": "mean", "answer_query": "initial"},
        {"vision_conditioning_layers": [1, 2], "token_budget": [3, 8], "token_budget_layer": 2},
    ],
    ids=["plain", "attended", "in_vision_encoder"],
)
TEXT = ("input_ids", "attention_mask", "token_type_ids")


def paired(**changes) -> dict:
    return tiny_batch() | PAIRS | changes


def repeated() -> dict:
    """The pairs of [`paired`] with each image and question written out."""
    batch = tiny_batch()
    repeated = {name: batch[name][PAIRS["question_index"]] for name in TEXT}
    return repeated | {"pixel_values": batch["pixel_values"][PAIRS["image_index"]]}


def assert_equal_outputs(first, second):
    assert first.keys() == second.keys()
    assert first.grid == second.grid
    for name in first.keys() - {"grid"}:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


@VARIANTS
def test_question_index_equals_repeated_questions(fields):
    model = tiny_model(**fields)
    assert_equal_outputs(model(**paired()), model(**repeated()))


def test_question_index_trains_as_repeated_questions_do():
    labels, targets, losses = torch.tensor([0, 1, 2, 3, 4]), torch.rand(5, 16), []
    for batch in (paired(), repeated()):
        model = tiny_model().train()
        loss = model(**batch, labels=labels, target_relevance=targets).loss
        loss.backward()
        losses.append((loss.detach(), model.qca.text_encoder.embeddings.word_embeddings.weight.grad))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


def test_question_index_alone_asks_one_question_of_several_images():
    model, batch = tiny_model(), tiny_batch(questions=1, images=3)
    batch = {name: value for name, value in batch.items() if name != "image_index"}
    asked = model(**batch, question_index=torch.zeros(3, dtype=torch.long))
    for image in range(3):
        alone = model(**batch | {"pixel_values": batch["pixel_values"][image : image + 1]})
        torch.testing.assert_close(asked.logits[image], alone.logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@VARIANTS
def test_cached_text_features_equal_fresh_ones(fields, side):
    model, batch = tiny_model(**fields), paired()
    if side == "left":
        batch |= {name: batch[name].flip(1) for name in TEXT}
    words = {name: batch.pop(name) for name in TEXT}
    text = model.get_text_features(**words)
    cached = model(**batch, text_features=text.last_hidden_state, attention_mask=text.attention_mask)
    fresh = model(**batch, **words)
    assert torch.equal(cached.logits, fresh.logits)
    assert torch.equal(cached.relevance, fresh.relevance)


def test_refuses_the_mask_of_left_padded_tokens_with_text_features():
    model, batch = tiny_model(), tiny_batch()
    words = {name: batch.pop(name).flip(1) for name in TEXT}
    text = model.get_text_features(**words)
    with pytest.raises(ValueError, match=r"begins with padding.*`attention_mask` of `get_text_features`"):
        model(**batch, text_features=text.last_hidden_state, attention_mask=words["attention_mask"])


def test_a_word_masked_out_of_text_features_is_not_read():
    model, batch = tiny_model(question_pooling="mean"), tiny_batch()
    text = model.get_text_features(**{name: batch.pop(name) for name in TEXT})
    hidden = text.attention_mask.clone()
    hidden[:, 1] = 0
    changed = text.last_hidden_state.clone()
    changed[:, 1] = 7.0
    both = (text.last_hidden_state, changed)
    assert torch.equal(*(model(**batch, text_features=states, attention_mask=hidden).logits for states in both))


def test_text_features_are_states_of_the_text_encoder_with_padding_behind():
    model, batch = tiny_model(question_pooling="mean"), tiny_batch()
    words = {name: batch[name] for name in TEXT}
    expected = model.qca.text_encoder(**words).last_hidden_state
    for given in (words, {name: value.flip(1) for name, value in words.items()}):
        text = model.get_text_features(**given)
        assert torch.equal(text.attention_mask, words["attention_mask"])
        mask = words["attention_mask"].bool()
        assert text.last_hidden_state.shape == expected.shape
    torch.testing.assert_close(model.get_text_features(**words).last_hidden_state[mask], expected[mask])
    torch.testing.assert_close(model.get_text_features(**words).pooler_output[1], expected[1][mask[1]].mean(0))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_features_are_a_model_output_or_a_tuple_as_asked(kind):
    model, batch = tiny_model(), tiny_batch()
    inputs = {name: batch[name] for name in (("pixel_values",) if kind == "image" else TEXT)}
    get = getattr(model, f"get_{kind}_features")
    features = get(**inputs, output_hidden_states=True)
    assert features.last_hidden_state.dim() == 3
    assert features.pooler_output.shape == (len(features.last_hidden_state), features.last_hidden_state.shape[-1])
    assert len(features.hidden_states) == (4 if kind == "image" else 3)
    assert type(get(**inputs, return_dict=False)) is tuple
    model.config.return_dict = model.qca.config.return_dict = False
    assert type(get(**inputs)) is tuple


def test_token_embeddings_stand_in_for_token_ids():
    model, batch = tiny_model(), paired()
    expected = model(**batch).logits
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    torch.testing.assert_close(model(**batch).logits, expected)


def test_relevance_labels_is_read_as_target_relevance():
    model, batch, targets = tiny_model(), tiny_batch(), torch.rand(3, 16)
    assert torch.equal(
        model(**batch, relevance_labels=targets).relevance_loss,
        model(**batch, target_relevance=targets).relevance_loss,
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"question_index": torch.tensor([0, 3, 0, 0, 0])}, ValueError, "`question_index` of pair 1 is 3, but there"),
        ({"question_index": torch.tensor([[0] * 5])}, ValueError, "`question_index` must be"),
        ({"question_index": torch.tensor([0, 1])}, ValueError, "one image for each of 2 questions"),
        ({"input_ids": None}, ValueError, "exactly one of `input_ids`"),
        ({"text_features": torch.zeros(3, 7, 24)}, ValueError, "exactly one of `input_ids`"),
        ({"input_ids": None, "text_features": torch.zeros(3, 7, 9)}, ValueError, r"must be \[questions, tokens, 24\]"),
        ({"input_ids": None, "text_features": torch.zeros(3, 9, 24)}, ValueError, "`attention_mask` "),
        ({"question": "what"}, TypeError, "no argument question"),
    ],
)
def test_names_the_pair_input_that_does_not_fit(changes, error, message):
    batch = {name: value for name, value in paired(**changes).items() if value is not None}
    with pytest.raises(error, match=message):
        tiny_model()(**batch)


def test_refuses_an_image_without_a_question_in_training():
    model, batch = tiny_model(), tiny_batch(questions=3, images=3) | {"image_index": torch.zeros(3, dtype=torch.long)}
    model(**batch)
    with pytest.raises(ValueError, match=r"about image 1 \(2 of 3 images"):
        model.train()(**batch)


def test_warns_of_concatenated_processor_outputs(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging.get_logger("modeling_qca.pairs_qca"), "warning_once", warnings.append)
    processor, model = tiny_processor(), tiny_model()
    outputs = [processor(images=tiny_image(seed), text=["what is red", "is it"]) for seed in (0, 1)]
    batch = {name: torch.cat([one[name] for one in outputs]) for name in outputs[0]}
    model(**batch)
    assert len(warnings) == 1 and "Stacking processor outputs keeps each `image_index` at 0" in warnings[0]
    model(**{name: torch.cat([one[name] for one in [*outputs, outputs[0]]]) for name in outputs[0]})
    assert warnings == warnings[:1] * 2  # one text, so that it is logged once
    features = model.get_image_features(batch.pop("pixel_values")).last_hidden_state
    model(**batch, image_features=features)  # some of the questions about cached images
    assert len(warnings) == 2
