"""Publishing while the Hub or the network fails: success after retries, or one message and nothing changed."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from helpers.hub.client import WITHOUT_WAITING, Client
from helpers.hub.fault import Fault
from helpers.hub.local_hub import LocalHub
from helpers.hub.publishing import Published, run_pushes
from safetensors.torch import load_file, save_file

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
        Fault("lost_reply", "POST .*/branch/", times=1),
        Fault("lost_reply", "POST .*/commit/push-v1", times=1),
        Fault("lost_reply", "POST .*/commit/main", times=1),
        Fault("status", "POST .*/tag/", times=1, status=500),
        Fault("lost_reply", "POST .*/tag/", times=1),
    ]
    (url,) = run_pushes(client, (checkpoint, "user/model", {"tag": "v1", "private": True}), before=WITHOUT_WAITING)
    assert url.endswith(local_hub.head("user/model"))
    assert [fault for fault in local_hub.faults if fault.seen != fault.times] == []
    repository = local_hub.repositories["user/model"]
    main, tagged = (repository.commits[repository.refs[ref]] for ref in ("refs/heads/main", "refs/tags/v1"))
    assert main.tree == tagged.tree and main.parent == tagged.parent and main.title == tagged.title == "v1"
    assert len(repository.commits) == 3 and len(repository.refs) == 2 and repository.private


LASTING = {  # the second push's fault -> what it says
    "at-weights": "ConnectionError: {} was not published: the Hub cannot be reached (",
    "at-branch": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-commit": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-tag": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-main": "ConnectionError: {} was not published: the Hub answers 503 Service Unavailable.",
    "at-revoked": "PermissionError: {} was not published: the Hub refuses the token (401).",
    "at-last": "PermissionError: {} was not published: the Hub refuses the token (401).",
}


@pytest.mark.slow  # starts five processes
def test_a_lasting_fault_ends_in_one_message_and_changes_nothing(
    checkpoint: Path, tmp_path: Path, local_hub: LocalHub, client: Client
) -> None:
    newer, unlucky = (change_weights(checkpoint, tmp_path / name) for name in ("newer", "unlucky"))
    unlucky_weights = hashlib.sha256((unlucky / "model.safetensors").read_bytes()).hexdigest()
    before = hashes(tmp_path)
    first = run_pushes(client, *((checkpoint, f"user/{name}", {"tag": "v1"}) for name in LASTING))
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
    outcomes = run_pushes(client, *jobs[:-2], before=WITHOUT_WAITING)
    for job, request in zip(jobs[-2:], ("commit/push-v2", "commit/main"), strict=True):
        local_hub.faults += [Fault("revoke", f"POST .*{job[1]}/{request}")]
        outcomes += run_pushes(client, job, before=WITHOUT_WAITING)
        local_hub.revoked = False
    for (name, message), outcome in zip(LASTING.items(), outcomes, strict=True):
        assert outcome.startswith(message.format(f"user/{name}")), outcome
        assert local_hub.head(f"user/{name}") == heads[name]
        left = {"push-v2", "v2"} if name == "at-last" else {"push-v2"} if name == "at-revoked" else set()
        assert {ref.split("/")[-1] for ref in local_hub.repositories[f"user/{name}"].refs} == {"main", "v1"} | left
    assert "uploading" not in outcomes[0], "the cause, not the name huggingface_hub wraps it in"
    assert hashes(tmp_path) == before
    local_hub.faults[:] = [Fault("lost_reply", f"DELETE .*/{ref}/", times=1) for ref in ("branch", "tag")]
    again = run_pushes(client, *jobs[-2:], before=WITHOUT_WAITING)
    assert [fault.seen for fault in local_hub.faults] == [1, 1]
    for (_, repo_id, _), url in zip(jobs[-2:], again, strict=True):
        repository = local_hub.repositories[repo_id]
        assert url.endswith(local_hub.head(repo_id)) and repository.tree("v2") == repository.tree("main")
        assert set(repository.refs) == {"refs/heads/main", "refs/tags/v1", "refs/tags/v2"}


IMPATIENT = WITHOUT_WAITING + "from modeling_qca.hub_card import publish; publish.REQUEST_TIMEOUT = 0.5\n"


@pytest.mark.slow  # waits for it
def test_a_hub_that_falls_silent_is_given_up_and_one_that_comes_back_is_not(
    checkpoint: Path, tmp_path: Path, local_hub: LocalHub, client: Client
) -> None:
    newer = change_weights(checkpoint, tmp_path / "newer")
    silence = {"kind": "stall", "delay": 20.0}
    local_hub.faults += [
        Fault(request="POST /api/repos/create", times=1, **silence),
        Fault(request="PUT /_lfs", times=1, **silence),
        Fault(request="POST .*/commit/", times=1, **silence),
    ]
    (first,) = run_pushes(client, (checkpoint, "user/model", {"tag": "v1"}), before=IMPATIENT)
    assert first.endswith(local_hub.head("user/model")) and [fault.seen for fault in local_hub.faults] == [1, 1, 1]
    for request in ("PUT /_lfs", "POST .*/commit/", "GET .*/refs"):
        local_hub.faults[:] = [Fault(request=request, **silence)]
        (outcome,) = run_pushes(client, (newer, "user/model", {"tag": "v2"}), before=IMPATIENT)
        assert outcome.startswith("ConnectionError: user/model was not published: the Hub cannot be reached (")
        assert outcome.endswith("timed out). Run the command again.")
        assert first.endswith(local_hub.head("user/model"))


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


