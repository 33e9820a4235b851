"""Conditioning of the vision encoder: closed gates change nothing, open gates depend on the question alone."""

import inspect
from pathlib import Path

import pytest
import torch
from helpers.tiny import LAYOUT_CONFIGS, VISION_CONFIGS, checkpoint_activations, tiny_batch, tiny_model
from torch import nn
from transformers import AutoModel

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.conditioning_qca import GatedConditioning
from modeling_qca.states_qca import LayerProjections, QuestionStates

MODES = ("patches_read_question", "question_reads_patches", "shared_projections")
QUESTION_INSIDE = {mode: {"vision_conditioning_layers": [0, 2], "vision_conditioning": mode} for mode in MODES} | {
    "nothing": {},
    "budget_of_all": {"token_budget": 200, "token_budget_layer": 1},
    "adaptive_budget_of_all": {"token_budget": [100, 400], "token_budget_layer": 1},
    "budget_and_conditioning": {"token_budget": 200, "token_budget_layer": 1, "vision_conditioning_layers": "all"},
}
SIZES = {"square": (32, 32), "non_square": (24, 40), "larger": (48, 48)}


def open_gates(model: QCAForVisualQuestionAnswering) -> QCAForVisualQuestionAnswering:
    for module in model.modules():
        if isinstance(module, GatedConditioning):
            nn.init.constant_(module.gate, 0.7)
    return model


def vision_outputs(model: QCAForVisualQuestionAnswering, batch: dict[str, torch.Tensor], **requested: bool):
    """What the vision encoder hands to the hops, with one row a question."""
    encoder, seen = model.qca.vision_encoder, []
    handle = encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    model(**batch, **requested)
    handle.remove()
    return seen[0]


def count_runs(model: QCAForVisualQuestionAnswering) -> list[int]:
    """Rows of each run of a vision layer from now on."""
    rows: list[int] = []
    for layer in model.qca.vision_encoder.backbone.layers:
        layer.attention.register_forward_hook(lambda module, args, output: rows.append(output[0].shape[0]))
    return rows


def backbone_outputs(model: QCAForVisualQuestionAnswering, pixel_values: torch.Tensor, **requested: bool):
    """The backbone's own forward, through its own class."""
    backbone = model.qca.vision_encoder.backbone
    own = type(backbone)(backbone.config).eval()
    own.load_state_dict(backbone.state_dict())
    takes_option = "interpolate_pos_encoding" in inspect.signature(own.forward).parameters
    if pixel_values.shape[-2:] != (32, 32) and takes_option:
        requested["interpolate_pos_encoding"] = True
    return own(pixel_values, **requested)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("inside", QUESTION_INSIDE)
@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_closed_gates_give_bit_identical_patches(vision: str, inside: str, attention: str) -> None:
    model = tiny_model(vision, **QUESTION_INSIDE[inside])
    model.set_attn_implementation(attention)
    for size in SIZES.values():
        batch = tiny_batch(questions=2, images=2, size=size)
        with torch.no_grad():
            patches = vision_outputs(model, batch).patches
            own = backbone_outputs(model, batch["pixel_values"]).last_hidden_state
        num_patches = size[0] * size[1] // 64
        assert patches.shape[1] == num_patches
        assert torch.equal(patches, own[:, -num_patches:])


@pytest.mark.parametrize("vision", sorted(LAYOUT_CONFIGS.keys() - VISION_CONFIGS.keys()))
def test_further_encoders_give_bit_identical_patches_and_layers(vision: str) -> None:
    batch = tiny_batch(questions=2, images=2, size=SIZES["non_square"])
    for inside in ("nothing", "shared_projections", "budget_and_conditioning"):
        model = tiny_model(vision, **QUESTION_INSIDE[inside])
        with torch.no_grad():
            output = vision_outputs(model, batch, output_hidden_states=True)
            own = backbone_outputs(model, batch["pixel_values"], output_hidden_states=True)
        assert torch.equal(output.patches, own.last_hidden_state[:, -15:])
        assert len(output.hidden_states) == len(own.hidden_states) == 4
        assert all(torch.equal(a, b) for a, b in zip(output.hidden_states, own.hidden_states, strict=True))
    model = tiny_model(vision, vision_feature_layers=[3])
    with torch.no_grad():
        assert torch.equal(vision_outputs(model, batch).patches, own.last_hidden_state[:, -15:])


def test_rotary_embeddings_of_cached_features_equal_fresh_ones_in_half_precision() -> None:
    model = tiny_model("dinov3_vit", vision_conditioning_layers="late").to(torch.bfloat16)
    batch = tiny_batch(questions=2, images=2, size=SIZES["non_square"])
    with torch.no_grad():
        expected = model(**batch).logits
        features = model.get_image_features(batch.pop("pixel_values"))
        cached = model(**batch, image_features=features.last_hidden_state, image_grid=features.grid).logits
    assert torch.equal(cached, expected)


def test_training_augments_the_rotary_positions_once_for_all_layers() -> None:
    """The positions are drawn anew in each forward pass, also for the layers that read the question."""
    model = tiny_model("dinov3_vit", vision_conditioning_layers=[2])
    model.config.vision_config.pos_embed_rescale = 2.0
    batch, seen = tiny_batch(), []
    for layer in model.qca.vision_encoder.backbone.model.layer:
        layer.attention.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_embeddings"][0]), with_kwargs=True
        )
    model.train()(**batch)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    model(**batch)
    assert not torch.equal(seen[0], seen[3])


@pytest.mark.parametrize("inside", ["nothing", *MODES])
@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_recorded_layers_equal_those_of_the_backbone(vision: str, inside: str) -> None:
    model = tiny_model(vision, **QUESTION_INSIDE[inside])
    model.set_attn_implementation("eager")
    batch = tiny_batch(questions=2, images=2)
    requested = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        outputs, own = model(**batch, **requested), backbone_outputs(model, batch["pixel_values"], **requested)
    for name in ("hidden_states", "attentions"):
        ours, theirs = outputs[f"vision_{name}"], own[name]
        assert len(ours) == len(theirs) == (4 if name == "hidden_states" else 3)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("layers", [[2, 1], [1, 3]])
@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_feature_layers_equal_those_of_the_backbone_and_later_layers_do_not_run(vision, layers) -> None:
    model = tiny_model(vision, vision_feature_layers=layers)
    backbone, layout = model.qca.vision_encoder.backbone, model.qca.vision_encoder.layout
    ran: list[int] = []
    for index, layer in enumerate(backbone.get_submodule(layout.layers)):
        layer.register_forward_hook(lambda module, args, output, index=index: ran.append(index))
    norm = nn.Identity() if layout.after_layers is None else backbone.get_submodule(layout.after_layers)
    for size in SIZES.values():
        batch = tiny_batch(questions=2, images=2, size=size)
        ran.clear()
        with torch.no_grad():
            patches = vision_outputs(model, batch).patches
            states = backbone_outputs(model, batch["pixel_values"], output_hidden_states=True).hidden_states
            expected = torch.cat([norm(states[layer]) for layer in layers], dim=-1)
        assert ran == list(range(max(layers)))
        assert torch.equal(patches, expected[:, -(size[0] * size[1] // 64) :])


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_backbone_loads_into_its_own_class(vision: str, tmp_path: Path) -> None:
    model = open_gates(tiny_model(vision, vision_conditioning_layers="all", token_budget=5, token_budget_layer=1))
    model.qca.vision_encoder.backbone.save_pretrained(tmp_path)
    own, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(own) is type(model.qca.vision_encoder.backbone)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    pixel_values = tiny_batch()["pixel_values"]
    expected = backbone_outputs(model, pixel_values).last_hidden_state
    assert torch.equal(own.eval()(pixel_values).last_hidden_state, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_open_gate_makes_patches_depend_on_the_question(vision: str, mode: str) -> None:
    model = tiny_model(vision, **QUESTION_INSIDE[mode])
    batch = tiny_batch(questions=2, images=1)
    with torch.no_grad():
        closed = vision_outputs(model, batch).patches
        opened = vision_outputs(open_gates(model), batch).patches
    assert torch.equal(closed[0], closed[1])
    assert (opened - closed).abs().amax() > 1e-2
    assert (opened[0] - opened[1]).abs().amax() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_conditioning_does_not_depend_on_the_rest_of_the_batch(mode: str) -> None:
    model = open_gates(tiny_model("clip_vision_model", **QUESTION_INSIDE[mode]))
    batch = tiny_batch(questions=5, images=2)
    repeated = batch | {"pixel_values": batch["pixel_values"][batch["image_index"]], "image_index": torch.arange(5)}
    with torch.no_grad():
        together, apart = model(**batch).logits, model(**repeated).logits
        alone = [
            model(**{name: value[i : i + 1] for name, value in repeated.items()} | {"image_index": None}).logits
            for i in range(5)
        ]
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_closed_gates_get_gradients(mode: str) -> None:
    model = tiny_model("dinov2", **QUESTION_INSIDE[mode])
    model(**tiny_batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
    for module in model.modules():
        if isinstance(module, GatedConditioning):
            assert module.gate.item() == 0 and module.gate.grad.abs().item() > 0
            others = [p.grad for name, p in module.named_parameters() if name != "gate" and p.grad is not None]
            assert not any(gradient.any() for gradient in others)


@pytest.mark.parametrize("mode", MODES)
def test_conditioning_matches_a_loop_over_its_formula(mode: str) -> None:
    model = open_gates(tiny_model("vit", **QUESTION_INSIDE[mode]))
    conditioning, layer = model.qca.vision_encoder.conditioning["0"], model.qca.vision_encoder.backbone.layers[0]
    tokens, words, question = torch.randn(2, 5, 32), torch.randn(2, 4, 32), torch.randn(2, 32)
    word_mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    norm, attention = layer.layernorm_before, layer.attention
    updated = conditioning(
        tokens, QuestionStates(question, words, word_mask), None, LayerProjections.of(norm, attention)
    )
    heads, width = 4, 8
    for row in range(2):
        words_read = conditioning.question_norm(words[row][word_mask[row]])
        if mode == "shared_projections":
            words_read = conditioning.question_mlp(words_read)
            query = attention.q_proj(norm(tokens[row]))
            key, value = attention.k_proj(words_read), attention.v_proj(words_read)
        else:
            normed = conditioning.norm(tokens[row])
            asking, asked = normed, words_read
            if mode == "question_reads_patches":
                asking, asked = conditioning.question_norm(question[row])[None], normed
            query, key, value = conditioning.q_proj(asking), conditioning.k_proj(asked), conditioning.v_proj(asked)
        read = torch.zeros(len(query), 32)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(len(query)):
                weights = torch.softmax(torch.stack([query[i, part] @ k[part] for k in key]) / width**0.5, dim=0)
                read[i, part] = sum(w * v[part] for w, v in zip(weights, value, strict=True))
        expected = tokens[row] + torch.tanh(torch.tensor(0.7)) * conditioning.o_proj(read)
        torch.testing.assert_close(updated[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["patches_read_question", "shared_projections"])
def test_question_without_tokens_leaves_its_row_unchanged(mode: str) -> None:
    model = open_gates(tiny_model("vit", **QUESTION_INSIDE[mode]))
    conditioning, layer = model.qca.vision_encoder.conditioning["0"], model.qca.vision_encoder.backbone.layers[0]
    tokens, words = torch.randn(2, 5, 32), torch.randn(2, 4, 32)
    mask = torch.tensor([[False] * 4, [True] * 4])
    projections = LayerProjections.of(layer.layernorm_before, layer.attention)
    updated = conditioning(tokens, QuestionStates(words[:, 0], words, mask), None, projections)
    assert torch.equal(updated[0], tokens[0]) and not torch.equal(updated[1], tokens[1])


@pytest.mark.parametrize("inside", [*MODES, "budget"])
def test_gradient_checkpointing_gives_the_same_gradients(inside: str) -> None:
    budget = {"token_budget": 5, "token_budget_layer": 1, "vision_conditioning_layers": "late"}
    fields = budget if inside == "budget" else QUESTION_INSIDE[inside]
    gradients = []
    for checkpointing in (False, True):
        model = open_gates(tiny_model("vit", **fields)).train()
        runs = count_runs(model)
        if checkpointing:
            checkpoint_activations(model)
        model(**tiny_batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
        assert len(runs) == (6 if checkpointing else 3)  # twice: forward, and again in the backward pass
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_shared_layers_run_once_an_image() -> None:
    model = open_gates(tiny_model("vit", vision_conditioning_layers=[1]))
    rows = count_runs(model)
    model(**tiny_batch(questions=6, images=2))
    assert rows == [2, 6, 6]


@pytest.mark.parametrize("mode", MODES)
def test_cached_features_give_the_same_result(mode: str) -> None:
    model = open_gates(tiny_model("siglip_vision_model", vision_conditioning_layers="late", vision_conditioning=mode))
    batch = tiny_batch(questions=4, images=2, size=(24, 40))
    with torch.no_grad():
        fresh = model(**batch)
        features = model.get_image_features(batch.pop("pixel_values"))
        cached = model(**batch, image_features=features.last_hidden_state, image_grid=features.grid)
    assert torch.equal(fresh.logits, cached.logits) and torch.equal(fresh.relevance, cached.relevance)
