"""The contract every model of transformers keeps: saving, loading, initializing, outputs, precision, export."""

import copy
import math

import pytest
import torch
from helpers.tiny import (
    VISION_CONFIGS,
    checkpoint_activations,
    same_weights,
    tiny_batch,
    tiny_config,
    tiny_model,
    tiny_text_config,
    tiny_vision_config,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    BeitConfig,
    BertModel,
    Trainer,
    TrainingArguments,
    ViTModel,
)

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAModel
from modeling_qca.attention_qca import AdditiveScorer
from modeling_qca.conditioning_qca import GatedConditioning

LABELS = torch.tensor([0, 4, 2])
EVERYTHING = {
    "query_tokens": "attended",
    "relevance_scorer": "additive",
    "patch_update": "broadcast",
    "answer_evidence": "hops_and_mean",
    "spatial_fusion": True,
    "vision_conditioning_layers": [1, 2],
    "token_budget": [3, 8],
    "token_budget_layer": 2,
}
VARIANTS = pytest.mark.parametrize("fields", [{}, EVERYTHING], ids=["plain", "everything"])


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_saved_model_loads_with_equal_weights_and_logits(vision, tmp_path):
    model, batch = tiny_model(vision, **EVERYTHING), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded, info = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert same_weights(model, loaded)
    assert not loaded.training
    assert loaded(**batch).logits.allclose(model(**batch).logits, atol=1e-5)


def test_auto_classes_load_a_sharded_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert type(loaded) is QCAForVisualQuestionAnswering
    assert same_weights(model, loaded)
    assert type(AutoModel.from_pretrained(tmp_path)) is QCAModel


def test_body_loads_from_a_model_with_head_and_back(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "head")
    body, info = QCAModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert same_weights(model.qca, body)
    assert not any(info.values()), info
    body.save_pretrained(tmp_path / "body")
    whole, info = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "body", output_loading_info=True)
    assert same_weights(model.qca, whole.qca)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"fusion", "classifier"}


@VARIANTS
def test_missing_weights_are_reported_and_initialized(fields, tmp_path):
    model = tiny_model(initializer_range=0.05, **fields)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    dropped = {name for name in weights if name.startswith(("qca.hops.layers.1", "qca.vision_encoder.conditioning"))}
    kept = {name: weight for name, weight in weights.items() if name not in dropped}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == dropped
    assert same_weights(loaded.qca.hops.layers[0], model.qca.hops.layers[0])
    again = loaded.qca.hops.layers[1]
    assert again.update[0].weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert not again.update[0].bias.any()
    assert torch.equal(again.update_norm.weight, torch.ones(32))
    for layer in loaded.qca.vision_encoder.conditioning.values():
        assert layer.gate.item() == 0.0


def test_refuses_another_number_of_answers_unless_mismatched_sizes_are_ignored(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        QCAForVisualQuestionAnswering.from_pretrained(tmp_path, id2label=dict(enumerate("abcdefghi")))
    loaded, info = QCAForVisualQuestionAnswering.from_pretrained(
        tmp_path, id2label=dict(enumerate("abcdefghi")), ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {name for name, *_ in info["mismatched_keys"]} == {"classifier.3.weight", "classifier.3.bias"}
    assert loaded(**tiny_batch()).logits.shape == (3, 9)


@pytest.mark.parametrize("make", [lambda: ViTModel(tiny_vision_config()), lambda: BertModel(tiny_text_config())])
def test_refuses_a_checkpoint_of_another_model_type(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path.name} holds a `{model.config.model_type}` model, not a `qca`"):
        QCAForVisualQuestionAnswering.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_load_in_half_precision(dtype, tmp_path):
    model, batch = tiny_model(**EVERYTHING | {"token_budget": 16}), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    outputs = loaded(**batch, labels=LABELS, target_relevance=torch.rand(3, 16))
    assert outputs.logits.dtype == dtype
    assert outputs.relevance.dtype == torch.float32
    assert outputs.relevance.sum(-1).allclose(torch.ones(3, 2, 4), atol=1e-5)
    assert outputs.loss.isfinite()
    scale = model(**batch).logits.abs().max()
    assert (outputs.logits - model(**batch).logits).abs().max() < 0.1 * scale


def test_relevance_in_half_precision_is_finite():
    outputs = tiny_model().half()(**tiny_batch())
    assert outputs.relevance.isfinite().all()
    assert outputs.relevance.sum(-1).allclose(torch.ones(3, 2, 4), atol=1e-5)


def test_encoder_without_layout_accepts_float32_images_in_half_precision():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = tiny_config()
    config.vision_config = BeitConfig(image_size=32, patch_size=8, **shape)
    model = QCAForVisualQuestionAnswering(config).eval().to(torch.bfloat16)
    assert model.qca.vision_encoder.layout is None
    assert model(**tiny_batch()).logits.dtype == torch.bfloat16


def test_attention_mask_of_any_dtype_is_accepted():
    model, batch = tiny_model(), tiny_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        for dtype in (torch.bool, torch.float32):
            mask = batch["attention_mask"].to(dtype)
            assert model(**batch | {"attention_mask": mask}).logits.equal(expected)


@VARIANTS
def test_model_is_built_on_the_meta_device(fields):
    with torch.device("meta"):
        model = QCAForVisualQuestionAnswering(tiny_config(**fields))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in tiny_model(**fields).state_dict().items()}


@pytest.mark.parametrize("scorer", ["dot_product", "additive", "bilinear"])
def test_new_weights_have_the_statistics_of_the_config(scorer):
    model = tiny_model(
        hidden_size=64,
        initializer_range=0.05,
        relevance_scorer=scorer,
        patch_update="broadcast",
        vision_conditioning_layers=1,
    )
    for name, module in model.named_modules():
        if "backbone" in name or "text_encoder" in name:
            continue
        if isinstance(module, nn.Linear):
            assert abs(module.weight.mean().item()) < 5 * 0.05 / math.sqrt(module.weight.numel()), name
            tolerance = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(0.05, rel=tolerance), name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name
        elif isinstance(module, GatedConditioning):
            assert module.gate.item() == 0.0, name
        elif isinstance(module, AdditiveScorer):
            assert module.score_weight.std().item() == pytest.approx(1 / math.sqrt(16), rel=0.5), name


@pytest.mark.parametrize("hops", [0, 2])
def test_answer_head_reads_evidence_and_query(hops):
    model, batch = tiny_model(num_attention_layers=hops), tiny_batch()
    inner, outputs = model.qca(**batch), model(**batch)
    for question, (query, evidence) in enumerate(zip(inner.query, inner.evidence, strict=True)):
        logits = model.classifier(model.fusion(torch.cat([*evidence, query])))
        torch.testing.assert_close(outputs.logits[question], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_num_classifier_layers_is_the_number_of_linear_layers(layers):
    head = tiny_model(num_classifier_layers=layers, classifier_dropout=0.5).classifier
    linear = [module for module in head if isinstance(module, nn.Linear)]
    assert [module.out_features for module in linear] == [*[32] * (layers - 1), 5]
    states = hidden = torch.randn(3, 32)
    for module in linear[:-1]:
        hidden = nn.functional.gelu(hidden @ module.weight.T + module.bias)
    torch.testing.assert_close(head(states), hidden @ linear[-1].weight.T + linear[-1].bias)


def test_every_parameter_is_inside_a_submodule():
    model = tiny_model(**EVERYTHING)
    assert not list(model.qca.named_parameters(recurse=False))
    assert not list(model.named_parameters(recurse=False))
    assert not any(isinstance(module, nn.MultiheadAttention) for module in model.modules())


@VARIANTS
def test_equal_seeds_build_equal_models(fields):
    assert same_weights(tiny_model(seed=3, **fields), tiny_model(seed=3, **fields))
    assert not same_weights(tiny_model(seed=3, **fields), tiny_model(seed=4, **fields))


@VARIANTS
def test_outputs_are_deterministic(fields):
    model, batch = tiny_model(**fields), tiny_batch()
    first, second = model(**batch), model(**batch)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.relevance, second.relevance)
    assert torch.equal(copy.deepcopy(model)(**batch).logits, first.logits)


@VARIANTS
def test_tuple_output_equals_dict_output(fields):
    model, batch = tiny_model(**fields), tiny_batch()
    model.set_attn_implementation("eager")
    wanted = {"labels": LABELS, "output_attentions": True, "output_hidden_states": True}
    outputs, values = model(**batch, **wanted), model(**batch, **wanted, return_dict=False)
    assert type(values) is tuple
    assert len(values) == len(outputs)
    for name, value in zip(outputs, values, strict=True):
        torch.testing.assert_close(value, outputs[name], rtol=0, atol=0)
    model.config.return_dict = model.config.vision_config.return_dict = model.config.text_config.return_dict = False
    assert type(model(**batch)) is tuple
    assert type(model.qca(**batch)) is tuple


@pytest.mark.parametrize("ask", ["argument", "config"])
def test_hidden_states_and_attentions_of_both_encoders_on_request(ask):
    model, batch, names = tiny_model(vision_conditioning_layers=[1]), tiny_batch(), {}
    model.set_attn_implementation("eager")
    if ask == "config":
        model.config.output_attentions = model.config.output_hidden_states = True
    else:
        names = {"output_attentions": True, "output_hidden_states": True}
    outputs = model(**batch, **names)
    shapes = {
        name: [tuple(layer.shape) for layer in outputs[name]] for name in outputs if name[:4] in ("visi", "text")
    }
    assert shapes == {
        "vision_hidden_states": [(2, 17, 32)] * 2 + [(3, 17, 32)] * 2,  # per image, then per question
        "vision_attentions": [(2, 4, 17, 17)] + [(3, 4, 17, 17)] * 2,
        "text_hidden_states": [(3, 7, 24)] * 3,
        "text_attentions": [(3, 2, 7, 7)] * 2,
    }
    for layer in outputs.vision_attentions + outputs.text_attentions:
        assert layer.sum(-1).allclose(torch.ones(layer.shape[:-1]), atol=1e-5)


def test_no_hidden_states_and_attentions_by_default():
    assert set(tiny_model()(**tiny_batch())) == {"logits", "relevance", "grid", "patch_boxes"}


def test_body_returns_query_evidence_and_relevance():
    outputs = tiny_model(num_attention_layers=3).qca(**tiny_batch())
    assert outputs.query.shape == (3, 32)
    assert outputs.evidence.shape == (3, 3, 32)
    assert outputs.relevance.shape == (3, 3, 4, 16)
    assert outputs.grid == (4, 4)


@pytest.mark.parametrize("frozen", [False, True])
@VARIANTS
def test_gradient_checkpointing_changes_no_gradient(fields, frozen):
    plain, checkpointed = tiny_model(**fields).train(), tiny_model(**fields).train()
    checkpoint_activations(checkpointed)
    for model in (plain, checkpointed):
        model.qca.vision_encoder.backbone.requires_grad_(not frozen)
        model.qca.text_encoder.requires_grad_(not frozen)
        model(**tiny_batch(), labels=LABELS, target_relevance=torch.ones(3, 16)).loss.backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(checkpointed)[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_from_the_config_runs_the_hops_again():
    config = tiny_config()
    config.gradient_checkpointing = True
    model, calls = QCAForVisualQuestionAnswering(config).train(), []
    model.qca.hops.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    model(**tiny_batch(), labels=LABELS).loss.backward()
    assert len(calls) == 2


def test_saving_leaves_the_given_state_dict_as_it_is(tmp_path):
    model = tiny_model()
    weights = model.state_dict()
    names = list(weights)
    model.save_pretrained(tmp_path, state_dict=weights)
    assert list(weights) == names
    assert same_weights(model, QCAForVisualQuestionAnswering.from_pretrained(tmp_path))


@pytest.mark.parametrize("fields", [{"vision_conditioning_layers": [0]}, {"token_budget": 4, "token_budget_layer": 0}])
def test_hidden_states_start_with_the_embeddings_if_the_first_layer_reads_the_question(fields):
    model, batch = tiny_model(**fields), tiny_batch()
    features = model.get_image_features(batch["pixel_values"], output_hidden_states=True)
    assert [tuple(states.shape) for states in features.hidden_states] == [(2, 17, 32)]
    assert torch.equal(features.hidden_states[0], features.last_hidden_state)
    states = model(**batch, output_hidden_states=True).vision_hidden_states
    assert len(states) == 4 and states[0].shape == (2, 17, 32) and states[1].shape[0] == 3


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("fields", [{"vision_feature_layers": [1, 3]}, {"vision_conditioning_layers": [0, 2]}])
def test_compiles_into_one_graph(fields):
    model, batch = tiny_model(**fields), tiny_batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert compiled(**batch).logits.allclose(model(**batch).logits, atol=1e-5)


def test_feature_layers_keep_the_order_they_are_given_in():
    fields = {"vision_feature_layers": [3, 1, 3]}
    model, batch = tiny_model(**fields), tiny_batch()
    states = model.get_image_features(batch["pixel_values"], output_hidden_states=True)
    norm = model.qca.vision_encoder.backbone.layernorm
    expected = torch.cat([norm(states.hidden_states[layer]) for layer in fields["vision_feature_layers"]], dim=-1)
    torch.testing.assert_close(states.last_hidden_state, expected)


def test_padding_beyond_the_positions_is_accepted_and_tokens_are_not():
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch)
    width = {
        name: nn.functional.pad(batch[name], (0, 121)) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    torch.testing.assert_close(model(**batch | width).logits, expected.logits)
    width["attention_mask"] = torch.ones_like(width["attention_mask"])
    with pytest.raises(ValueError, match=r"has 128 tokens.*at most 16"):
        model(**batch | width)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_token_outside_of_the_vocabulary_is_named(token):
    model, batch = tiny_model(), tiny_batch()
    batch["input_ids"][1, 2] = token
    with pytest.raises(ValueError, match=f"Question 1 has the token id {token}, but the text encoder has"):
        model(**batch)


@pytest.mark.parametrize("model_type", ["opt", "xglm", "gpt2"])
def test_longest_question_fits_and_one_token_more_is_refused(model_type):
    shape = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "ffn_dim": 32}
    if model_type == "xglm":
        shape |= {"d_model": 32, "attention_heads": 2, "num_layers": 1}
    text = AutoConfig.for_model(
        model_type, max_position_embeddings=16, word_embed_proj_dim=32, pad_token_id=1, **shape
    )
    config = QCAConfig.from_vision_text_configs(tiny_vision_config(), text, id2label={0: "a", 1: "b"})
    model = QCAForVisualQuestionAnswering(config).eval()
    pixels = torch.zeros(1, 3, 32, 32)
    limit = model.qca.max_question_length
    assert limit == (None if model_type == "xglm" else 16)
    assert model(input_ids=torch.full((1, 16), 9), pixel_values=pixels).logits.isfinite().all()
    if limit is not None:
        with pytest.raises(ValueError, match=r"has 17 tokens.*at most 16"):
            model(input_ids=torch.full((1, 17), 9), pixel_values=pixels)


def test_target_relevance_without_labels_is_refused_in_training_only():
    model, batch = tiny_model(), tiny_batch() | {"target_relevance": torch.rand(3, 16)}
    supervision = model(**batch).relevance_loss
    with pytest.raises(ValueError, match=r"`label_smoothing_factor`.*`labels` of -100"):
        model.train()(**batch)
    alone = model(**batch, labels=torch.full((3,), -100))
    torch.testing.assert_close(alone.loss, model.config.relevance_loss_weight * supervision)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_trainer_trains_the_relevance_loss_or_refuses_label_smoothing(smoothing, tmp_path):
    model, batch = tiny_model(), tiny_batch() | {"labels": LABELS, "target_relevance": torch.rand(3, 16)}
    expected = model(**batch)
    arguments = {"max_steps": 1, "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    arguments |= {"label_smoothing_factor": smoothing, "remove_unused_columns": False, "disable_tqdm": True}
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), **arguments),
        train_dataset=[0],
        data_collator=lambda rows: dict(batch),
    )
    if smoothing:
        with pytest.raises(ValueError, match="`label_smoothing_factor`"):
            trainer.train()
    else:
        trainer.train()
        whole = expected.answer_loss + model.config.relevance_loss_weight * expected.relevance_loss
        assert trainer.state.log_history[0]["loss"] == pytest.approx(whole.item(), rel=1e-3)


def test_gradient_checkpointing_runs_the_hops_again():
    model, calls = tiny_model().train(), []
    checkpoint_activations(model)
    model.qca.hops.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    model(**tiny_batch(), labels=LABELS).loss.backward()
    assert len(calls) == 2


@pytest.mark.parametrize("vision", VISION_CONFIGS)
@VARIANTS
def test_every_parameter_gets_a_gradient_except_the_ignored_ones(fields, vision):
    model = tiny_model(vision, **fields).train()
    for gate in (layer.gate for layer in model.qca.vision_encoder.conditioning.values()):
        nn.init.ones_(gate)
    model(**tiny_batch(), labels=LABELS, target_relevance=torch.rand(3, 2, 16)).loss.backward()
    still = {name for name, gradient in gradients(model).items() if gradient is None}
    assert still == set(model._ddp_params_and_buffers_to_ignore), "DistributedDataParallel is told which"
    assert still == {f"qca.{name}" for name in model.qca._ddp_params_and_buffers_to_ignore}
    assert all("pooler" in name or name.startswith("qca.vision_encoder.backbone") for name in still)


def test_initial_query_needs_no_update_by_the_last_hop():
    model, batch = tiny_model(answer_query="initial", num_attention_layers=2).train(), tiny_batch()
    text = model.qca.text_encoder(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    question = model.qca.query_embedder(text.last_hidden_state, batch["attention_mask"].bool())
    torch.testing.assert_close(model.qca(**batch).query, question.query)
    updated = tiny_model(num_attention_layers=2)
    updated.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(updated.qca(**batch).evidence, model.qca(**batch).evidence)
    model(**batch, labels=LABELS).loss.backward()
    still = {name for name, gradient in gradients(model).items() if gradient is None}
    assert still == set(model._ddp_params_and_buffers_to_ignore)
    assert not any(".hops." in name for name in still)
    assert not any(name.startswith("qca.hops.layers.1.update") for name in gradients(model))


def test_checkpoint_with_an_unread_update_of_the_last_hop_loads_without_it(tmp_path, caplog):
    """Release 0.1 stored such an update with `answer_query: asked`."""
    stored, batch = tiny_model(answer_query="updated", num_attention_layers=2), tiny_batch()
    stored.save_pretrained(tmp_path)
    model = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, answer_query="initial")
    assert "UNEXPECTED" not in caplog.text
    assert torch.equal(model.qca(**batch).evidence, stored.qca(**batch).evidence)


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_layers_behind_the_feature_layers_are_ignored_by_ddp(vision):
    model = tiny_model(vision, vision_feature_layers=[1, 2]).train()
    model(**tiny_batch(), labels=LABELS, target_relevance=torch.rand(3, 2, 16)).loss.backward()
    still = {name for name, gradient in gradients(model).items() if gradient is None}
    assert still == set(model._ddp_params_and_buffers_to_ignore) and any("layer" in name for name in still)


def test_resized_embeddings_keep_their_rows_and_are_saved(tmp_path):
    model, batch = tiny_model(), tiny_batch()
    expected, before = model(**batch).logits, model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(60)
    assert model.get_input_embeddings() is model.qca.text_encoder.embeddings.word_embeddings
    assert model.get_input_embeddings().weight.shape == (60, 24)
    assert torch.equal(model.get_input_embeddings().weight[: len(before)], before)
    assert model.config.text_config.vocab_size == 60
    assert model(**batch).logits.allclose(expected, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert same_weights(model, QCAForVisualQuestionAnswering.from_pretrained(tmp_path))


def test_equal_questions_are_encoded_once_without_gradients():
    model = tiny_model().eval()
    batch = tiny_batch(questions=6, images=3)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        batch[name] = batch[name][[0, 1, 0, 0, 1, 2]]
    read = []
    model.qca.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    apart = model(**batch).logits  # outside of training a gradient may be asked for, of each question by itself
    with torch.no_grad():
        together = model(**batch).logits
    assert read == [6, 3]
    assert together.allclose(apart, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, EVERYTHING], ids=["plain", "everything"])
def test_exported_model_takes_batches_of_other_sizes(fields):
    if "token_budget" in fields:
        fields = fields | {"token_budget": 8}  # how many patches an adaptive budget keeps depends on the data
    model = tiny_model(**fields)
    questions, images, tokens = (torch.export.Dim(name, min=2, max=16) for name in ("B", "I", "L"))
    words = {name: {0: questions, 1: tokens} for name in ("input_ids", "attention_mask", "token_type_ids")}
    shapes = words | {"pixel_values": {0: images}, "image_index": {0: questions}}
    with torch.no_grad():
        program = torch.export.export(model, (), tiny_batch(), dynamic_shapes=shapes)
        for batch in (tiny_batch(), tiny_batch(questions=5, images=4, tokens=9, seed=1)):
            exported, expected = program.module()(**batch), model(**batch)
            assert exported.logits.allclose(expected.logits, atol=1e-5)
            assert exported.relevance.allclose(expected.relevance, atol=1e-6)
            assert exported.grid == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": None}, "exactly one of `pixel_values` and `image_features`"),
        ({"image_features": torch.zeros(2, 17, 32)}, "exactly one of `pixel_values` and `image_features`"),
        ({"image_index": None}, "3 questions but 2 images"),
        ({"image_index": torch.tensor([0, 1])}, "one image for each of 3 questions"),
        ({"image_index": torch.tensor([0, 2, 1])}, "of question 1 is 2, but there are 2 images"),
        ({"image_index": torch.tensor([0, 1, -1])}, "of question 2 is -1"),
        ({"pixel_values": None, "image_features": torch.zeros(2, 9, 32)}, r"\(2, 9, 32\) hold no 4 x 4 grid"),
        ({"pixel_values": None, "image_features": torch.zeros(2, 37, 32)}, r"\(2, 37, 32\) hold no 4 x 4 grid"),
        ({"labels": torch.tensor([0, 5, 1])}, "label of question 1 is 5, but there are 5 answers"),
        ({"target_relevance": torch.ones(3, 9)}, "target_relevance"),
    ],
)
def test_names_the_input_that_does_not_fit(changes, message):
    inputs = {name: value for name, value in (tiny_batch() | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)
