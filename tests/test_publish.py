"""Publishing: what goes up, what is refused, what faults do, and that what was published loads anywhere."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hub.checkpoint import example_results, save_checkpoint
from hub.client import WITHOUT_PACKAGE, WITHOUT_WAITING, Client
from hub.fault import Fault
from hub.local_hub import TOKEN, LocalHub
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_image, tiny_processor
from typer.testing import CliRunner

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.hub_card.card import Release, read_results
from modeling_qca.hub_card.command import push as push_command
from modeling_qca.hub_card.publish import assemble, push

pytest_plugins = ["hub.fixtures"]

RELEASE = Release("user/model", "v1")
QUESTIONS = ["what color is the cube", "is there a ring", "how many balls left of the cube"]
# Arguments and keyword arguments of one `push` after another; prints the outcome of each.
PUSH = """
    import json, sys
    from modeling_qca.hub_card.publish import push
    for checkpoint, repo_id, options in json.loads(sys.argv[1]):
        try:
            print(push(checkpoint, repo_id, **options).url)
        except (ValueError, OSError) as error:
            print(f"{type(error).__name__}: {error}")
"""
# Loads through every Auto class and the pipeline and prints what a process with the package computes too.
LOAD = """
    import json, sys, torch
    from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor, pipeline
    repo_id, revision, photo, *questions = sys.argv[1:]
    source = {"revision": revision, "trust_remote_code": True}
    config = AutoConfig.from_pretrained(repo_id, **source)
    base = AutoModel.from_pretrained(repo_id, **source)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(repo_id, **source).eval()
    inputs = AutoProcessor.from_pretrained(repo_id, **source)(images=[photo], text=questions)
    ask = pipeline("visual-question-answering", model=repo_id, **source)
    with torch.no_grad():
        print(json.dumps({
            "module": type(model).__module__,
            "classes": [type(config).__name__, type(base).__name__, type(model).__name__],
            "logits": model(**inputs).logits.tolist(),
            "query": base.eval()(**inputs).query.tolist(),
            "answers": [answers[0]["answer"] for answers in ask(photo, questions)],
        }))
"""


Job = tuple[Path, str, dict[str, Any]]


def run_pushes(client: Client, *jobs: Job, before: str = "") -> list[str]:
    """The commit's URL or the error of each push, all made by one client process."""
    encoded = json.dumps([(str(checkpoint), repo_id, options) for checkpoint, repo_id, options in jobs])
    return client.output(PUSH, encoded, before=before).splitlines()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "assembled").mkdir()
    return tmp_path / "assembled"


@dataclass(frozen=True)
class Published:
    """A checkpoint that was pushed as user/model, tag v1, and a photo to ask about."""

    checkpoint: Path
    photo: Path
    hub: LocalHub
    client: Client


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    place = tmp_path_factory.mktemp("published")
    save_checkpoint(place / "checkpoint")
    tiny_image(seed=5).save(place / "photo.png")
    with LocalHub() as hub:
        client = Client(hub, tmp_path_factory.mktemp("clients"))
        run_pushes(client, (place / "checkpoint", "user/model", {"tag": "v1"}))
        yield Published(place / "checkpoint", place / "photo.png", hub, client)


def expected(published: Published) -> dict[str, Any]:
    """What `LOAD` must print, computed with the package from the local checkpoint."""
    model = QCAForVisualQuestionAnswering.from_pretrained(published.checkpoint).eval()
    inputs = tiny_processor()(images=Image.open(published.photo), text=QUESTIONS)
    with torch.no_grad():
        logits, query = model(**inputs).logits, model.qca(**inputs).query
    answers = [model.config.id2label[answer] for answer in logits.argmax(-1).tolist()]
    return {"logits": logits, "query": query, "answers": answers}


def load_elsewhere(published: Published, repo_id: str | Path, revision: str) -> dict[str, Any]:
    arguments = (repo_id, revision, published.photo, *QUESTIONS)
    return json.loads(published.client.output(LOAD, *arguments, before=WITHOUT_PACKAGE).splitlines()[-1])


def assert_same(loaded: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert loaded["module"].startswith("transformers_modules.")
    for name in ("logits", "query"):
        torch.testing.assert_close(torch.tensor(loaded[name]), wanted[name], atol=1e-5, rtol=0)
    assert loaded["answers"] == wanted["answers"]


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


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
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "notes.txt", ".env"):
        (checkpoint / name).write_bytes(b"\x80 hf_" + b"x" * 34)
    (checkpoint / "README.md").write_text("draft of the Trainer")
    assemble(checkpoint, folder, RELEASE)
    assert not {"training_args.bin", "optimizer.pt", "rng_state.pth", "notes.txt"} & set(hashes(folder))
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


def test_the_command_shows_every_file_and_what_nothing_was_done_about(checkpoint: Path) -> None:
    command = typer.Typer()
    command.command()(push_command)
    options = ["--dry_run", "--tag", "v1", "--license", "cc-by-4.0", "--base_model", "a/b", "--base_model", "c/d"]
    shown = CliRunner().invoke(command, [str(checkpoint), "user/model", *options])
    assert shown.exit_code == 0, shown.output
    for name in push(checkpoint, "user/model", dry_run=True).files:
        assert name in shown.output
    assert "Nothing was uploaded" in shown.output


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


def test_an_absolute_path_in_a_config_is_refused_by_name(checkpoint: Path, folder: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["vocabulary"] = "/home/me/vocabulary.txt"
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json holds the absolute path /home/me/vocabulary.txt"):
        assemble(checkpoint, folder, RELEASE)


@pytest.mark.parametrize("repo_id", ["user/model/extra", "-bad", "user/mo del"])
def test_an_impossible_repository_name_is_refused_before_anything_is_read(repo_id: str) -> None:
    with pytest.raises(ValueError, match=r"[Rr]epo"):
        push("nowhere", repo_id)


# Loading elsewhere


def test_what_was_pushed_loads_by_tag_without_the_package_and_gives_the_same_logits(published: Published) -> None:
    loaded = load_elsewhere(published, "user/model", "v1")
    assert_same(loaded, expected(published))
    assert loaded["classes"] == ["QCAConfig", "QCAModel", "QCAForVisualQuestionAnswering"]


@pytest.mark.slow
def test_the_examples_of_the_card_run_as_they_stand(published: Published) -> None:
    card = published.hub.read("user/model", "README.md", "v1").decode()
    remote, installed, as_pipeline, _ = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    at_photo = f"import shutil; shutil.copyfile({str(published.photo)!r}, 'photo.jpg')\n"
    end = "print(heat_maps[0].shape, type(model).__module__)"
    printed = published.client.output(at_photo + remote + as_pipeline + installed + end)
    assert printed.count("'answer'") == 9
    assert "torch.Size([2, 4, 4]) modeling_qca.modeling_qca" in printed


# Forks and newer releases


REPUSH = """
    import sys
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
    source = {"revision": "v1", "trust_remote_code": True}
    for auto in (AutoModelForVisualQuestionAnswering, AutoProcessor):
        part = auto.from_pretrained("user/model", **source)
        part.save_pretrained(sys.argv[1])
        part.push_to_hub("user/fork")
"""
UPLOAD = """
    import sys
    from huggingface_hub import HfApi
    folder, repo_id, tag = sys.argv[1:]
    HfApi().create_repo(repo_id, exist_ok=True)
    HfApi().create_tag(repo_id, tag=tag, revision=HfApi().upload_folder(repo_id=repo_id, folder_path=folder).oid)
"""


def test_a_loaded_remote_checkpoint_pushed_again_still_loads(published: Published, tmp_path: Path) -> None:
    published.client.output(REPUSH, tmp_path, before=WITHOUT_PACKAGE)
    assert_same(load_elsewhere(published, "user/fork", "main"), expected(published))


@pytest.mark.slow
def test_a_loaded_remote_checkpoint_saved_again_still_loads(published: Published, tmp_path: Path) -> None:
    published.client.output(REPUSH, tmp_path / "saved", before=WITHOUT_PACKAGE)
    assert_same(load_elsewhere(published, tmp_path / "saved", "main"), expected(published))


@pytest.mark.slow
def test_a_class_renamed_in_a_newer_release_leaves_the_older_tag_as_it_was(published: Published, folder: Path) -> None:
    assemble(published.checkpoint, folder, RELEASE)
    for path in [*folder.glob("*.py"), folder / "config.json"]:
        path.write_text(path.read_text().replace("QCAForVisualQuestionAnswering", "QCAForAnswering"))
    published.client.output(UPLOAD, folder, "user/model", "v2")
    older, newer = (load_elsewhere(published, "user/model", tag) for tag in ("v1", "v2"))
    assert (older["classes"][2], newer["classes"][2]) == ("QCAForVisualQuestionAnswering", "QCAForAnswering")
    assert_same(older, expected(published))
    assert_same(newer, expected(published))


def test_a_push_replaces_the_code_and_weights_of_an_earlier_one_and_keeps_other_files(
    checkpoint: Path, tmp_path: Path, local_hub: LocalHub, client: Client
) -> None:
    old = tmp_path / "old"
    (old / "extra").mkdir(parents=True)
    for name in ("pytorch_model.bin", "training_args.bin", "model-00001-of-00002.safetensors", "old_qca.py", "NOTICE"):
        (old / name).write_text(name)
    (old / "extra" / "weights.bin").write_text("not ours")
    client.output(UPLOAD, old, "user/model", "v0")
    run_pushes(client, (checkpoint, "user/model", {}))
    planned = push(checkpoint, "user/model", dry_run=True).files
    assert set(local_hub.files("user/model")) == planned.keys() | {".gitattributes", "NOTICE", "extra/weights.bin"}


# Faults


def change_weights(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    weights = load_file(checkpoint / "model.safetensors")
    changed = {name: tensor + torch.rand(()) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_passing_faults_of_every_kind_end_in_one_commit_and_its_tag(
    checkpoint: Path, local_hub: LocalHub, client: Client
) -> None:
    local_hub.faults += [
        Fault("status", "POST /api/repos/create", times=1),
        Fault("lost_reply", "POST /api/repos/create", times=1),
        Fault("status", "POST /api/validate-yaml", times=1, status=502),
        Fault("status", "POST .*preupload", times=1, status=429),
        Fault("reset", "PUT /_lfs", times=1),
        Fault("slow", "PUT /_lfs", times=1, pieces=8, delay=0.05),
        Fault("lost_reply", "POST .*/commit/", times=1),
        Fault("status", "POST .*/tag/", times=1, status=500),
        Fault("lost_reply", "POST .*/tag/", times=1),
    ]
    (url,) = run_pushes(client, (checkpoint, "user/model", {"tag": "v1", "private": True}), before=WITHOUT_WAITING)
    assert url.endswith(local_hub.head("user/model"))
    assert [fault for fault in local_hub.faults if fault.seen != fault.times] == []
    repository = local_hub.repositories["user/model"]
    assert [commit.title for commit in repository.commits.values()] == ["initial commit", "v1"]
    assert repository.refs["refs/tags/v1"] == local_hub.head("user/model") and repository.private


def test_a_lasting_fault_ends_in_one_message_and_changes_nothing(
    checkpoint: Path, tmp_path: Path, local_hub: LocalHub, client: Client
) -> None:
    newer, unlucky = (change_weights(checkpoint, tmp_path / name) for name in ("newer", "unlucky"))
    unlucky_weights = hashlib.sha256((unlucky / "model.safetensors").read_bytes()).hexdigest()
    local_hub.faults += [
        Fault("reset", f"PUT /_lfs/{unlucky_weights}"),
        Fault("none", "POST .*user/b/commit/", times=1),
        Fault("status", "POST .*user/b/commit/"),
        Fault("none", "POST .*user/c/tag/", times=1),
        Fault("status", "POST .*user/c/tag/"),
        Fault("none", "POST .*user/d/commit/", times=1),
        Fault("revoke", "POST .*user/d/commit/"),
    ]
    first = [(checkpoint, f"user/{name}", {"tag": "v1"}) for name in "abcd"]
    second = [(unlucky if name == "a" else newer, f"user/{name}", {"tag": "v2"}) for name in "abcd"]
    before = hashes(tmp_path)
    *_, a, b, c, d = run_pushes(client, *first, *second, before=WITHOUT_WAITING)
    assert a.startswith("ConnectionError: user/a was not published: the Hub cannot be reached (")
    assert "uploading" not in a, "the cause, not the name huggingface_hub wraps it in"
    assert b.startswith("ConnectionError: user/b was not published: the Hub answers 503 Service Unavailable.")
    assert c.startswith("ConnectionError: user/c was published, but without its tag v2: the Hub answers 503")
    assert d.startswith("PermissionError: user/d was not published: the Hub refuses the token (401).")
    assert hashes(tmp_path) == before
    for name in "abd":
        repository = local_hub.repositories[f"user/{name}"]
        assert repository.refs["refs/tags/v1"] == repository.refs["refs/heads/main"]
    assert "refs/tags/v2" not in local_hub.repositories["user/c"].refs


def test_a_push_that_may_not_be_made_is_refused_before_any_upload(published: Published, tmp_path: Path) -> None:
    newer = change_weights(published.checkpoint, tmp_path / "newer")
    published.hub.calls.clear()
    outcomes = run_pushes(
        published.client,
        (newer, "user/model", {"tag": "v1"}),
        (newer, "user/model", {"private": True}),
        (newer, "somebody/model", {}),
    )
    assert outcomes == [
        "ValueError: user/model already has a tag 'v1'; choose another one.",
        "ValueError: user/model exists and is public; make it private on the Hub, or choose another name.",
        "PermissionError: somebody/model was not published: the Hub refuses the token (403). Log in with "
        "`hf auth login` and a token that may write.",
    ]
    assert not any(method == "PUT" or "/commit/" in path for method, path, _ in published.hub.calls)
