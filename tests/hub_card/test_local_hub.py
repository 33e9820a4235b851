"""The local Hub of the tests, used by the real huggingface_hub client."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub.connection import connected
from helpers.hub.fault import Fault
from helpers.hub.local_hub import LocalHub
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError

pytest_plugins = ["helpers.hub.fixtures"]

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture
def hub(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with connected(local_hub, tmp_path_factory.mktemp("cache")):
        yield local_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "config.json").write_text('{"model_type": "qca"}')
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    return tmp_path


def upload(folder: Path) -> str:
    HfApi().create_repo("user/model", exist_ok=True)
    return HfApi().upload_folder(repo_id="user/model", folder_path=folder).oid


def download(revision: str = "main") -> str:
    """SHA-256 of the downloaded weights."""
    return sha256(Path(snapshot_download("user/model", revision=revision)))


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_upload_comes_back_bit_for_bit_at_tag_and_commit(hub: LocalHub, folder: Path) -> None:
    first, expected = upload(folder), sha256(folder)
    HfApi().create_tag("user/model", tag="v1")
    (folder / "model.safetensors").write_bytes(b"newer")
    second = upload(folder)
    assert download("v1") == download(first) == expected
    assert download() == sha256(folder) != expected
    assert hub.head("user/model") == second != first
    assert hub.files("user/model", "v1") == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    uploads = [path for method, path, _ in hub.calls if method == "PUT"]
    assert len(uploads) == 2, "weights go by LFS, text goes in the commit"


def test_unchanged_folder_makes_no_commit(hub: LocalHub, folder: Path) -> None:
    first = upload(folder)
    assert upload(folder) == first == hub.head("user/model")


def test_files_in_gitignore_are_not_uploaded(hub: LocalHub, folder: Path) -> None:
    (folder / ".gitignore").write_text("training_args.bin\n*.png\n!shown.png\n")
    for name in ("training_args.bin", "hidden.png", "shown.png"):
        (folder / name).write_bytes(b"\0secret")
    upload(folder)
    kept = [".gitignore", "README.md", "config.json", "model.safetensors", "shown.png"]
    assert hub.files("user/model")[1:] == kept


@pytest.mark.parametrize(
    "token, message", [("hf_wrong", "Invalid credentials"), (None, "Invalid username or password")]
)
def test_write_without_valid_token_is_refused(
    local_hub: LocalHub, folder: Path, tmp_path: Path, token: str | None, message: str
) -> None:
    with connected(local_hub, tmp_path / "cache", token), pytest.raises(HfHubHTTPError, match=message):
        upload(folder)
    assert not local_hub.repositories


def test_private_repository_is_hidden_without_token(local_hub: LocalHub, tmp_path: Path) -> None:
    with connected(local_hub, tmp_path):
        HfApi().create_repo("user/secret", private=True)
        HfApi().model_info("user/secret")
    with connected(local_hub, tmp_path, token=None), pytest.raises(HfHubHTTPError, match="401"):
        HfApi().model_info("user/secret")


def test_invalid_card_stops_the_upload_before_the_weights(hub: LocalHub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: my-own\nmodel-index: [{name: x}]\n---\n")
    with pytest.raises(ValueError, match=r"(?s)license.*model-index"):
        upload(folder)
    assert not any(method == "PUT" for method, _, _ in hub.calls)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "PUT /_lfs", times=2),
        Fault("reset", "PUT /_lfs", times=2),
        Fault("lost_reply", "PUT /_lfs", times=1),
        Fault("slow", "PUT /_lfs", times=1, pieces=8, delay=0.02),
        Fault("status", "POST .*preupload", times=1, status=500),
    ],
    ids=lambda fault: f"{fault.kind} {fault.request}",
)
def test_upload_succeeds_after_temporary_faults(hub: LocalHub, folder: Path, fault: Fault) -> None:
    hub.faults.append(fault)
    upload(folder)
    assert fault.seen == fault.times
    assert hashlib.sha256(hub.read("user/model", "model.safetensors")).hexdigest() == sha256(folder)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("truncate", "GET /_cdn", times=1),
        Fault("slow", "GET /_cdn", times=1, pieces=8, delay=0.02),
        Fault("lost_reply", "GET /_cdn", times=1),
    ],
    ids=lambda fault: fault.kind,
)
def test_download_is_complete_after_temporary_faults(hub: LocalHub, folder: Path, fault: Fault) -> None:
    upload(folder)
    hub.faults.append(fault)
    assert (download(), fault.seen) == (sha256(folder), 1)


def test_failed_download_leaves_a_usable_cache(hub: LocalHub, folder: Path) -> None:
    upload(folder)
    hub.faults.append(Fault("lost_reply", "GET /_cdn"))
    with pytest.raises((HTTPError, OSError)):
        download()
    hub.faults.clear()
    assert download() == sha256(folder)


def test_token_revoked_during_upload_leaves_the_repository_unchanged(hub: LocalHub, folder: Path) -> None:
    before = upload(folder)
    (folder / "model.safetensors").write_bytes(b"newer")
    hub.faults.append(Fault("revoke", "POST .*/commit/"))
    with pytest.raises(HfHubHTTPError, match="401"):
        upload(folder)
    assert hub.head("user/model") == before


def test_lost_reply_to_a_commit_raises_although_the_commit_was_made(hub: LocalHub, folder: Path) -> None:
    """Why `push` retries: the second attempt changes nothing and returns the first attempt's commit."""
    hub.faults.append(Fault("lost_reply", "POST .*/commit/", times=1))
    with pytest.raises(HTTPError):
        upload(folder)
    made = hub.head("user/model")
    assert "model.safetensors" in hub.files("user/model")
    assert upload(folder) == made


def test_calls_are_recorded_with_their_status(hub: LocalHub) -> None:
    assert HfApi().whoami()["name"] == "user"
    assert hub.calls == [("GET", "/api/whoami-v2", 200)]
