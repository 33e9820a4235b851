"""Publishing: what goes up, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub.card_validation import card_metadata, card_problems
from helpers.hub.checkpoint import example_results
from helpers.hub.client import Client
from helpers.hub.local_hub import TOKEN, LocalHub
from helpers.hub.publishing import Published, run_pushes
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.hub_card.card import Release, read_results
from modeling_qca.hub_card.publish import adapter_base, assemble, push
from modeling_qca.hub_card.trainer_push import keep_model_card
from modeling_qca.training.fitting.adapters import lora_config
from modeling_qca.training.fitting.recipe import load_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes

pytest_plugins = ["helpers.hub.fixtures"]

RELEASE = Release("user/model", "v1")


# What goes up


def test_a_folder_is_assembled_whole_with_the_same_weights(checkpoint: Path, folder: Path) -> None:
    assemble(checkpoint, folder, RELEASE)
    code = {path.name for path in folder.glob("*.py")}
    settings = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    others = {"model.safetensors", "README.md", "results.json", "overlay.png"}
    assert {path.name for path in folder.iterdir()} == code | settings | others
    assert {"modeling_qca.py", "configuration_qca.py", "processing_qca.py", "pipeline_qca.py"} <= code
    assert code == {path.name for path in checkpoint.glob("*.py")}
    before, after = load_file(checkpoint / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert read_results(folder / "results.json") == example_results()


def test_the_config_names_the_classes_of_the_code_that_goes_with_it(checkpoint: Path, folder: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "modeling_qca.AnOlderName"
    (checkpoint / "config.json").write_text(json.dumps(config))
    assemble(checkpoint, folder, RELEASE)
    published = json.loads((folder / "config.json").read_text())
    names = [*published["auto_map"].values(), published["custom_pipelines"]["visual-question-answering"]["impl"]]
    for module, name in (reference.split(".") for reference in names):
        assert f"class {name}(" in (folder / f"{module}.py").read_text()


def test_only_what_belongs_to_the_model_is_taken_from_a_training_folder(checkpoint: Path, folder: Path) -> None:
    leftovers = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "notes.txt", ".env"}
    for name in leftovers:
        (checkpoint / name).write_bytes(b"\x80 hf_" + b"x" * 34)
    (checkpoint / "README.md").write_text("draft of the Trainer")
    assemble(checkpoint, folder, RELEASE)
    assert not leftovers & {path.name for path in folder.iterdir()}
    assert "draft" not in (folder / "README.md").read_text()


def test_a_dry_run_lists_exactly_what_a_push_uploads_and_contacts_nobody(published: Published) -> None:
    published.hub.calls.clear()
    planned = push(published.checkpoint, "user/model", dry_run=True, tag="v1")
    assert planned.url is None and not published.hub.calls
    stored = published.hub.repositories["user/model"].tree("v1")
    assert {path: blob.size for path, blob in stored.items() if path != ".gitattributes"} == planned.files


def test_a_push_is_one_commit_that_the_tag_names(published: Published) -> None:
    repository = published.hub.repositories["user/model"]
    assert [commit.title for commit in repository.commits.values()][:2] == ["initial commit", "v1"]
    assert repository.refs["refs/tags/v1"] == list(repository.commits)[1]


def test_what_training_writes_is_published_as_it_stands(tmp_path: Path, folder: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 8, "validation": 4}, seed=0)
    (tmp_path / "recipe.yaml").write_text(
        f"data: {tmp_path / 'scenes'}\noutput_dir: {tmp_path / 'run'}\nmodel: qca-tiny\nrelevance: every_hop\n"
        "max_steps: 1\nbaselines: [question_only]\nsave_strategy: 'no'\n"
    )
    train(load_recipe(tmp_path / "recipe.yaml", {}))
    assemble(tmp_path / "run", folder, RELEASE)
    results = read_results(folder / "results.json")
    assert results["recipe"]["data"] == "scenes" and results["data"]["images"] == 4
    card = (folder / "README.md").read_text()
    for shown in (results["metrics"]["accuracy"], *results["attention"]["pointing"].values()):
        assert f"{shown:.3f}" in card
    assert card_problems(card) == ([], [])


@pytest.fixture
def lora_run(tmp_path: Path) -> Path:
    """What training low-rank adapters leaves."""
    write_scenes(tmp_path / "scenes", {"train": 8, "validation": 4}, seed=0)
    (tmp_path / "lora.yaml").write_text(
        f"data: {tmp_path / 'scenes'}\noutput_dir: {tmp_path / 'run'}\nmodel: qca-tiny\nlora_rank: 2\n"
        "max_steps: 2\nsave_strategy: 'no'\n"
    )
    train(load_recipe(tmp_path / "lora.yaml", {}))
    return tmp_path / "run"


@pytest.fixture
def adapted(checkpoint: Path) -> Any:
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    return get_peft_model(model, lora_config(model))


def test_the_card_of_an_adapter_names_its_base_by_hub_id_alone(adapted: Any, tmp_path: Path, folder: Path) -> None:
    adapted.save_pretrained(tmp_path / "adapter")
    assert f"base_model:adapter:{tmp_path}" in (tmp_path / "adapter" / "README.md").read_text()
    assemble(tmp_path / "adapter", folder, Release("user/adapter", base_model=("user/base",)))
    metadata = card_metadata((folder / "README.md").read_text())
    assert metadata["base_model"] == "user/base"
    assert [tag for tag in metadata["tags"] if "base_model" in tag] == ["base_model:adapter:user/base"]


def test_the_card_peft_writes_for_a_trainer_names_its_base_by_hub_id_alone(
    adapted: Any, tmp_path: Path, folder: Path
) -> None:
    trainer = Trainer(adapted, TrainingArguments(str(folder), use_cpu=True, report_to="none"))
    trainer.hub_model_id = "user/adapter"  # type: ignore[assignment]
    keep_model_card(trainer, base_model=("user/base",))
    adapted.save_pretrained(str(folder))
    card = (folder / "README.md").read_text()
    assert "base_model:adapter:user/base" in card and str(tmp_path) not in card




def test_directories_of_this_machine_are_cut_from_the_results(checkpoint: Path, folder: Path) -> None:
    results = example_results(
        command=f"qca train {checkpoint}/rooms.yaml --data=/home/me/rooms --output_dir runs/a",
        recipe={"data": "C:\\Users\\me\\rooms", "vision_model": "facebook/dinov2-small", "learning_rate": 2e-5},
    )
    (checkpoint / "results.json").write_text(json.dumps(results))
    assemble(checkpoint, folder, RELEASE)
    published = read_results(folder / "results.json")
    assert published["command"] == "qca train rooms.yaml --data=rooms --output_dir runs/a"
    assert published["recipe"] == {"data": "rooms", "vision_model": "facebook/dinov2-small", "learning_rate": 2e-5}


# What is refused


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", '{"model_type": "bert"}', "holds a 'bert' model"),
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", None, "config.json cannot be read"),
        ("model.safetensors", None, "cannot be loaded"),
        ("model.safetensors", "not weights", "cannot be loaded"),
        ("tokenizer.json", None, "cannot be loaded"),
        ("results.json", '{"metrics": {}}', "results.json: 'baselines' is missing"),
    ],
)
def test_a_checkpoint_that_cannot_be_published_is_refused_in_one_message(
    checkpoint: Path, folder: Path, name: str, content: str | None, message: str
) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        assemble(checkpoint, folder, RELEASE)


def test_weights_that_would_be_random_after_loading_are_refused(checkpoint: Path, folder: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["classifier.0.weight"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as classifier.0.weight"):
        assemble(checkpoint, folder, RELEASE)


@pytest.mark.parametrize(
    "secret, message",
    [
        ("hf_" + "aB3" * 12, "results.json holds an access token"),
        (TOKEN, "results.json holds an access token"),
        ("hf_transfer", None),
    ],
)
def test_a_token_is_never_published(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, secret: str, message: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (checkpoint / "results.json").write_text(
        json.dumps(example_results(command=f"HF_TOKEN={secret} qca train a.yaml"))
    )
    if message is None:
        assemble(checkpoint, folder, RELEASE)
    else:
        with pytest.raises(ValueError, match=message):
            assemble(checkpoint, folder, RELEASE)


def test_the_folders_of_the_encoders_are_forgotten_and_their_hub_ids_kept(checkpoint: Path, folder: Path) -> None:
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    model.config.vision_config.name_or_path = "facebook/dinov2-small"
    model.config.text_config.name_or_path = str(checkpoint / "encoder")
    model.save_pretrained(checkpoint)
    assemble(checkpoint, folder, RELEASE)
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_config"]["_name_or_path"] == "facebook/dinov2-small"
    assert "_name_or_path" not in config["text_config"]


def test_an_absolute_path_in_a_config_is_refused_by_name(checkpoint: Path, folder: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["vocabulary"] = "/home/me/vocabulary.txt"
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json holds the absolute path /home/me/vocabulary.txt"):
        assemble(checkpoint, folder, RELEASE)


def test_the_run_that_has_an_adapter_merged_is_not_published_as_its_base(
    lora_run: Path, checkpoint: Path, local_hub: LocalHub, client: Client
) -> None:
    merged, refused, _, accepted = run_pushes(
        client,
        (lora_run, "user/merged", {}),
        (lora_run / "adapter", "user/adapter", {"base_model": ["user/merged"]}),
        (checkpoint, "user/base", {}),
        (lora_run / "adapter", "user/other", {"base_model": ["user/base"]}),
    )
    assert merged.startswith("http") and accepted.startswith("http")
    assert refused == (
        "ValueError: user/merged has this adapter merged and would get it twice: pass, as `base_model`, the model "
        "before LoRA was merged."
    )
    assert "user/adapter" not in local_hub.repositories
    with pytest.raises(ValueError, match=r"before LoRA was merged; a run that has the adapter merged needs none"):
        adapter_base(None, Release("user/adapter"))


@pytest.mark.parametrize("repo_id", ["rooms", "user/model/extra", "-bad", "user/mo del"])
def test_an_impossible_repository_name_is_refused_before_anything_is_read(repo_id: str) -> None:
    with pytest.raises(ValueError, match=r"[Rr]epo"):
        push("nowhere", repo_id)
