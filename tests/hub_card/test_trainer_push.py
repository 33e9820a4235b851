"""Repositories that `transformers.Trainer` and PEFT make: they work, and the card in them is the right one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh_process import WITHOUT_PACKAGE
from helpers.hub.card_validation import card_metadata as front_matter
from helpers.hub.checkpoint import example_results
from helpers.hub.client import Client
from helpers.hub.local_hub import LocalHub
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.hub_card.card import Release
from modeling_qca.hub_card.publish import adapter_base, assemble
from modeling_qca.hub_card.trainer_push import keep_model_card

pytest_plugins = ["helpers.hub.fixtures"]

# A Trainer over two steps that pushes at each of them, and then again with the results of an evaluation.
TRAIN = """
    import shutil, sys, torch
    from transformers import Trainer, TrainingArguments
    from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
    from modeling_qca.hub_card.trainer_push import keep_model_card
    checkpoint, photo, *base_model = sys.argv[1:]
    model = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    processor = QCAProcessor.from_pretrained(checkpoint)
    if base_model:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"]))
    batch = {**processor(images=[photo], text=["is there a ring"]), "labels": torch.tensor([3])}
    arguments = TrainingArguments(
        "trained", max_steps=2, save_steps=1, push_to_hub=True, hub_model_id="user/trained", hub_always_push=True,
        use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
    )
    data = {"train_dataset": [0, 0], "data_collator": lambda rows: batch}
    trainer = Trainer(model, arguments, processing_class=processor, **data)
    keep_model_card(trainer, license="cc-by-4.0", base_model=tuple(base_model))
    trainer.train()
    shutil.copy(checkpoint + "/results.json", "trained")
    trainer.push_to_hub()
    with torch.no_grad():
        batch.pop("labels")
        print(model.eval()(**batch).logits.tolist())
"""
# Prints the logits of the base model, and with an adapter those of both together.
LOAD = """
    import sys, torch
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
    photo, base, *adapters = sys.argv[1:]
    model = AutoModelForVisualQuestionAnswering.from_pretrained(base, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(base, trust_remote_code=True)
    inputs = processor(images=[photo], text=["is there a ring"])
    with torch.no_grad():
        print(model(**inputs).logits.tolist())
        for adapter in adapters:
            from peft import PeftModel
            print(PeftModel.from_pretrained(model, adapter).eval()(**inputs).logits.tolist())
"""
PUSH_ADAPTER = """
    import sys, torch
    from peft import LoraConfig, get_peft_model
    from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
    from modeling_qca.hub_card.publish import push
    checkpoint, photo = sys.argv[1:]
    push(checkpoint, "user/model")
    model = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    lora = LoraConfig(target_modules=["query", "value"], modules_to_save=["hops", "classifier"])
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained("adapter")
    push("adapter", "user/adapter", base_model=("user/model",))
    inputs = QCAProcessor.from_pretrained(checkpoint)(images=[photo], text=["is there a ring"])
    with torch.no_grad():
        print(model.eval()(**inputs).logits.tolist())
"""


def logits(printed: str, line: int = -1) -> torch.Tensor:
    return torch.tensor(json.loads(printed.splitlines()[line]))


def test_every_push_of_a_plain_trainer_is_a_working_repository_with_our_card(
    checkpoint: Path, photo: Path, local_hub: LocalHub, client: Client
) -> None:
    trained = logits(client.output(TRAIN, checkpoint, photo))
    repository = local_hub.repositories["user/trained"]
    pushes = [commit.tree for commit in repository.commits.values()][1:]
    assert len(pushes) == 3
    for tree in pushes:
        assert {"modeling_qca.py", "pipeline_qca.py", "model.safetensors", "processor_config.json"} <= tree.keys()
        assert "training_args.bin" not in tree
        card = local_hub.objects[tree["README.md"].sha256].decode()
        assert front_matter(card)["license"] == "cc-by-4.0" and "## Limits and biases" in card
    assert "0.728 ± 0.012" in card, "the results that lay beside the model at the last push"
    loaded = logits(client.output(LOAD, photo, "user/trained", before=WITHOUT_PACKAGE))
    torch.testing.assert_close(loaded, trained, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_trainers_pushes_of_an_adapter_keep_the_card_of_peft(
    checkpoint: Path, photo: Path, local_hub: LocalHub, client: Client
) -> None:
    client.output(TRAIN, checkpoint, photo, "user/base")
    assert "adapter_model.safetensors" in local_hub.files("user/trained")
    assert not {"training_args.bin", "model.safetensors"} & set(local_hub.files("user/trained"))
    metadata = front_matter(local_hub.read("user/trained", "README.md").decode())
    assert (metadata["library_name"], metadata["base_model"]) == ("peft", "user/base")
    adapter = json.loads(local_hub.read("user/trained", "adapter_config.json"))
    assert adapter["base_model_name_or_path"] == "user/base"


@pytest.mark.slow
def test_an_adapter_keeps_the_card_of_peft_and_loads_on_its_base_without_the_package(
    checkpoint: Path, photo: Path, local_hub: LocalHub, client: Client
) -> None:
    trained = logits(client.output(PUSH_ADAPTER, checkpoint, photo))
    card = local_hub.read("user/adapter", "README.md").decode()
    metadata = front_matter(card)
    assert {key: metadata[key] for key in ("base_model", "base_model_relation", "library_name", "pipeline_tag")} == {
        "base_model": "user/model",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "visual-question-answering",
    }
    assert "- PEFT" in card
    assert json.loads(local_hub.read("user/adapter", "adapter_config.json"))["base_model_name_or_path"] == "user/model"
    printed = client.output(LOAD, photo, "user/model", "user/adapter", before=WITHOUT_PACKAGE)
    base, adapted = logits(printed, -2), logits(printed)
    torch.testing.assert_close(adapted, trained, atol=1e-5, rtol=0)
    assert (adapted - base).abs().max() > 1e-2


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    return {"output_dir": str(tmp_path / "trained"), "use_cpu": True, "report_to": "none"}


def test_a_trainer_that_does_not_push_is_refused(checkpoint: Path, arguments: dict[str, Any]) -> None:
    model = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"pass `push_to_hub=True`"):
        keep_model_card(Trainer(model, TrainingArguments(**arguments)))


def test_a_token_in_the_training_arguments_is_refused(checkpoint: Path, arguments: dict[str, Any]) -> None:
    trainer = Trainer(QCAForVisualQuestionAnswering.from_pretrained(checkpoint), TrainingArguments(**arguments))
    trainer.hub_model_id = "user/trained"  # type: ignore[assignment]
    trainer.args.hub_token = "hf_secret"
    with pytest.raises(ValueError, match=r"Do not pass `hub_token`"):
        keep_model_card(trainer)


def adapter_folder(checkpoint: Path, folder: Path) -> Path:
    model = get_peft_model(
        QCAForVisualQuestionAnswering.from_pretrained(checkpoint), LoraConfig(target_modules=["query"])
    )
    model.save_pretrained(str(folder))
    return folder


def test_an_adapter_of_a_local_base_is_refused_until_the_base_has_a_hub_id(checkpoint: Path, tmp_path: Path) -> None:
    adapter = adapter_folder(checkpoint, tmp_path / "adapter")
    (tmp_path / "assembled").mkdir()
    with pytest.raises(
        ValueError, match=r"checkpoint' is not on the Hub: push it first, and pass its id as `base_model`"
    ):
        assemble(adapter, tmp_path / "assembled", Release("user/adapter"))
    with pytest.raises(ValueError, match="base model None is not on the Hub"):
        adapter_base(None, Release("user/adapter"))
    assemble(adapter, tmp_path / "assembled", Release("user/adapter", base_model=("user/model",)))
    assert {path.name for path in (tmp_path / "assembled").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_results_of_an_adapter_enter_the_metadata_of_its_card(checkpoint: Path, tmp_path: Path) -> None:
    adapter = adapter_folder(checkpoint, tmp_path / "adapter")
    (adapter / "results.json").write_text(json.dumps(example_results()))
    (tmp_path / "assembled").mkdir()
    assemble(adapter, tmp_path / "assembled", Release("user/adapter", base_model=("user/model",)))
    metadata = front_matter((tmp_path / "assembled" / "README.md").read_text())
    measured = {entry["type"]: entry["value"] for entry in metadata["model-index"][0]["results"][0]["metrics"]}
    assert measured == {"accuracy": 0.7281, "wups_0.9": 0.7344}
