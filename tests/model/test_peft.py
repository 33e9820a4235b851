"""LoRA in the encoders with all other parts trained: saving, loading and merging keep the logits."""

from pathlib import Path

import pytest
import torch
from helpers import fresh_process
from helpers.tiny import VISION_CONFIGS, tiny_batch, tiny_model, tiny_processor, tiny_vision_config
from peft import (
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from transformers import DistilBertConfig, RobertaConfig

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering
from modeling_qca.training.fitting.adapters import lora_config
from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.training_run import train as train_recipe
from modeling_qca.training.supervision.scenes import write_scenes

EVERYTHING = {
    "relevance_scorer": "additive",
    "query_tokens": "attended",
    "spatial_fusion": True,
    "patch_update": "broadcast",
    "vision_conditioning_layers": [1, 2],
    "token_budget": 8,
    "token_budget_layer": 1,
}
SHARED = EVERYTHING | {"vision_conditioning": "shared_projections", "query_tokens": "pooled"}
VARIANTS = {"plain": {}, "everything": EVERYTHING, "shared": SHARED}
LABELS = torch.tensor([0, 4, 2])

RELOAD_AND_MERGE = """
    import warnings
    warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for a property by its old name
    import torch
    from peft import PeftModel
    from modeling_qca import QCAForVisualQuestionAnswering

    batch, expected = torch.load("batch.pt"), torch.load("expected.pt")
    base = QCAForVisualQuestionAnswering.from_pretrained("base")
    adapted = PeftModel.from_pretrained(base, "adapter").eval()
    with torch.no_grad():
        print((adapted(**batch).logits - expected).abs().max().item() < 1e-4)
        merged = adapted.merge_and_unload()
        print((merged(**batch).logits - expected).abs().max().item() < 1e-4)
        merged.save_pretrained("merged")
        loaded, info = QCAForVisualQuestionAnswering.from_pretrained("merged", output_loading_info=True)
        print(not any(info.values()), (loaded(**batch).logits - expected).abs().max().item() < 1e-4)
"""


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=0.02, weight_decay=0
    )
    model.train()
    for _ in range(steps):
        model(**tiny_batch(), labels=LABELS, target_relevance=torch.eye(16)[:3]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_lora_config_adapts_the_encoders_and_trains_the_rest(vision, variant):
    model = tiny_model(vision, **VARIANTS[variant])
    names = [name for name, _ in model.named_parameters()]
    adapted = get_peft_model(model, lora_config(model, r=4))
    trained = {name for name, weight in adapted.base_model.model.named_parameters() if weight.requires_grad}
    whole = {name.replace("modules_to_save.default.", "") for name in trained if "lora_" not in name}
    encoders = ("qca.vision_encoder.backbone.", "qca.text_encoder.")
    assert whole == {name for name in names if not name.startswith(encoders)}
    adapters = {name.split(".lora_")[0] for name in trained if "lora_" in name}
    assert len(adapters) == 3 * (3 + 2)  # query, key and value of 3 vision and 2 text layers
    assert all(name.startswith(encoders) for name in adapters)
    assert adapted.peft_config["default"].r == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_new_adapter_changes_nothing_and_all_its_weights_train(variant):
    model, batch = tiny_model(**VARIANTS[variant]), tiny_batch()
    expected = model(**batch).logits
    adapted = get_peft_model(model, lora_config(model)).eval()
    assert adapted(**batch).logits.allclose(expected, atol=1e-6)
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    train(adapted)
    for name, weight in adapted.named_parameters():
        assert torch.equal(weight, before[name]) != weight.requires_grad, name


@pytest.fixture(scope="module", params=[pytest.param("plain", marks=pytest.mark.slow), "everything"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a trained adapter of it, a batch and what the adapted model answers."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_model(**VARIANTS[request.param])
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, lora_config(model))
    train(adapted)
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        expected = adapted(**tiny_batch()).logits
        base = QCAForVisualQuestionAnswering.from_pretrained(folder / "base")(**tiny_batch()).logits
    assert (expected - base).abs().max() > 0.1, "training changed the answers"
    torch.save(tiny_batch(), folder / "batch.pt")
    torch.save(expected, folder / "expected.pt")
    return folder


def test_adapter_reloads_and_merges_in_a_fresh_process(folder):
    assert fresh_process.run(RELOAD_AND_MERGE, folder=folder) == "True\nTrue\nTrue True\n"


def test_adapter_is_small_and_can_be_disabled(folder):
    base = QCAForVisualQuestionAnswering.from_pretrained(folder / "base")
    expected = base(**tiny_batch()).logits
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    assert not torch.load(folder / "expected.pt").allclose(expected, atol=1e-2)
    with adapted.disable_adapter():
        assert adapted(**tiny_batch()).logits.allclose(expected, atol=1e-6)
    adapter, model = folder / "adapter" / "adapter_model.safetensors", folder / "base" / "model.safetensors"
    assert adapter.stat().st_size < model.stat().st_size


def test_base_and_adapter_of_a_run_equal_the_run(tmp_path):
    encoders, processor = tiny_model().qca, tiny_processor()
    encoders.vision_encoder.backbone.save_pretrained(tmp_path / "vision")
    processor.image_processor.save_pretrained(tmp_path / "vision")
    encoders.text_encoder.save_pretrained(tmp_path / "text")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    write_scenes(tmp_path / "scenes", {"train": 8, "validation": 4}, seed=0)
    values = {name: str(tmp_path / name) for name in ("vision", "text", "scenes", "run")}
    recipe = {"vision_encoder": values["vision"], "text_encoder": values["text"], "data": values["scenes"]}
    recipe |= {"output_dir": values["run"], "lora_rank": 2, "max_steps": 3, "learning_rate": 0.02}
    train_recipe(make_recipe(recipe | {"num_attention_heads": 4, "save_strategy": "no"}, "lora"))
    with torch.no_grad():
        run = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "run")(**tiny_batch()).logits
        base = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "run" / "base")
        assert not base(**tiny_batch()).logits.allclose(run, atol=1e-2)
        adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
        torch.testing.assert_close(adapted(**tiny_batch()).logits, run, atol=1e-4, rtol=0)
    assert adapted.peft_config["default"].base_model_name_or_path == str(tmp_path / "run" / "base")


@pytest.mark.parametrize("text", [DistilBertConfig, RobertaConfig])
def test_projections_of_other_text_encoders_are_found(text):
    shape = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    reader = text(**shape, max_position_embeddings=20)
    config = QCAConfig.from_vision_text_configs(tiny_vision_config(), reader, num_attention_heads=4, num_labels=2)
    model = QCAForVisualQuestionAnswering(config)
    adapted = get_peft_model(model, lora_config(model))
    assert sum("text_encoder" in name for name in adapted.targeted_module_names) == 6


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_adapter_of_any_task_type_gives_the_same_logits(task_type):
    """PEFT passes `inputs_embeds` and other arguments as `None` for most task types."""
    config = LoraConfig(task_type=task_type, target_modules=["query", "q_proj"])  # adds zero before training
    expected = tiny_model()(**tiny_batch()).logits
    adapted = get_peft_model(tiny_model(), config).eval()
    torch.testing.assert_close(adapted(**tiny_batch()).logits, expected)
    adapted.train()(**tiny_batch(), labels=LABELS).loss.backward()


@pytest.mark.parametrize("method", [PromptTuningConfig, PromptEncoderConfig])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_prompt_methods_train_virtual_tokens(method, task_type):
    shape = {"num_layers": 2, "token_dim": 24, "num_attention_heads": 2}
    adapted = get_peft_model(tiny_model(), method(task_type=task_type, num_virtual_tokens=3, **shape))
    adapted(**tiny_batch(), labels=LABELS).loss.backward()
    assert adapted.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "k_proj", "query"]])
def test_gates_train_with_any_list_of_targets(targets):
    """A closed gate passes no gradient to what is behind it, so it has to open."""
    model = tiny_model(**EVERYTHING)
    adapted = get_peft_model(model, lora_config(model, target_modules=targets))
    train(adapted)
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    gates = [weight for name, weight in trained.items() if name.endswith("gate")]
    assert len(gates) == 2 and all(gate.item() != 0 for gate in gates)


def test_orthogonal_adapter_of_key_proj_trains():
    adapted = get_peft_model(tiny_model(), OFTConfig(target_modules=["key_proj"], r=0, oft_block_size=4))
    torch.testing.assert_close(adapted.eval()(**tiny_batch()).logits, tiny_model()(**tiny_batch()).logits)
    adapted.train()(**tiny_batch(), labels=LABELS).loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in adapted.parameters() if weight.requires_grad)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
@pytest.mark.parametrize("whole", [True, False])
def test_task_types_that_generate_text_are_refused(task_type, whole):
    model = tiny_model() if whole else tiny_model().qca
    assert not hasattr(model, "prepare_inputs_for_generation") and not model.can_generate()
    with pytest.raises(AttributeError, match=f"generates no text.*`task_type`.*{task_type}.*SEQ_CLS"):
        get_peft_model(model, LoraConfig(task_type=task_type, target_modules=["query"]))


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_prefix_tuning_is_refused(task_type):
    shape = {"num_layers": 2, "token_dim": 24, "num_attention_heads": 2, "num_virtual_tokens": 3}
    adapted = get_peft_model(tiny_model(), PrefixTuningConfig(task_type=task_type, **shape))
    with pytest.raises(TypeError, match=r"prefix tuning. Use LoRA, or prompt tuning with `task_type` SEQ_CLS"):
        adapted(**tiny_batch())


def test_lora_config_of_a_model_without_head():
    model = tiny_model().qca
    adapted = get_peft_model(model, lora_config(model))
    assert adapted.peft_config["default"].modules_to_save == ["query_embedder", "patch_embedder", "hops"]
    assert len(adapted.targeted_module_names) == 15


def test_all_linear_adapters_get_gradients():
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.train()
    adapted(**tiny_batch(), labels=LABELS).loss.backward()
    still = {name for name, weight in adapted.named_parameters() if weight.requires_grad and weight.grad is None}
    assert all("pooler" in name for name in still)  # no answer depends on those
    assert any("patch_embedder.projection.lora_A" in name for name, _ in adapted.named_parameters())


def test_fields_of_the_caller_override_the_defaults():
    config = lora_config(tiny_model(), r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    assert (config.r, config.target_modules, config.modules_to_save) == (2, {"q_proj"}, ["classifier"])


def test_refuses_an_encoder_without_known_projections():
    model = tiny_model()
    for layer in model.qca.text_encoder.encoder.layer:
        layer.attention = nn.Identity()
    with pytest.raises(ValueError, match="encoder bert: pass `target_modules`"):
        lora_config(model)
