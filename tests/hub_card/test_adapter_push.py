"""`qca push` of PEFT adapters, saved in every way that PEFT users save them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub.card_validation import card_metadata as front_matter
from helpers.hub.checkpoint import example_results, save_checkpoint
from helpers.hub.connection import connected
from helpers.hub.local_hub import LocalHub
from helpers.hub.publishing import run_pushes
from helpers.tiny import plain_arguments, tiny_image, tiny_processor
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from transformers import Trainer

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.hub_card.adapter_folder import adapter_base
from modeling_qca.hub_card.card import Release
from modeling_qca.hub_card.publish import push
from modeling_qca.hub_card.upload_folder import write_upload_folder
from modeling_qca.training.fitting.adapters import lora_config

pytest_plugins = ["helpers.hub.fixtures"]

RELEASE = Release("user/adapter", base_model=("user/model",))
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base: Path) -> PeftModel:
    """A model whose adapter changes its answers."""
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(base)
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora_config(model))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted.eval()


@pytest.fixture
def adapter(adapted: PeftModel, tmp_path: Path) -> Path:
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def logits(model: Any) -> torch.Tensor:
    inputs = tiny_processor()(images=[tiny_image(5)], text=["is there a ring"])
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_pushed_adapter_loads_with_peft_and_with_auto_peft_model(
    base: Path, adapter: Path, adapted: PeftModel, local_hub: LocalHub, tmp_path: Path
) -> None:
    config = read_config(adapter) | {
        "auto_mapping": {"base_model_class": "X", "parent_library": "transformers_modules.y"}
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))  # of an adapter trained on downloaded code
    run_pushes(
        local_hub,
        tmp_path / "cache",
        (base, "user/model", {}),
        (adapter, "user/adapter", {"base_model": ("user/model",)}),
    )
    expected, plain = logits(adapted), QCAForVisualQuestionAnswering.from_pretrained(base)
    assert (logits(plain) - expected).abs().max() > 1e-2
    with connected(local_hub, tmp_path / "cache"):
        loaded = AutoPeftModel.from_pretrained("user/adapter", import_allowlist=["modeling_qca"])
        wrapped = PeftModel.from_pretrained(plain, "user/adapter")
    for model in (loaded, wrapped):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def test_card_is_of_peft_with_our_metadata_and_hub_ids(adapter: Path, folder: Path) -> None:
    (adapter / "results.json").write_text(json.dumps(example_results()))
    write_upload_folder(adapter, folder, RELEASE)
    card = (folder / "README.md").read_text()
    metadata = front_matter(card)
    assert {key: metadata[key] for key in ("base_model", "base_model_relation", "library_name", "pipeline_tag")} == {
        "base_model": "user/model",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "visual-question-answering",
    }
    assert "- PEFT" in card
    assert [tag for tag in metadata["tags"] if "base_model" in tag] == ["base_model:adapter:user/model"]
    measured = {entry["type"]: entry["value"] for entry in metadata["model-index"][0]["results"][0]["metrics"]}
    assert measured == {"accuracy": 0.7281, "wups_0.9": 0.7344}
    assert read_config(folder)["base_model_name_or_path"] == "user/model"


def test_checkpoint_of_a_trainer_is_pushed_and_its_parent_names_it(base: Path, folder: Path, tmp_path: Path) -> None:
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(base)
    processor = tiny_processor()
    batch = {**processor(images=[tiny_image(5)], text=["is there a ring"]), "labels": torch.tensor([3])}
    trainer = Trainer(
        get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=["classifier"])),
        plain_arguments(tmp_path / "run", max_steps=1),
        train_dataset=[0],  # type: ignore[arg-type]
        data_collator=lambda rows: dict(batch),
        processing_class=processor,
    )
    trainer.train()
    write_upload_folder(tmp_path / "run" / "checkpoint-1", folder, RELEASE)
    assert {path.name for path in folder.iterdir()} == FILES
    with pytest.raises(ValueError, match=r"run holds no checkpoint itself: .*\(checkpoint-1\)"):
        push(tmp_path / "run", "user/adapter", dry_run=True)
    trainer.save_model()
    assert push(tmp_path / "run", "user/adapter", dry_run=True, base_model=("user/model",)).files.keys() == FILES


@pytest.mark.parametrize("task_type", [None, "FEATURE_EXTRACTION"])
def test_adapter_of_any_task_type_is_pushed(adapter: Path, folder: Path, task_type: str | None) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(read_config(adapter) | {"task_type": task_type}))
    write_upload_folder(adapter, folder, RELEASE)
    config = read_config(folder)
    assert config["task_type"] == task_type
    if task_type is None:
        assert config["auto_mapping"]["parent_library"] == "modeling_qca"


def test_adapter_without_a_card_gets_one(adapter: Path, folder: Path) -> None:
    (adapter / "README.md").unlink()
    write_upload_folder(adapter, folder, RELEASE)
    metadata = front_matter((folder / "README.md").read_text())
    assert (metadata["library_name"], metadata["base_model"]) == ("peft", "user/model")


@pytest.mark.parametrize("stored", ["/home/me/checkpoint", None])
def test_adapter_of_a_local_base_needs_a_hub_id(adapter: Path, folder: Path, stored: str | None) -> None:
    (adapter / "adapter_config.json").write_text(
        json.dumps(read_config(adapter) | {"base_model_name_or_path": stored})
    )
    with pytest.raises(ValueError, match="is not on the Hub: push it first, and pass its id as `base_model`"):
        write_upload_folder(adapter, folder, Release("user/adapter"))
    with pytest.raises(ValueError, match="is not on the Hub"):
        adapter_base(stored, Release("user/adapter"))


def test_adapter_with_pickled_weights_is_refused(adapter: Path, folder: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors; save the adapter with save_pretrained"):
        write_upload_folder(adapter, folder, RELEASE)


def test_named_adapters_are_found_in_their_subfolders(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    for name in ("first", "second"):
        shutil.copytree(adapter, tmp_path / "adapters" / name)
    with pytest.raises(ValueError, match=r"pass one of its subfolders \(first, second\)"):
        push(tmp_path / "adapters", "user/adapter", dry_run=True)


def test_run_with_merged_adapter_is_refused_as_its_base(
    base: Path, adapter: Path, adapted: PeftModel, local_hub: LocalHub, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(base, run)
    shutil.copytree(adapter, run / "adapter")
    (run / "results.json").write_text(json.dumps(example_results(recipe={"lora_rank": 2})))
    model: Any = PeftModel.from_pretrained(QCAForVisualQuestionAnswering.from_pretrained(base), str(adapter))
    model.merge_and_unload().save_pretrained(run)
    merged, refused, _, accepted = run_pushes(
        local_hub,
        tmp_path / "cache",
        (run, "user/merged", {}),
        (run / "adapter", "user/adapter", {"base_model": ("user/merged",)}),
        (base, "user/base", {}),
        (run / "adapter", "user/other", {"base_model": ("user/base",)}),
    )
    assert merged.startswith("http") and accepted.startswith("http")
    assert refused.startswith("ValueError: user/merged has this adapter merged and would get it twice")
    assert "user/adapter" not in local_hub.repositories
