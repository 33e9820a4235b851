"""Relevance of patches and tokens, compared with plain loops written from the papers."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_batch, tiny_image, tiny_model, tiny_processor
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import ModelOutput

from modeling_qca import QCAForVisualQuestionAnswering, QCAVisualQuestionAnsweringPipeline
from modeling_qca.evaluation_copy_qca import evaluation_copy
from modeling_qca.rollout_qca import ImageTokens, rollout

MODELS: dict[str, dict[str, Any]] = {
    "post_encoder": {},
    "attended_dinov2": {"vision": "dinov2", "query_tokens": "attended"},
    "mean_pooling": {"question_pooling": "mean", "vision": "siglip_vision_model", "relevance_scorer": "additive"},
    "initial_query": {"answer_query": "initial"},
    "attended_words": {"query_tokens": "attended", "num_attention_layers": 3},
    "several_layers": {"vision_feature_layers": [1, 3], "vision": "clip_vision_model"},
    "conditioned": {"vision_conditioning_layers": "late", "vision": "clip_vision_model"},
    "every_layer_conditioned": {"vision_conditioning_layers": "all", "vision_conditioning": "shared_projections"},
    "question_reads": {"vision_conditioning_layers": [1], "vision_conditioning": "question_reads_patches"},
    "budget": {"token_budget": 5, "token_budget_layer": 1, "relevance_scorer": "bilinear"},
    "budget_of_all_but_one": {"token_budget": 15, "token_budget_layer": 0},
    "adaptive_budget": {"token_budget": [2, 9], "token_budget_layer": 1, "token_budget_mass": 0.6},
    "conditioned_before_and_after_the_budget": {
        "token_budget": 6,
        "token_budget_layer": 1,
        "vision_conditioning_layers": [0, 2],
    },
}


def model_of(name: str) -> QCAForVisualQuestionAnswering:
    model = tiny_model(**MODELS[name])
    for conditioning in model.qca.vision_encoder.conditioning.values():
        torch.nn.init.constant_(conditioning.gate, 0.8)
    return model


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result = np.zeros((len(left), right.shape[1]))
    for i in range(left.shape[0]):
        for k in range(left.shape[1]):
            for j in range(right.shape[1]):
                result[i, j] += left[i, k] * right[k, j]
    return result


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def eager(model: QCAForVisualQuestionAnswering) -> QCAForVisualQuestionAnswering:
    for part in (model, model.qca.vision_encoder.backbone, model.qca.text_encoder):
        part.set_attn_implementation("eager")
    return model


def question(batch: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """One question of a batch, alone with its image and without padding."""
    image = batch["image_index"][index]
    length = int(batch["attention_mask"][index].sum())
    texts = {
        name: batch[name][index : index + 1, :length] for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    return {**texts, "pixel_values": batch["pixel_values"][image : image + 1]}


def through_budget(outputs: ModelOutput, prefix: int) -> tuple[np.ndarray, list[int]]:
    """Rows: the tokens after the budget in shares of those before it; and the kept patches."""
    kept = [i for i, keep in enumerate(outputs.patch_mask[0].tolist()) if keep]
    dropped = [i for i, keep in enumerate(outputs.patch_mask[0].tolist()) if not keep]
    size = prefix + outputs.patch_mask.shape[1]
    rows = [[float(column == token) for column in range(size)] for token in range(prefix)]
    rows += [[float(column == prefix + patch) for column in range(size)] for patch in kept]
    weights = outputs.budget_relevance[0].tolist()
    total = sum(weights[patch] for patch in dropped)
    rows.append([weights[i - prefix] / total if i - prefix in dropped else 0.0 for i in range(size)])
    return np.array(rows), kept


def rollout_reference(model: QCAForVisualQuestionAnswering, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """[hops, heads, patches] of one question (Abnar & Zuidema 2020, eq. 1)."""
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    size, patches = outputs.vision_attentions[0].shape[-1], outputs.relevance.shape[-1]
    prefix, read = size - patches, list(range(patches))
    joint, taken = np.eye(size), []
    for layer, attention in enumerate(outputs.vision_attentions):
        if outputs.patch_mask is not None and layer == model.config.token_budget_layer:
            made_of, read = through_budget(outputs, prefix)
            joint = product(made_of, joint)
        weights = array(attention[0]).mean(0)
        for i in range(len(weights)):
            weights[i, i] += 1.0
            weights[i] = weights[i] / weights[i].sum()
        joint = product(weights, joint)
        taken += [joint] * (layer + 1 in (model.config.vision_feature_layers or [3]))
    joint = sum(taken) / len(taken)
    relevance = array(outputs.relevance[0])
    result = np.zeros_like(relevance)
    for hop in range(relevance.shape[0]):
        for head in range(relevance.shape[1]):
            for row, patch in enumerate(read):
                result[hop, head] += relevance[hop, head, patch] * joint[prefix + row, prefix:]
            result[hop, head] = shares(result[hop, head])
    return result


class Cams:
    """Attention and its gradient for one question alone, through a zero added to every attention map."""

    def __init__(self, model: QCAForVisualQuestionAnswering, inputs: dict[str, torch.Tensor], monkeypatch):
        with torch.no_grad():
            answer = model(**inputs).logits.argmax()
        self.hops: list = []
        self.words: list = []
        self.conditioning: list = []
        self.pool = model.qca.query_embedder.pool
        for hop in model.qca.hops.layers:
            monkeypatch.setattr(hop.attention.softmax, "forward", self.probed_softmax(self.hops))
            if hop.question_attention is not None:
                monkeypatch.setattr(hop.question_attention.softmax, "forward", self.probed_softmax(self.words))
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", self.probed_attention)
        monkeypatch.setattr(model.qca.query_embedder, "pool", self.probed_pool)
        self.outputs = model(**inputs, output_attentions=True)
        monkeypatch.undo()
        for attention in (*self.outputs.vision_attentions, *self.outputs.text_attentions):
            attention.retain_grad()
        self.outputs.logits[0, answer].backward()

    def probed_pool(self, states, mask):
        self.states, self.pooled = states, torch.zeros(1, states.shape[-1], requires_grad=True)
        return self.pool(states, mask) + self.pooled

    def probed_softmax(self, record):
        def softmax(scores, mask):
            scores = scores.float() if mask is None else scores.float().masked_fill(~mask, -torch.inf)
            return self.probe(scores.softmax(-1), record)

        return softmax

    def probed_attention(self, query, key, value, attn_mask=None):
        assert attn_mask is None or attn_mask.all()  # a single question without padding
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return self.probe(weights, self.conditioning) @ value

    @staticmethod
    def probe(weights, record):
        zero = torch.zeros_like(weights, requires_grad=True)
        record.append((weights, zero))
        return weights + zero

    @staticmethod
    def cam(weights, gradient) -> np.ndarray:
        """Eq. 5."""
        heads = [np.maximum(array(w) * array(g), 0) for w, g in zip(weights[0], gradient[0], strict=True)]
        return sum(heads) / len(heads)


def normalized(relevancy: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Eq. 8 and 9."""
    result = residual.copy()
    for i in range(len(relevancy)):
        added = relevancy[i] - residual[i]
        if added.sum() > 0:
            result[i] += added / added.sum()
    return result


def gradient_reference(model, inputs, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """[patches] and [tokens] of one question (Chefer et al. 2021, eq. 5-11)."""
    config, cams = model.config, Cams(model, inputs, monkeypatch)
    outputs = cams.outputs
    r_tt = np.eye(inputs["input_ids"].shape[1])
    text_eye = r_tt
    for attention in outputs.text_attentions:
        gradient = torch.zeros_like(attention) if attention.grad is None else attention.grad
        r_tt = r_tt + product(Cams.cam(attention, gradient), r_tt)  # eq. 6
    r_ii = image_eye = np.eye(outputs.vision_attentions[0].shape[-1])
    r_it = np.zeros((len(r_ii), len(r_tt)))
    patches = outputs.relevance.shape[-1]
    prefix, read = len(r_ii) - patches, patches
    conditioning, words, taken = iter(cams.conditioning), iter(cams.words), []
    for layer, attention in enumerate(outputs.vision_attentions):
        if outputs.patch_mask is not None and layer == config.token_budget_layer:
            image_eye, kept = through_budget(outputs, prefix)
            r_ii, r_it, read = product(image_eye, r_ii), product(image_eye, r_it), len(kept)
        if layer in config.conditioned_layers:
            weights, zero = next(conditioning)
            cam = Cams.cam(weights, zero.grad)
            if config.vision_conditioning == "question_reads_patches":
                r_ii = r_ii + np.repeat(product(cam, r_ii), len(r_ii), 0)
                r_it = r_it + np.repeat(product(cam, r_it), len(r_it), 0)
            else:
                own = product(normalized(r_ii, image_eye), image_eye.T)
                r_it = r_it + product(product(own.T, cam), normalized(r_tt, text_eye))  # eq. 10
        cam = Cams.cam(attention, attention.grad)
        r_ii, r_it = r_ii + product(cam, r_ii), r_it + product(cam, r_it)  # eq. 6 and 7
        taken += [normalized(r_ii, image_eye)] * (layer + 1 in (config.vision_feature_layers or [3]))
    r_ii = sum(taken) / len(taken)
    r_qt, own = r_tt, normalized(r_tt, text_eye)
    if config.query_tokens != "all":
        pooling = np.zeros((1, len(r_tt)))
        pooling[0, 0] = 1.0
        if config.question_pooling == "mean":
            for token in range(len(r_tt)):
                slope = float(array(cams.pooled.grad[0]) @ array(cams.states[0, token]))
                pooling[0, token] = max(slope / len(r_tt), 0)
        r_qt, own = product(pooling, own), np.eye(1)
    r_qi = np.zeros((len(r_qt), len(r_ii[0])))
    for weights, zero in cams.hops:
        cam = Cams.cam(weights, zero.grad)
        if config.query_tokens == "all":
            own = normalized(r_qt, text_eye)
        for word_weights, word_zero in [next(words)] if config.query_tokens == "attended" else []:
            r_qt = r_qt + product(Cams.cam(word_weights, word_zero.grad), normalized(r_tt, text_eye))  # eq. 10
        r_qi = r_qi + product(product(own.T, cam), r_ii[prefix : prefix + read])  # eq. 10
        r_qt = r_qt + product(cam, r_it[prefix : prefix + read])  # eq. 11
    return shares(r_qi.mean(0)[prefix:]), shares(r_qt.mean(0))


@settings(max_examples=20, deadline=None)
@given(layers=st.integers(1, 4), heads=st.integers(1, 3), size=st.integers(1, 7), seed=st.integers(0, 99))
def test_rollout_multiplies_layers_with_the_identity_added(layers, heads, size, seed):
    generator = torch.Generator().manual_seed(seed)
    attentions = [torch.rand(2, heads, size, size, generator=generator).softmax(-1) for _ in range(layers)]
    for row, actual in enumerate(rollout(attentions)):
        expected = np.eye(size)
        for attention in attentions:
            expected = product(0.5 * array(attention[row]).mean(0) + 0.5 * np.eye(size), expected)
        np.testing.assert_allclose(array(actual), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_rollout_relevance_equals_a_loop_over_the_vision_layers(name):
    model, batch = model_of(name), tiny_batch()
    explanation = model.explain(batch, method="rollout")
    assert explanation.grid == (4, 4)
    eager(model)
    for index in range(3):
        expected = rollout_reference(model, question(batch, index))
        np.testing.assert_allclose(array(explanation.relevance[index]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_relevance_equals_the_rules_of_the_paper(name, monkeypatch):
    model, batch = model_of(name), tiny_batch()
    explanation = model.explain(batch, method="gradient")
    eager(model)
    for index in range(3):
        patches, tokens = gradient_reference(model, question(batch, index), monkeypatch)
        np.testing.assert_allclose(array(explanation.relevance[index, 0, 0]), patches, atol=1e-6, rtol=1e-5)
        length = int(batch["attention_mask"][index].sum())
        np.testing.assert_allclose(array(explanation.token_relevance[index, 0, :length]), tokens, atol=1e-6, rtol=1e-5)
        assert (explanation.token_relevance[index, 0, length:] == 0).all()


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_rollout_of_the_question_starts_from_the_pooled_tokens(pooling):
    model, batch = tiny_model(question_pooling=pooling), tiny_batch()
    relevance = model.explain(batch, method="rollout").token_relevance
    eager(model)
    for index in range(3):
        inputs = question(batch, index)
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).text_attentions
        joint, length = np.eye(inputs["input_ids"].shape[1]), inputs["input_ids"].shape[1]
        for attention in attentions:
            joint = product(0.5 * array(attention[0]).mean(0) + 0.5 * np.eye(length), joint)
        expected = {"cls": joint[0], "mean": joint.mean(0), "last": joint[-1]}[pooling]
        np.testing.assert_allclose(array(relevance[index, 0, :length]), expected, atol=1e-6, rtol=0)
        assert (relevance[index, 0, length:] == 0).all()


def test_method_relevance_returns_the_maps_of_the_hops():
    model, batch = tiny_model(), tiny_batch()
    explanation = model.explain(batch)
    with torch.no_grad():
        outputs = model(**batch)
    torch.testing.assert_close(explanation.relevance, outputs.relevance)
    torch.testing.assert_close(explanation.logits, outputs.logits)
    assert explanation.answers.tolist() == outputs.logits.argmax(-1).tolist()


def test_hops_that_attend_to_the_question_give_token_relevance():
    model, batch = tiny_model(query_tokens="attended"), tiny_batch()
    read = []
    for hop in model.qca.hops.layers:
        hop.question_attention.softmax.register_forward_hook(
            lambda module, inputs, output: read.append(output[:, 0, 0])
        )
    relevance = model.explain(batch).token_relevance
    torch.testing.assert_close(relevance, torch.stack(read, dim=1))
    assert (relevance[:, 0] - relevance[:, 1]).abs().max() > 1e-3
    rolled = model.explain(batch, method="rollout").token_relevance
    eager(model)
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).text_attentions
    for b, mask in enumerate(batch["attention_mask"]):
        joint = array(relevance[b])
        for layer in reversed(attentions):
            joint = product(joint, (np.eye(layer.shape[-1]) + array(layer[b]).mean(0)) / 2)
        np.testing.assert_allclose(array(rolled[b]), joint * array(mask), atol=1e-5)
    assert tiny_model().explain(batch).token_relevance is None


def test_gradient_relevance_depends_on_the_answer_but_not_on_the_batch():
    model, batch = tiny_model(), tiny_batch()
    together = model.explain(batch, method="gradient", answers=torch.tensor([0, 1, 2]))
    other = model.explain(batch, method="gradient", answers=torch.tensor([3, 3, 3]))
    assert (together.relevance - other.relevance).abs().max() > 1e-3
    alone = model.explain(question(batch, 1), method="gradient", answers=torch.tensor([1]))
    torch.testing.assert_close(alone.relevance[0], together.relevance[1], atol=1e-6, rtol=0)
    assert together.answers.tolist() == [0, 1, 2]


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
@pytest.mark.parametrize("name", ["post_encoder", "conditioned", "budget"])
def test_explain_does_not_change_the_model(name, method):
    model, batch = model_of(name), tiny_batch()
    expected = model.explain(batch, method=method)
    model.requires_grad_(False)
    model.train()
    model.qca.vision_encoder.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with torch.no_grad():
        frozen = model.explain(batch, method=method)
    torch.testing.assert_close(frozen.relevance, expected.relevance)
    assert model.training and model.qca.hops.training and not model.qca.vision_encoder.backbone.training
    assert {part.config._attn_implementation for part in (model, model.qca.vision_encoder.backbone)} == {"sdpa"}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
def test_maps_sum_to_one_over_the_patches_that_the_budget_kept(method):
    model, batch = tiny_model(token_budget=5, token_budget_layer=1), tiny_batch(size=(32, 48))
    explanation = model.explain(batch, method=method)
    assert explanation.grid == (4, 6)
    torch.testing.assert_close(explanation.relevance.sum(-1), torch.ones(explanation.relevance.shape[:3]))
    assert explanation.patch_mask.sum(-1).tolist() == [5, 5, 5]
    if method == "relevance":
        assert (explanation.relevance.amax((1, 2))[~explanation.patch_mask] == 0).all()


def test_post_process_relevance_resizes_an_explanation():
    model, processor = tiny_model(), tiny_processor()
    explanation = model.explain(processor(images=tiny_image(size=(50, 20)), text="what is left"), method="rollout")
    (on_grid,) = processor.post_process_relevance(explanation)
    (on_image,) = processor.post_process_relevance(explanation, [(20, 50)])
    assert on_grid.shape == (2, 4, 4)
    assert on_image.shape == (2, 20, 50)


def test_methods_and_inputs_that_cannot_be_explained_are_refused():
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match="'saliency'; it is one of relevance, rollout, gradient"):
        model.explain(batch, method="saliency")
    for method in ("relevance", "rollout"):
        with pytest.raises(ValueError, match=r"num_attention_layers=0.*method='gradient'"):
            tiny_model(num_attention_layers=0).explain(batch, method=method)
    features = model.get_image_features(batch.pop("pixel_values"))
    cached = {**batch, "image_features": features.last_hidden_state}
    assert model.explain(cached).relevance.shape == (3, 2, 4, 16)
    for method in ("rollout", "gradient"):
        with pytest.raises(ValueError, match="pass `pixel_values`"):
            model.explain(cached, method=method)
    for method in ("relevance", "rollout", "gradient"):
        for images in (1, 4):
            with pytest.raises(ValueError, match=f"3 questions but {images} images"):
                model.explain(tiny_batch(images=images) | {"image_index": None}, method=method)
        whole = tiny_batch(images=3) | {"attention_mask": torch.ones(3, 7).long()}
        del whole["image_index"]
        left_out = whole | {"attention_mask": None, "image_index": None, "token_type_ids": None}
        maps = [model.explain(inputs, method=method).relevance for inputs in (whole, left_out)]
        assert torch.equal(*maps)
    windows = ModelOutput(vision_attentions=(torch.rand(8, 2, 4, 4),), relevance=torch.rand(2, 1, 1, 16))
    with pytest.raises(ValueError, match='method="relevance"'):
        ImageTokens.of(model.config, windows)


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
@pytest.mark.parametrize("name", ["attended_words", "mean_pooling", "attended_dinov2"])
def test_left_padding_moves_token_relevance_and_nothing_else(name, method):
    model, right = model_of(name), tiny_batch()
    names = ("input_ids", "attention_mask", "token_type_ids")
    order = right["attention_mask"].sort(dim=1, stable=True).indices
    left = {**right, **{key: right[key].gather(1, order) for key in names}}
    assert not left["attention_mask"][1:, 0].any()
    one, other = model.explain(right, method), model.explain(left, method)
    torch.testing.assert_close(other.relevance, one.relevance)
    if one.token_relevance is None:
        assert other.token_relevance is None
        return
    moved = one.token_relevance.gather(2, order[:, None].expand_as(one.token_relevance))
    torch.testing.assert_close(other.token_relevance, moved)
    assert not other.token_relevance.masked_select(left["attention_mask"][:, None] == 0).any()


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
def test_shared_questions_have_the_relevance_of_repeated_ones(method):
    model, batch = tiny_model(query_tokens="attended"), tiny_batch(questions=2, images=3)
    names = ("input_ids", "attention_mask", "token_type_ids")
    question_index = torch.tensor([1, 0, 1])
    shared = {name: batch[name] for name in names} | {"pixel_values": batch["pixel_values"]}
    repeated = shared | {name: batch[name][question_index] for name in names}
    one = model.explain(shared | {"question_index": question_index}, method)
    other = model.explain(repeated, method)
    torch.testing.assert_close(one.relevance, other.relevance)
    torch.testing.assert_close(one.token_relevance, other.token_relevance)


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
def test_columns_of_padding_beyond_the_text_encoder_change_no_relevance(method):
    model, batch = tiny_model(query_tokens="attended"), tiny_batch()
    names = ("input_ids", "attention_mask", "token_type_ids")
    padded = batch | {name: torch.nn.functional.pad(batch[name], (0, 121)) for name in names}
    one, other = model.explain(batch, method), model.explain(padded, method)
    torch.testing.assert_close(other.relevance, one.relevance)
    assert other.token_relevance.shape[-1] == 128
    torch.testing.assert_close(other.token_relevance[..., :7], one.token_relevance)
    assert not other.token_relevance[..., 7:].any()


def test_cached_questions_are_explained_by_the_hops_alone():
    model, batch = tiny_model(), tiny_batch()
    expected = model.explain(batch)
    words = {name: batch.pop(name) for name in ("input_ids", "token_type_ids")}
    text = model.get_text_features(**words, attention_mask=batch["attention_mask"])
    cached = batch | {"text_features": text.last_hidden_state, "attention_mask": text.attention_mask}
    torch.testing.assert_close(model.explain(cached).relevance, expected.relevance)
    for method in ("rollout", "gradient"):
        with pytest.raises(ValueError, match="pass `input_ids`"):
            model.explain(cached, method)


def test_an_image_index_out_of_range_is_refused_by_every_method():
    for method in ("relevance", "rollout", "gradient"):
        for image in (-1, 2):
            with pytest.raises(ValueError, match="image_index"):
                tiny_model().explain(tiny_batch() | {"image_index": torch.tensor([0, image, 1])}, method)


@pytest.mark.parametrize("vision", ["vit", "siglip_vision_model"])
def test_gradient_without_hops_is_grad_cam_of_the_mean_followed_back_through_the_encoder(vision):
    model = tiny_model(vision, num_attention_layers=0)
    inputs = tiny_processor()(images=tiny_image(), text="what is left of the cube")
    copied, embedded = evaluation_copy(model, eager_attention=True), []
    copied.qca.patch_embedder.register_forward_hook(lambda module, args, output: embedded.append(output))
    outputs = copied(**inputs | {"pixel_values": inputs["pixel_values"].requires_grad_()}, output_attentions=True)
    attentions = outputs.vision_attentions
    of_patches, *gradients = torch.autograd.grad(outputs.logits.max(), [embedded[0], *attentions])
    relevancy = identity = torch.eye(attentions[0].shape[-1])
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevancy = relevancy + (attention * gradient).clamp(min=0).mean(dim=1)[0] @ relevancy
    added = relevancy - identity
    rows = (added / added.sum(dim=-1, keepdim=True) + identity)[-16:]  # of the patches
    grad_cam = (embedded[0] * of_patches).sum(dim=-1).clamp(min=0)[0]
    expected = (grad_cam @ rows)[-16:]
    explanation = model.explain(inputs, method="gradient")
    torch.testing.assert_close(explanation.relevance[0, 0, 0], expected / expected.sum())
    assert explanation.relevance.std() > 0.001


def test_gradient_without_hops_is_zero_where_the_budget_dropped_patches():
    model = tiny_model(num_attention_layers=0, token_budget=6, token_budget_layer=2)
    inputs = tiny_processor()(images=tiny_image(), text=["what is red", "how many"])
    explanation = model.explain(inputs, method="gradient")
    assert explanation.relevance.shape == (2, 1, 1, 16)
    torch.testing.assert_close(explanation.relevance.sum(dim=-1), torch.ones(2, 1, 1))


def test_look_at_a_model_without_hops_gives_the_gradient_and_says_so():
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(num_attention_layers=0), processor=tiny_processor())
    look = ask.look(tiny_image(), "what is red")
    assert look.method == "gradient" and look.relevance.shape == (1, 4, 4)
    torch.testing.assert_close(look.relevance, ask.look(tiny_image(), "what is red", method="gradient").relevance)
