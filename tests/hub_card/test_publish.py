"""`qca push`: the published files, and the checkpoints that are refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.hub.card_validation import card_problems
from helpers.hub.checkpoint import example_results
from helpers.hub.local_hub import TOKEN
from helpers.hub.publishing import Published
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.hub_card.card import Release
from modeling_qca.hub_card.publish import push
from modeling_qca.hub_card.results_file import read_results
from modeling_qca.hub_card.upload_folder import write_upload_folder
from modeling_qca.training.confidence.calibration_error import calibration_table
from modeling_qca.training.confidence.familiarity import fit_familiarity
from modeling_qca.training.confidence.selective import selective_table
from modeling_qca.training.fitting.recipe import load_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes

pytest_plugins = ["helpers.hub.fixtures"]

RELEASE = Release("user/model", "v1")


# What is published


def test_upload_folder_has_every_file_and_the_same_weights(checkpoint: Path, folder: Path) -> None:
    write_upload_folder(checkpoint, folder, RELEASE)
    code = {path.name for path in folder.glob("*.py")}
    settings = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    others = {"model.safetensors", "README.md", "results.json"}
    assert {path.name for path in folder.iterdir()} == code | settings | others
    assert {"modeling_qca.py", "configuration_qca.py", "processing_qca.py", "pipeline_qca.py"} <= code
    assert code == {path.name for path in checkpoint.glob("*.py")} | {"handler.py"}
    before, after = load_file(checkpoint / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert read_results(folder / "results.json") == example_results()


def test_config_names_the_classes_of_the_published_code(checkpoint: Path, folder: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "modeling_qca.AnOlderName"
    (checkpoint / "config.json").write_text(json.dumps(config))
    write_upload_folder(checkpoint, folder, RELEASE)
    published = json.loads((folder / "config.json").read_text())
    names = [*published["auto_map"].values(), published["custom_pipelines"]["visual-question-answering"]["impl"]]
    for module, name in (reference.split(".") for reference in names):
        assert f"class {name}(" in (folder / f"{module}.py").read_text()


def test_other_files_of_a_training_folder_are_not_published(checkpoint: Path, folder: Path) -> None:
    leftovers = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "notes.txt", ".env"}
    for name in leftovers:
        (checkpoint / name).write_bytes(b"\x80 hf_" + b"x" * 34)
    (checkpoint / "README.md").write_text("draft of the Trainer")
    write_upload_folder(checkpoint, folder, RELEASE)
    assert not leftovers & {path.name for path in folder.iterdir()}
    assert "draft" not in (folder / "README.md").read_text()


def test_dry_run_lists_the_uploaded_files_and_contacts_nobody(published: Published) -> None:
    published.hub.calls.clear()
    planned = push(published.checkpoint, "user/model", dry_run=True, tag="v1")
    assert planned.url is None and not published.hub.calls
    stored = published.hub.repositories["user/model"].tree("v1")
    assert {path: blob.size for path, blob in stored.items() if path != ".gitattributes"} == planned.files


def test_push_makes_one_commit_and_its_tag(published: Published) -> None:
    repository = published.hub.repositories["user/model"]
    assert [commit.title for commit in repository.commits.values()][:2] == ["initial commit", "v1"]
    assert repository.refs["refs/tags/v1"] == list(repository.commits)[1]


def test_training_run_is_published_with_its_measurements(tmp_path: Path, folder: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 8, "validation": 4}, seed=0)
    (tmp_path / "recipe.yaml").write_text(
        f"data: {tmp_path / 'scenes'}\noutput_dir: {tmp_path / 'run'}\nmodel: qca-tiny\n"
        "attention_supervision: every_hop\n"
        "max_steps: 1\nbaselines: [question_only]\nsave_strategy: 'no'\n"
    )
    train(load_recipe(tmp_path / "recipe.yaml", {}))
    write_upload_folder(tmp_path / "run", folder, RELEASE)
    results = read_results(folder / "results.json")
    assert results["recipe"]["data"] == "scenes" and results["data"]["images"] == 4
    card = (folder / "README.md").read_text()
    for shown in (results["metrics"]["accuracy"], *results["attention"]["pointing"].values()):
        assert f"{shown:.3f}" in card
    assert card_problems(card) == ([], [])


def test_pictures_are_published_only_on_request(checkpoint: Path, folder: Path) -> None:
    planned = push(checkpoint, "user/model", dry_run=True)
    assert "overlay.png" not in planned.files and planned.withheld == ("overlay.png",)
    asked = push(checkpoint, "user/model", dry_run=True, with_example_picture=True)
    assert "overlay.png" in asked.files and asked.withheld == ()
    write_upload_folder(checkpoint, folder, RELEASE)
    assert "overlay" not in (folder / "README.md").read_text()


def test_published_picture_has_the_pixels_and_no_metadata(checkpoint: Path, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = "SECRET"  # description and artist
    text = PngInfo()
    text.add_text("path", "/home/me/SECRET.jpg")
    with Image.open(checkpoint / "overlay.png") as original:
        pixels = original.convert("RGB").tobytes()
        original.save(checkpoint / "overlay.png", exif=exif, pnginfo=text)
    assert b"SECRET" in (checkpoint / "overlay.png").read_bytes()
    write_upload_folder(checkpoint, folder, RELEASE, with_example_picture=True)
    assert b"SECRET" not in (folder / "overlay.png").read_bytes()
    with Image.open(folder / "overlay.png") as published:
        assert published.tobytes() == pixels and not published.getexif() and not published.info
    assert "(overlay.png)" in (folder / "README.md").read_text()


def test_missing_picture_is_refused_on_request(checkpoint: Path, folder: Path) -> None:
    (checkpoint / "overlay.png").unlink()
    with pytest.raises(ValueError, match=r"has no overlay.png to publish"):
        write_upload_folder(checkpoint, folder, RELEASE, with_example_picture=True)


def test_local_folders_are_removed_from_the_results(checkpoint: Path, folder: Path) -> None:
    results = example_results(
        command=f"qca train {checkpoint}/rooms.yaml --data=/home/me/rooms --output_dir runs/a",
        recipe={"data": "C:\\Users\\me\\rooms", "vision_model": "facebook/dinov2-small", "learning_rate": 2e-5},
    )
    (checkpoint / "results.json").write_text(json.dumps(results))
    write_upload_folder(checkpoint, folder, RELEASE)
    published = read_results(folder / "results.json")
    assert published["command"] == "qca train rooms.yaml --data=rooms --output_dir runs/a"
    assert published["recipe"] == {"data": "rooms", "vision_model": "facebook/dinov2-small", "learning_rate": 2e-5}


@pytest.mark.parametrize("fingerprint", ["c0ffee12", "of other rows"])
def test_calibration_is_published_without_digests_and_with_its_own_measurements(
    checkpoint: Path, folder: Path, fingerprint: str
) -> None:
    sure, score = np.array([0.9, 0.6, 0.4]), np.array([1.0, 0.0, 1.0])
    measured = {
        "calibration": calibration_table(sure, score, ["a", "b", "c"]),
        "selective": selective_table(sure, score),
    }
    content = {"temperature": 1.75, "thresholds": [0.5] * 100, "abstain_answer": None, "images": ["0123456789abcdef"]}
    content |= {"after": measured, "data": {"fingerprint": fingerprint}, "command": "qca calibrate /home/me/run"}
    (checkpoint / "calibration.json").write_text(json.dumps(content))
    fit_familiarity(np.eye(4), np.eye(4)).write(checkpoint / "trained_questions.safetensors")
    stale = {"calibration": {"temperature": 1.0} | measured["calibration"], "selective": measured["selective"]}
    (checkpoint / "results.json").write_text(json.dumps(example_results(**stale)))
    write_upload_folder(checkpoint, folder, RELEASE)
    published = json.loads((folder / "calibration.json").read_text())
    assert published == content | {"images": None, "command": "qca calibrate run"}
    assert (folder / "trained_questions.safetensors").exists()
    results, card = read_results(folder / "results.json"), (folder / "README.md").read_text()
    if fingerprint == "of other rows":
        assert "calibration" not in results and "How sure it is" not in card
    else:
        assert results["calibration"]["temperature"] == 1.75
        assert f"{results['calibration']['ece']:.3f}" in card and "at a temperature of\n1.750" in card
    assert card_problems(card) == ([], [])


# What is refused


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", '{"model_type": "bert"}', "holds a 'bert' model"),
        ("config.json", "{}", "names no model type"),
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", None, "config.json cannot be read"),
        ("model.safetensors", None, "cannot be loaded"),
        ("model.safetensors", "not weights", "cannot be loaded"),
        ("tokenizer.json", None, "cannot be loaded"),
        ("results.json", '{"metrics": {}}', "results.json: 'baselines' is missing"),
    ],
)
def test_broken_checkpoint_is_refused_with_one_message(
    checkpoint: Path, folder: Path, name: str, content: str | None, message: str
) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_upload_folder(checkpoint, folder, RELEASE)


def test_missing_weights_are_refused(checkpoint: Path, folder: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["classifier.0.weight"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as classifier.0.weight"):
        write_upload_folder(checkpoint, folder, RELEASE)


@pytest.mark.parametrize(
    "secret, message",
    [
        ("hf_" + "aB3" * 12, "results.json holds an access token"),
        (TOKEN, "results.json holds an access token"),
        ("hf_transfer", None),
    ],
)
def test_token_is_never_published(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, secret: str, message: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (checkpoint / "results.json").write_text(
        json.dumps(example_results(command=f"HF_TOKEN={secret} qca train a.yaml"))
    )
    if message is None:
        write_upload_folder(checkpoint, folder, RELEASE)
    else:
        with pytest.raises(ValueError, match=message):
            write_upload_folder(checkpoint, folder, RELEASE)


def test_encoder_folders_are_removed_and_hub_ids_kept(checkpoint: Path, folder: Path) -> None:
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    model.config.vision_config.name_or_path = "facebook/dinov2-small"
    model.config.text_config.name_or_path = str(checkpoint / "encoder")
    model.save_pretrained(checkpoint)
    write_upload_folder(checkpoint, folder, RELEASE)
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_config"]["_name_or_path"] == "facebook/dinov2-small"
    assert "_name_or_path" not in config["text_config"]


def test_absolute_path_in_a_config_is_refused(checkpoint: Path, folder: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["vocabulary"] = "/home/me/vocabulary.txt"
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json holds the absolute path /home/me/vocabulary.txt"):
        write_upload_folder(checkpoint, folder, RELEASE)


@pytest.mark.parametrize("repo_id", ["rooms", "user/model/extra", "-bad", "user/mo del"])
def test_invalid_repo_id_is_refused_before_reading(repo_id: str) -> None:
    with pytest.raises(ValueError, match=r"[Rr]epo"):
        push("nowhere", repo_id)
