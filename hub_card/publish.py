"""`push`: one checkpoint as one commit on the Hub, and a tag."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id

from modeling_qca.training.files.run_files import CALIBRATION, OVERLAY, RESULTS

from .adapter_folder import ADAPTER_CONFIG, check_base_is_not_merged, merged_weights
from .card import Release
from .hub_requests import clear_error, ignore_not_found, retry, with_timeout
from .results_file import read_json
from .upload_folder import write_upload_folder

# files at the top of a repository that a push deletes if it does not replace them
REPLACED_SUFFIXES = {".py", ".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt"}
REPLACED_FILES = {"config.json", ADAPTER_CONFIG, CALIBRATION, RESULTS, OVERLAY}

Files = dict[str, int]


@dataclass(frozen=True)
class Publication:
    """Args:
    files: path in the repository -> size in bytes.
    withheld: pictures of the checkpoint that are not published.
    url: of the commit; None after a dry run.
    """

    files: Files
    withheld: tuple[str, ...] = ()
    url: str | None = None


def push(
    checkpoint: str | Path,
    repo_id: str,
    *,
    dry_run: bool = False,
    private: bool = False,
    tag: str | None = None,
    license: str = "apache-2.0",
    language: str = "en",
    base_model: tuple[str, ...] = (),
    with_example_picture: bool = False,
    before_upload: Callable[[Files], None] = lambda files: None,
) -> Publication:
    """Publish a checkpoint, or a LoRA adapter of one, in one commit.

    A push replaces all code and weights in the repository. The tag is made before the commit on main, so that main
    does not change if anything fails. The token is that of `hf auth login` or of HF_TOKEN.

    Args:
        checkpoint: folder with the model or adapter, and results.json if it was evaluated.
        repo_id: `owner/name`.
        dry_run: write and check the files, but contact nobody.
        private: for a repository that does not exist yet.
        tag, license, language, base_model: see `Release`. The first base model of an adapter replaces its own.
        with_example_picture: publish overlay.png, an answered question of the validation rows with its photo.
        before_upload: called with the files before anything is sent.

    Raises:
        ValueError: The checkpoint cannot be published, the tag or visibility contradicts the repository, or the base
            model of an adapter has the adapter merged. A dry run does not check the last one.
        PermissionError: The Hub refuses the token.
        ConnectionError: The Hub fails or cannot be reached, after retries.
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"Repo id {repo_id!r} lacks its owner: pass owner/name.")
    release, checkpoint = Release(repo_id, tag, license, language, base_model), Path(checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_upload_folder(checkpoint, folder, release, with_example_picture=with_example_picture)
        files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*"))}
        withheld = tuple(name for name in (OVERLAY,) if (checkpoint / name).exists() and name not in files)
        if dry_run:
            return Publication(files, withheld)
        before_upload(files)
        return Publication(files, withheld, _upload(folder, release, private, merged_weights(checkpoint)))


def _upload(folder: Path, release: Release, private: bool, merged: set[str]) -> str:
    """Commit `folder` to main and return the URL of the commit.

    Args:
        merged: of `merged_weights`.
    """
    api = HfApi()
    try:
        if merged:
            check_base_is_not_merged(api, read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"], merged)
        commit = partial(_commit, api, folder, release, _prepare_repository(api, release, private))
        with _tagged(api, release.repo_id, release.tag, commit) if release.tag else nullcontext():
            return commit("main").commit_url
    except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
        # huggingface_hub wraps the error of a failed upload in a RuntimeError
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        raise clear_error(cause or error, f"{release.repo_id} was not published") from error


def _prepare_repository(api: HfApi, release: Release, private: bool) -> list[str]:
    """Create the repository if necessary and return the files in it that a push replaces.

    Raises:
        ValueError: The repository is public instead of private, or has the tag already.
    """
    repo_id, tag = release.repo_id, release.tag
    retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    info = retry(lambda: api.model_info(repo_id))
    if private and not info.private:
        raise ValueError(f"{repo_id} exists and is public; make it private on the Hub, or choose another name.")
    refs = retry(lambda: api.list_repo_refs(repo_id))
    if tag and _branch(tag) in [ref.name for ref in refs.branches]:  # an interrupted push left an unfinished tag
        _delete_tag_and_branch(api, repo_id, tag, attempt=retry)
    elif tag in [ref.name for ref in refs.tags]:
        raise ValueError(f"{repo_id} already has a tag {tag!r}; choose another one.")
    top = [file.rfilename for file in info.siblings or [] if "/" not in file.rfilename]
    return [name for name in top if Path(name).suffix in REPLACED_SUFFIXES or name in REPLACED_FILES]


def _commit(api: HfApi, folder: Path, release: Release, replaced: list[str], revision: str) -> CommitInfo:
    return retry(
        lambda: api.upload_folder(
            repo_id=release.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=release.tag or "Publish",
            delete_patterns=replaced,
        )
    )


@contextmanager
def _tagged(api: HfApi, repo_id: str, tag: str, commit: Callable[[str], CommitInfo]) -> Iterator[None]:
    """Tag a commit on a temporary branch. Delete the tag if the block under `with` fails.

    The branch marks an unfinished tag. If the Hub does not answer, it stays, and the next push deletes both.
    """
    try:
        retry(lambda: api.create_branch(repo_id, branch=_branch(tag), exist_ok=True))
        tagged = commit(_branch(tag)).oid
        retry(lambda: api.create_tag(repo_id, tag=tag, revision=tagged, exist_ok=True))
        yield
    except BaseException:
        with suppress(HTTPError):
            _delete_tag_and_branch(api, repo_id, tag, attempt=with_timeout)
        raise
    with suppress(HTTPError):
        with_timeout(lambda: api.delete_branch(repo_id, branch=_branch(tag)))


def _branch(tag: str) -> str:
    return f"push-{tag}"


def _delete_tag_and_branch(api: HfApi, repo_id: str, tag: str, attempt: Callable[[Callable[[], None]], Any]) -> None:
    attempt(lambda: ignore_not_found(lambda: api.delete_tag(repo_id, tag=tag)))
    attempt(lambda: ignore_not_found(lambda: api.delete_branch(repo_id, branch=_branch(tag))))
