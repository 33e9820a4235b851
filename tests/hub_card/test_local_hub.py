"""The local Hub against real huggingface_hub clients, each in a process of its own."""

import hashlib
import json
from pathlib import Path

import pytest
from helpers.hub.client import WITHOUT_WAITING, Client
from helpers.hub.fault import Fault
from helpers.hub.local_hub import LocalHub

pytest_plugins = ["helpers.hub.fixtures"]

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"
UPLOAD = """
    import sys
    from huggingface_hub import HfApi
    api = HfApi()
    api.create_repo("user/model", exist_ok=True)
    print(api.upload_folder(repo_id="user/model", folder_path=sys.argv[1]).oid)
"""
DOWNLOAD = """
    import hashlib, sys
    from huggingface_hub import snapshot_download
    path = snapshot_download("user/model", revision=sys.argv[1])
    print(hashlib.sha256(open(path + "/model.safetensors", "rb").read()).hexdigest())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "config.json").write_text('{"model_type": "qca"}')
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    return tmp_path


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_an_uploaded_folder_comes_back_bit_for_bit_at_the_tag_it_was_given(
    local_hub: LocalHub, client: Client, folder: Path
) -> None:
    first = client.output(UPLOAD, folder).strip()
    expected = sha256(folder)
    client.output("from huggingface_hub import HfApi; HfApi().create_tag('user/model', tag='v1')")
    (folder / "model.safetensors").write_bytes(b"newer")
    second = client.output(UPLOAD, folder).strip()
    assert client.output(DOWNLOAD, "v1").strip() == client.output(DOWNLOAD, first).strip() == expected
    assert client.output(DOWNLOAD, "main").strip() == sha256(folder) != expected
    assert local_hub.head("user/model") == second != first
    assert local_hub.files("user/model", "v1") == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    uploads = [path for method, path, _ in local_hub.calls if method == "PUT"]
    assert len(uploads) == 2, "weights go up by LFS, text within the commit"


def test_an_unchanged_folder_makes_no_commit(local_hub: LocalHub, client: Client, folder: Path) -> None:
    first = client.output(UPLOAD, folder).strip()
    assert client.output(UPLOAD, folder).strip() == first == local_hub.head("user/model")


def test_a_file_the_folders_gitignore_names_stays_behind(local_hub: LocalHub, client: Client, folder: Path) -> None:
    (folder / ".gitignore").write_text("training_args.bin\n")
    (folder / "training_args.bin").write_bytes(b"\0secret")
    client.output(UPLOAD, folder)
    assert local_hub.files("user/model")[1:] == [".gitignore", "README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "token, message", [("hf_wrong", "Invalid credentials"), (None, "Invalid username or password")]
)
def test_a_write_without_a_valid_token_is_refused(
    local_hub: LocalHub, client: Client, folder: Path, token: str | None, message: str
) -> None:
    done = client.run(UPLOAD, folder, token=token)
    assert done.returncode != 0 and message in done.stderr
    assert not local_hub.repositories


def test_a_private_repository_is_hidden_from_clients_without_the_token(local_hub: LocalHub, client: Client) -> None:
    client.output("from huggingface_hub import HfApi; HfApi().create_repo('user/secret', private=True)")
    look = "from huggingface_hub import HfApi; HfApi().model_info('user/secret')"
    client.output(look)
    assert "401" in client.run(look, token=None).stderr


def test_a_card_the_hub_would_refuse_stops_the_upload_before_any_weight(
    local_hub: LocalHub, client: Client, folder: Path
) -> None:
    (folder / "README.md").write_text("---\nlicense: my-own\nmodel-index: [{name: x}]\n---\n")
    done = client.run(UPLOAD, folder)
    assert done.returncode != 0 and "license" in done.stderr and "model-index" in done.stderr
    assert not any(method == "PUT" for method, _, _ in local_hub.calls)


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
def test_an_upload_outlives_passing_faults(local_hub: LocalHub, client: Client, folder: Path, fault: Fault) -> None:
    local_hub.faults.append(fault)
    commit = client.run(UPLOAD, folder, before=WITHOUT_WAITING)
    assert commit.returncode == 0, commit.stderr
    assert fault.seen == fault.times
    assert hashlib.sha256(local_hub.read("user/model", "model.safetensors")).hexdigest() == sha256(folder)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("truncate", "GET /_cdn", times=1),
        Fault("slow", "GET /_cdn", times=1, pieces=8, delay=0.02),
        Fault("lost_reply", "GET /_cdn", times=1),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_disturbed_download_is_whole_in_the_end(
    local_hub: LocalHub, client: Client, folder: Path, fault: Fault
) -> None:
    client.output(UPLOAD, folder)
    local_hub.faults.append(fault)
    done = client.run(DOWNLOAD, "main", before=WITHOUT_WAITING)
    assert (done.stdout.strip(), fault.seen) == (sha256(folder), 1), done.stderr


def test_a_download_that_never_completes_fails_and_leaves_a_cache_that_a_later_one_can_use(
    local_hub: LocalHub, client: Client, folder: Path
) -> None:
    client.output(UPLOAD, folder)
    local_hub.faults.append(Fault("lost_reply", "GET /_cdn"))
    assert client.run(DOWNLOAD, "main", before=WITHOUT_WAITING, home="shared").returncode != 0
    local_hub.faults.clear()
    assert client.output(DOWNLOAD, "main", home="shared").strip() == sha256(folder)


def test_a_token_revoked_in_mid_upload_leaves_the_repository_at_its_commit(
    local_hub: LocalHub, client: Client, folder: Path
) -> None:
    client.output(UPLOAD, folder)
    before = local_hub.head("user/model")
    (folder / "model.safetensors").write_bytes(b"newer")
    local_hub.faults.append(Fault("revoke", "POST .*/commit/"))
    done = client.run(UPLOAD, folder)
    assert done.returncode != 0 and "401" in done.stderr
    assert local_hub.head("user/model") == before


def test_a_lost_reply_to_a_commit_looks_like_a_failure_although_the_commit_was_made(
    local_hub: LocalHub, client: Client, folder: Path
) -> None:
    """Why publishing retries: the second attempt finds nothing to change and returns the commit that was made."""
    local_hub.faults.append(Fault("lost_reply", "POST .*/commit/", times=1))
    assert client.run(UPLOAD, folder).returncode != 0
    made = local_hub.head("user/model")
    assert "model.safetensors" in local_hub.files("user/model")
    assert client.output(UPLOAD, folder).strip() == made


def test_the_calls_are_recorded_with_their_status(local_hub: LocalHub, client: Client) -> None:
    name = client.output("from huggingface_hub import whoami; import json; print(json.dumps(whoami()['name']))")
    assert json.loads(name) == "user"
    assert local_hub.calls == [("GET", "/api/whoami-v2", 200)]
