"""A question's result depends on itself and its image alone, whatever the batch, its padding or its image's size."""

from typing import Any

import pytest
import torch
from helpers.tiny import VISION_CONFIGS, tiny_batch, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_qca import QCAForVisualQuestionAnswering

PER_QUESTION = ("logits", "relevance")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attended": {"query_tokens": "attended", "vision_feature_layers": [1, 3]},
    "initial_query": {
        "spatial_fusion": True,
        "question_pooling": "mean",
        "answer_query": "initial",
        "num_classifier_layers": 1,
    },
    "mean": {"answer_evidence": "hops_and_mean", "token_budget": [2, 12], "token_budget_layer": 1},
    "broadcast": {"patch_update": "broadcast", "question_pooling": "last", "relevance_scorer": "bilinear"},
    "tokens": {
        "query_tokens": "attended",
        "patch_update": "broadcast",
        "relevance_scorer": "additive",
        "question_pooling": "mean",
    },
    "conditioned": {"vision_conditioning_layers": [1], "vision_conditioning": "question_reads_patches"},
    "shared": {"vision_conditioning_layers": "all", "vision_conditioning": "shared_projections"},
    "budget": {"vision_conditioning_layers": [2], "token_budget": 5, "token_budget_layer": 1},
    "spread": {"token_budget": 5, "token_budget_layer": 1, "token_budget_selection": "spread"},
    "adaptive": {
        "spatial_fusion": True,
        "token_budget": [2, 12],
        "token_budget_layer": 1,
        "token_budget_mass": 0.6,
        "query_tokens": "attended",
    },
}
MODELS: dict[tuple[str, str], QCAForVisualQuestionAnswering] = {}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
few = settings(max_examples=10, deadline=None)


def model_of(variant: str, vision: str = "vit") -> QCAForVisualQuestionAnswering:
    """One model for all examples, with its gates open."""
    if (vision, variant) not in MODELS:
        model = tiny_model(vision, **VARIANTS[variant])
        for layer in model.qca.vision_encoder.conditioning.values():
            torch.nn.init.constant_(layer.gate, 0.7)
        MODELS[vision, variant] = model
    return MODELS[vision, variant]


@torch.no_grad()
def answers(model: QCAForVisualQuestionAnswering, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    outputs = model(**batch)
    return {name: outputs[name] for name in PER_QUESTION}


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name in PER_QUESTION:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


def rows(batch: dict[str, torch.Tensor], chosen: list[int]) -> dict[str, torch.Tensor]:
    """The questions `chosen` of a batch, about the same images."""
    return {name: values if name == "pixel_values" else values[chosen] for name, values in batch.items()}


@each_variant
@few
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 9), st.data())
def test_outputs_do_not_depend_on_the_rest_of_the_batch(variant, questions, images, seed, data):
    model, batch = model_of(variant), tiny_batch(questions, images, seed=seed)
    together = answers(model, batch)
    chosen = data.draw(st.permutations(range(questions)))[: data.draw(st.integers(1, questions))]
    assert_close(answers(model, rows(batch, chosen)), {name: values[chosen] for name, values in together.items()})
    alone = rows(batch, chosen[:1])
    alone["pixel_values"] = batch["pixel_values"][alone["image_index"]]
    alone["image_index"] = torch.tensor([0])
    assert_close(answers(model, alone), {name: values[chosen[:1]] for name, values in together.items()})


@each_variant
@few
@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, 9))
def test_image_index_equals_repeated_images(variant, image_index, seed):
    model, batch = model_of(variant), tiny_batch(len(image_index), 3, seed=seed)
    batch["image_index"] = torch.tensor(image_index)
    repeated = batch | {"pixel_values": batch["pixel_values"][image_index]}
    del repeated["image_index"]
    assert_close(answers(model, batch), answers(model, repeated))


@each_variant
@few
@given(st.integers(1, 4), st.integers(0, 9), st.integers(1, 3), st.integers(1, 3))
def test_cached_image_features_equal_fresh_ones(variant, questions, seed, rows, columns):
    model, batch = model_of(variant), tiny_batch(questions, 2, size=(8 * rows, 8 * columns), seed=seed)
    expected = answers(model, batch)
    with torch.no_grad():
        one_by_one = [model.get_image_features(image[None]) for image in batch.pop("pixel_values")]
    assert {features.grid for features in one_by_one} == {(rows, columns)}
    features = torch.cat([features.last_hidden_state for features in one_by_one])
    assert_close(answers(model, batch | {"image_features": features, "image_grid": (rows, columns)}), expected)


def test_cached_features_of_the_default_image_size_need_no_grid():
    model, batch = model_of("plain"), tiny_batch()
    expected = answers(model, batch)
    features = model.get_image_features(batch.pop("pixel_values")).last_hidden_state
    assert_close(answers(model, batch | {"image_features": features}), expected)


@each_variant
@few
@given(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=4, max_size=4), st.integers(0, 9))
def test_padding_on_either_side_changes_nothing(variant, questions, left, seed):
    model, batch = model_of(variant), tiny_batch(questions, 1, seed=seed)
    expected = answers(model, batch)
    shifted = batch | {name: batch[name].new_zeros(questions, 11) for name in ("input_ids", "attention_mask")}
    shifted["input_ids"] += 7  # what padding holds must not matter
    for row in range(questions):
        for name in ("input_ids", "attention_mask"):
            shifted[name][row, left[row] : left[row] + 7] = batch[name][row]
    shifted["token_type_ids"] = torch.zeros_like(shifted["input_ids"])
    assert_close(answers(model, shifted), expected)


@each_variant
def test_question_of_padding_alone_gives_no_nan(variant):
    batch = tiny_batch()
    batch["attention_mask"][1] = 0
    outputs = answers(model_of(variant), batch)
    assert all(values.isfinite().all() for values in outputs.values())


@pytest.mark.parametrize("vision", VISION_CONFIGS)
@pytest.mark.parametrize("variant", ["plain", "budget"])
@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), spare=st.integers(0, 7))
def test_relevance_has_the_grid_of_images_of_any_shape(vision, variant, rows, columns, spare):
    model = model_of(variant, vision)
    with torch.no_grad():
        outputs = model(**tiny_batch(size=(8 * rows + spare, 8 * columns)))
    assert outputs.grid == (rows, columns)
    assert outputs.relevance.shape == (3, 2, 4, rows * columns)
    assert outputs.relevance.min() >= 0
    assert outputs.relevance.sum(-1).allclose(torch.ones(3, 2, 4), atol=1e-5)
    if variant == "budget":
        assert ((outputs.relevance > 0).sum(-1) <= min(5, rows * columns)).all()


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_relevance_is_in_raster_order(vision):
    """A hop that scores one patch above all others points at its place in the grid."""
    model = tiny_model(vision, num_attention_layers=1)
    features = model.get_image_features(torch.randn(1, 3, 24, 40))
    prefix = features.last_hidden_state.shape[1] - 15
    norms = model.qca.patch_embedder(features.last_hidden_state[:, prefix:], torch.zeros(15, 2))
    model.qca.patch_embedder.position[2].weight.data.zero_()
    scorer = model.qca.hops.layers[0].attention.scorer
    batch = tiny_batch(1, 1)
    del batch["pixel_values"]
    for patch in (0, 7, 14):
        wanted = model.qca.hops.layers[0].patch_norm(norms)[0, patch]
        scorer.q_proj.weight.data.zero_()
        scorer.q_proj.bias.data = 50 * (wanted @ scorer.key_proj.weight).detach()
        outputs = model(**batch, image_features=features.last_hidden_state, image_grid=(3, 5))
        assert outputs.relevance[0, 0].mean(0).argmax().item() == patch
