"""Repositories that a plain `Trainer` pushes: they load anywhere and have our card."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh_process import WITHOUT_PACKAGE
from helpers.hub.card_validation import card_metadata as front_matter
from helpers.hub.client import Client
from helpers.hub.connection import connected
from helpers.hub.local_hub import LocalHub
from helpers.tiny import plain_arguments, tiny_image
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.hub_card.model_card_callback import ModelCardCallback
from modeling_qca.hub_card.trainer_push import keep_card

pytest_plugins = ["helpers.hub.fixtures"]

LOAD = """
    import sys, torch
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
    source = {"trust_remote_code": True}
    model = AutoModelForVisualQuestionAnswering.from_pretrained("user/trained", **source).eval()
    processor = AutoProcessor.from_pretrained("user/trained", **source)
    with torch.no_grad():
        print(model(**processor(images=[sys.argv[1]], text=["is there a ring"])).logits.tolist())
"""


def pushing_trainer(checkpoint: Path, output_dir: Path, adapter: bool = False, **arguments: Any) -> Trainer:
    """A trainer of two steps that pushes at each of them."""
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    processor = QCAProcessor.from_pretrained(checkpoint)
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"]))
    batch = {**processor(images=[tiny_image(5)], text=["is there a ring"]), "labels": torch.tensor([3])}
    options: dict[str, Any] = {
        "max_steps": 2,
        "push_to_hub": True,
        "hub_model_id": "user/trained",
        "hub_always_push": True,
    }
    training = plain_arguments(output_dir, **options | arguments)
    rows: Any = [0, 0]
    return Trainer(
        model, training, train_dataset=rows, data_collator=lambda rows: dict(batch), processing_class=processor
    )


def test_every_push_has_our_card_and_code(checkpoint: Path, local_hub: LocalHub, tmp_path: Path) -> None:
    output_dir = tmp_path / "trained"
    with connected(local_hub, tmp_path / "cache"):
        trainer = pushing_trainer(checkpoint, output_dir)
        trainer.add_callback(ModelCardCallback(trainer, license="cc-by-4.0"))
        trainer.train()
        shutil.copy(checkpoint / "results.json", output_dir)
        shutil.copy(checkpoint / "overlay.png", output_dir)
        trainer.push_to_hub()
    pushes = [commit.tree for commit in local_hub.repositories["user/trained"].commits.values()][1:]
    assert len(pushes) == 3
    for tree in pushes:
        assert {"modeling_qca.py", "pipeline_qca.py", "model.safetensors", "processor_config.json"} <= tree.keys()
        assert not {"training_args.bin", "overlay.png"} & tree.keys()
        card = local_hub.objects[tree["README.md"].sha256].decode()
        assert front_matter(card)["license"] == "cc-by-4.0" and "## Limitations and biases" in card
    assert "0.728 ± 0.012" in card, "results.json lay in the folder at the last push"


@pytest.mark.slow  # imports everything in a process of its own
def test_pushed_model_loads_without_the_package(
    checkpoint: Path, photo: Path, local_hub: LocalHub, client: Client, tmp_path: Path
) -> None:
    with connected(local_hub, tmp_path / "cache"):
        trainer = pushing_trainer(checkpoint, tmp_path / "trained")
        trainer.add_callback(ModelCardCallback(trainer))
        trainer.train()
        trainer.push_to_hub()
    inputs = trainer.processing_class(images=[photo], text=["is there a ring"])
    with torch.no_grad():
        trained = trainer.model.eval()(**inputs).logits
    loaded = json.loads(client.output(LOAD, photo, before=WITHOUT_PACKAGE).splitlines()[-1])
    torch.testing.assert_close(torch.tensor(loaded), trained, atol=1e-5, rtol=0)


def test_example_picture_is_pushed_on_request(checkpoint: Path, local_hub: LocalHub, tmp_path: Path) -> None:
    output_dir = tmp_path / "trained"
    with connected(local_hub, tmp_path / "cache"):
        trainer = pushing_trainer(checkpoint, output_dir)
        trainer.add_callback(ModelCardCallback(trainer, with_example_picture=True))
        shutil.copy(checkpoint / "overlay.png", output_dir)
        shutil.copy(checkpoint / "overlay.png", output_dir / "other.png")
        trainer.push_to_hub()
    files = local_hub.files("user/trained")
    assert "overlay.png" in files and "other.png" not in files
    assert "(overlay.png)" in local_hub.read("user/trained", "README.md").decode()


def test_pushed_adapter_keeps_the_card_of_peft_and_names_its_base(
    checkpoint: Path, local_hub: LocalHub, tmp_path: Path
) -> None:
    with connected(local_hub, tmp_path / "cache"):
        trainer = pushing_trainer(checkpoint, tmp_path / "trained", adapter=True, max_steps=1)
        trainer.add_callback(ModelCardCallback(trainer, base_model=("user/base",)))
        trainer.train()
        trainer.push_to_hub()
    files = local_hub.files("user/trained")
    assert "adapter_model.safetensors" in files and not {"training_args.bin", "model.safetensors"} & set(files)
    card = local_hub.read("user/trained", "README.md").decode()
    metadata = front_matter(card)
    assert (metadata["library_name"], metadata["base_model"]) == ("peft", "user/base")
    assert "base_model:adapter:user/base" in card and str(tmp_path) not in card
    adapter = json.loads(local_hub.read("user/trained", "adapter_config.json"))
    assert adapter["base_model_name_or_path"] == "user/base"


@pytest.mark.parametrize(
    "arguments, message",
    [({"push_to_hub": False}, "pass `push_to_hub=True`"), ({"hub_token": "hf_secret"}, "Do not pass `hub_token`")],
)
def test_trainer_without_push_or_with_token_is_refused(
    checkpoint: Path, local_hub: LocalHub, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with connected(local_hub, tmp_path / "cache"):
        trainer = pushing_trainer(checkpoint, tmp_path / "trained", push_to_hub=False)
        trainer.hub_model_id = "user/trained" if "hub_token" in arguments else None  # type: ignore[assignment]
        trainer.args.hub_token = arguments.get("hub_token")
        with pytest.raises(ValueError, match=message):
            ModelCardCallback(trainer)


def test_old_name_adds_the_callback_with_one_warning(checkpoint: Path, local_hub: LocalHub, tmp_path: Path) -> None:
    with connected(local_hub, tmp_path / "cache"):
        trainer = pushing_trainer(checkpoint, tmp_path / "trained")
        with pytest.warns(FutureWarning, match="ModelCardCallback") as warned:
            keep_card(trainer, license="mit")
    assert len(warned) == 1
    assert isinstance(trainer.pop_callback(ModelCardCallback), ModelCardCallback)
