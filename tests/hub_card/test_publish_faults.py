"""Pushes while the Hub or the network fails: success after retries, or one message and no change."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from helpers.hub.fault import Fault
from helpers.hub.local_hub import LocalHub
from helpers.hub.publishing import Published, run_pushes
from safetensors.torch import load_file, save_file

from modeling_qca.hub_card import hub_requests

pytest_plugins = ["helpers.hub.fixtures"]


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def change_weights(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    weights = load_file(checkpoint / "model.safetensors")
    changed = {name: tensor + torch.rand(()) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_temporary_faults_of_every_kind_end_in_one_commit_and_its_tag(
    checkpoint: Path, local_hub: LocalHub, tmp_path: Path
) -> None:
    local_hub.faults += [
        Fault("status", "POST /api/repos/create", times=1),
        Fault("lost_reply", "POST /api/repos/create", times=1),
        Fault("status", "POST /api/validate-yaml", times=1, status=502),
        Fault("status", "POST .*preupload", times=1, status=429),
        Fault("reset", "PUT /_lfs", times=1),
        Fault("slow", "PUT /_lfs", times=1, pieces=8, delay=0.05),
        Fault("lost_reply", "POST .*/branch/", times=1),
        Fault("lost_reply", "POST .*/commit/push-v1", times=1),
        Fault("lost_reply", "POST .*/commit/main", times=1),
        Fault("status", "POST .*/tag/", times=1, status=500),
        Fault("lost_reply", "POST .*/tag/", times=1),
    ]
    job = (checkpoint, "user/model", {"tag": "v1", "private": True})
    (url,) = run_pushes(local_hub, tmp_path / "cache", job)
    assert url.endswith(local_hub.head("user/model"))
    assert [fault for fault in local_hub.faults if fault.seen != fault.times] == []
    repository = local_hub.repositories["user/model"]
    main, tagged = (repository.commits[repository.refs[ref]] for ref in ("refs/heads/main", "refs/tags/v1"))
    assert main.tree == tagged.tree and main.parent == tagged.parent and main.title == tagged.title == "v1"
    assert len(repository.commits) == 3 and len(repository.refs) == 2 and repository.private


LASTING = {  # the name says where the second push fails -> its message
    "at-weights": "ConnectionError: {} was not published: the Hub cannot be reached (",
    "at-branch": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-commit": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-tag": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-main": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-revoked": "PermissionError: {} was not published: the Hub refuses the token (401).",
    "at-last": "PermissionError: {} was not published: the Hub refuses the token (401).",
}


@pytest.mark.slow  # 23 pushes
def test_lasting_fault_ends_in_one_message_and_changes_nothing(
    checkpoint: Path, tmp_path: Path, local_hub: LocalHub
) -> None:
    newer, unlucky = (change_weights(checkpoint, tmp_path / name) for name in ("newer", "unlucky"))
    unlucky_weights = hashlib.sha256((unlucky / "model.safetensors").read_bytes()).hexdigest()
    before, cache = hashes(tmp_path), tmp_path / "cache"
    first = run_pushes(local_hub, cache, *((checkpoint, f"user/{name}", {"tag": "v1"}) for name in LASTING))
    heads = {name: local_hub.head(f"user/{name}") for name in LASTING}
    assert all(url.endswith(head) for url, head in zip(first, heads.values(), strict=True))
    local_hub.faults += [
        Fault("reset", f"PUT /_lfs/{unlucky_weights}"),
        Fault("status", "POST .*user/at-branch/branch/"),
        Fault("status", "POST .*user/at-commit/commit/push-v2"),
        Fault("status", "POST .*user/at-tag/tag/"),
        Fault("status", "POST .*user/at-main/commit/main"),
    ]
    jobs = [(unlucky if name == "at-weights" else newer, f"user/{name}", {"tag": "v2"}) for name in LASTING]
    outcomes = run_pushes(local_hub, cache, *jobs[:-2])
    for job, request in zip(jobs[-2:], ("commit/push-v2", "commit/main"), strict=True):
        local_hub.faults += [Fault("revoke", f"POST .*{job[1]}/{request}")]
        outcomes += run_pushes(local_hub, cache, job)
        local_hub.revoked = False
    for (name, message), outcome in zip(LASTING.items(), outcomes, strict=True):
        assert outcome.startswith(message.format(f"user/{name}")), outcome
        assert local_hub.head(f"user/{name}") == heads[name]
        left = {"push-v2", "v2"} if name == "at-last" else {"push-v2"} if name == "at-revoked" else set()
        assert {ref.split("/")[-1] for ref in local_hub.repositories[f"user/{name}"].refs} == {"main", "v1"} | left
    assert "uploading" not in outcomes[0], "the cause, not the error that huggingface_hub wraps it in"
    assert hashes(tmp_path) == before
    local_hub.faults[:] = [Fault("lost_reply", f"DELETE .*/{ref}/", times=1) for ref in ("branch", "tag")]
    again = run_pushes(local_hub, cache, *jobs[-2:])
    assert [fault.seen for fault in local_hub.faults] == [1, 1]
    for (_, repo_id, _), url in zip(jobs[-2:], again, strict=True):
        repository = local_hub.repositories[repo_id]
        assert url.endswith(local_hub.head(repo_id)) and repository.tree("v2") == repository.tree("main")
        assert set(repository.refs) == {"refs/heads/main", "refs/tags/v1", "refs/tags/v2"}


@pytest.mark.slow  # waits for the timeouts
def test_push_retries_after_a_silence_and_fails_if_it_lasts(
    checkpoint: Path, tmp_path: Path, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_requests, "REQUEST_TIMEOUT", 0.5)
    newer, cache = change_weights(checkpoint, tmp_path / "newer"), tmp_path / "cache"
    silence = {"kind": "stall", "delay": 20.0}
    local_hub.faults += [
        Fault(request="POST /api/repos/create", times=1, **silence),
        Fault(request="PUT /_lfs", times=1, **silence),
        Fault(request="POST .*/commit/", times=1, **silence),
    ]
    (first,) = run_pushes(local_hub, cache, (checkpoint, "user/model", {"tag": "v1"}))
    assert first.endswith(local_hub.head("user/model")) and [fault.seen for fault in local_hub.faults] == [1, 1, 1]
    for request in ("PUT /_lfs", "POST .*/commit/", "GET .*/refs"):
        local_hub.faults[:] = [Fault(request=request, **silence)]
        (outcome,) = run_pushes(local_hub, cache, (newer, "user/model", {"tag": "v2"}))
        assert outcome.startswith("ConnectionError: user/model was not published: the Hub cannot be reached (")
        assert outcome.endswith("timed out). Run the command again.")
        assert first.endswith(local_hub.head("user/model"))


def test_push_without_permission_is_refused_before_any_upload(published: Published, tmp_path: Path) -> None:
    newer = change_weights(published.checkpoint, tmp_path / "newer")
    published.hub.calls.clear()
    outcomes = run_pushes(
        published.hub,
        tmp_path / "cache",
        (newer, "user/model", {"tag": "v1"}),
        (newer, "user/model", {"private": True}),
        (newer, "somebody/model", {}),
    )
    assert [outcome.split(":")[0] for outcome in outcomes] == ["ValueError", "ValueError", "PermissionError"]
    messages = ("already has a tag 'v1'", "exists and is public", "the Hub refuses the token (403)")
    assert all(message in outcome for message, outcome in zip(messages, outcomes, strict=True)), outcomes
    assert not any(method == "PUT" or "/commit/" in path for method, path, _ in published.hub.calls)
