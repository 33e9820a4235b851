"""Checkpoints load from a model folder and from a PEFT adapter folder; what cannot be loaded is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny import save_tiny_model, tiny_batch, tiny_image, tiny_processor
from peft import PromptTuningConfig, get_peft_model

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.training.evaluation.checkpoint import adapter_base, load_checkpoint, load_pipeline, load_processor
from modeling_qca.training.fitting.adapters import lora_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, an adapter whose weights are random, and the logits of the adapted model."""
    folder = tmp_path_factory.mktemp("adapter")
    save_tiny_model(folder / "base")
    model = QCAForVisualQuestionAnswering.from_pretrained(folder / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora_config(model, r=2, init_lora_weights=False)).eval()
    with torch.no_grad():
        adapted.base_model.model.classifier.modules_to_save["default"][-1].bias += torch.arange(5.0)
        torch.save(adapted(**tiny_batch()).logits, folder / "expected.pt")
    adapted.save_pretrained(folder / "adapter")
    return folder


def with_base(folder: Path, copy: Path, base: str | None) -> str:
    shutil.copytree(folder / "adapter", copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return str(copy)


def test_an_adapter_folder_loads_merged_into_its_base(folder):
    source = str(folder / "adapter")
    assert adapter_base(source) == str(folder / "base")
    model = load_checkpoint(source).eval()
    expected, base = torch.load(folder / "expected.pt"), load_checkpoint(str(folder / "base")).eval()
    assert type(model) is QCAForVisualQuestionAnswering
    with torch.no_grad():
        torch.testing.assert_close(model(**tiny_batch()).logits, expected, atol=1e-4, rtol=0)
        assert (base(**tiny_batch()).logits - expected).abs().max() > 0.1


def test_an_adapter_without_a_processor_uses_that_of_its_base(folder, tmp_path):
    answers = load_pipeline(str(folder / "adapter"))(tiny_image(), "what is the color of the ball", top_k=5)
    assert len(answers) == 5
    assert load_processor(str(folder / "adapter")).tokenizer.model_max_length == 16
    own = with_base(folder, tmp_path / "own", str(folder / "base"))
    processor = tiny_processor()
    processor.tokenizer.model_max_length = 12
    processor.save_pretrained(own)
    assert load_processor(own).tokenizer.model_max_length == 12


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "names no base model"),
        ("", "names no base model"),
        ("/nowhere/base", "there is no such folder"),
        ("runs/lora/base", "there is no such folder"),
    ],
)
def test_names_the_missing_base_of_an_adapter(folder, tmp_path, base, message):
    source = with_base(folder, tmp_path / "adapter", base)
    for load in (load_checkpoint, load_pipeline):
        with pytest.raises(ValueError, match=message):
            load(source)


def test_refuses_an_adapter_of_another_base(folder, tmp_path):
    save_tiny_model(tmp_path / "other", id2label={0: "yes", 1: "no"})
    with pytest.raises(ValueError, match="does not fit the base model"):
        load_checkpoint(with_base(folder, tmp_path / "adapter", str(tmp_path / "other")))


def test_refuses_an_adapter_that_cannot_be_merged(folder, tmp_path):
    model = QCAForVisualQuestionAnswering.from_pretrained(folder / "base")
    shape = {"num_layers": 2, "token_dim": 24, "num_attention_heads": 2, "num_virtual_tokens": 3}
    adapted = get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", **shape))
    adapted.save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match=r"PROMPT_TUNING cannot be merged .* LoRA"):
        load_checkpoint(str(tmp_path / "prompt"))


def test_refuses_a_task_type_that_generates_text(folder, tmp_path):
    source = Path(with_base(folder, tmp_path / "adapter", str(folder / "base")))
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    with pytest.raises(ValueError, match="`task_type` CAUSAL_LM"):
        load_checkpoint(str(source))


def test_refuses_an_adapter_config_that_is_damaged(tmp_path):
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="not the config of an adapter"):
        load_checkpoint(str(tmp_path))
