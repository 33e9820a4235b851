"""A checkpoint -> a folder that holds all and only what goes on the Hub -> one commit there, and a tag.

Nothing is uploaded as it lies: the folder is written anew from the loaded checkpoint and then searched for secrets.
"""

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoFile, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.configuration_qca import AUTO_MAP, CUSTOM_PIPELINES
from modeling_qca.training.files.run_files import OVERLAY, RESULTS

from .card import Release, Results, card_metadata, is_hub_id, model_card, read_results

CARD = "README.md"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALLOWED = {".json", ".jinja", ".md", ".model", ".png", ".py", ".safetensors", ".txt"}
READABLE = {".json", ".jinja", ".md", ".py", ".txt"}
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}
# what a push takes away at the top of a repository, where it has nothing to put in its place
REPLACED = {".py", ".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt"}
REPLACED_FILES = {"config.json", ADAPTER_CONFIG, RESULTS, OVERLAY}
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
ABSOLUTE_PATH = re.compile(r"(?<![\w/.:~])~?(?:/[\w.@+-]+){2,}/?|(?<!\w)[A-Za-z]:(?:\\{1,2}[\w.@+-]+)+")
RETRYABLE_STATUS = {408, 429, 500, 502, 503, 504}
ATTEMPTS = 3
REQUEST_TIMEOUT = 60.0  # seconds without a byte after which a request has failed
RETRY_DEADLINE = 180.0  # seconds after which a failed request is not made again

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Publication:
    """Args:
    files: path in the repository -> size in bytes.
    url: of the commit; None after a dry run.
    """

    files: dict[str, int]
    url: str | None


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
) -> Publication:
    """Publishes a checkpoint, or a LoRA adapter of one, in one commit.

    Code and weights that an earlier push left in the repository are replaced as a whole. A tag names a commit of the
    same files beside the one on main, made before it: whatever fails, main is as it was. The token is the one of
    `hf auth login` or of HF_TOKEN.

    Args:
        checkpoint: folder with the model (or adapter), and with `results.json` and `overlay.png` where there are any.
        repo_id: `owner/name`.
        dry_run: assemble and check, but contact nobody.
        private: for a repository that does not exist yet.
        tag, license, language, base_model: see `Release`; an adapter has one base model, its own unless given.

    Raises:
        ValueError: for a checkpoint that cannot be published, for a tag or visibility the repository contradicts, and
            for an adapter whose base model is the run that has it merged, which a dry run cannot tell.
        PermissionError: where the Hub refuses the token.
        ConnectionError: where the Hub fails or cannot be reached, after retries.
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"Repo id {repo_id!r} lacks its owner: pass owner/name.")
    release, checkpoint = Release(repo_id, tag, license, language, base_model), Path(checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        assemble(checkpoint, folder, release)
        files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*"))}
        return Publication(files, None if dry_run else _upload(folder, release, private, _merged_run(checkpoint)))


def assemble(checkpoint: Path, folder: Path, release: Release) -> None:
    """Writes what would be published into the empty `folder`.

    Raises:
        ValueError: for a checkpoint that is none of ours or incomplete, and for a secret in what would be published.
    """
    results = read_results(checkpoint / RESULTS) if (checkpoint / RESULTS).exists() else None
    if results is not None:
        results = _without_directories(results)
        (folder / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (checkpoint / ADAPTER_CONFIG).exists():
        _assemble_adapter(checkpoint, folder, release, results)
    else:
        _assemble_model(checkpoint, folder, release, results)
    check_folder(folder)


def _assemble_model(checkpoint: Path, folder: Path, release: Release, results: Results | None) -> None:
    _check_model_type(checkpoint)
    try:
        loaded: Any = QCAForVisualQuestionAnswering.from_pretrained(checkpoint, output_loading_info=True)
        processor = QCAProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} cannot be loaded: {str(error).splitlines()[0]}") from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{checkpoint} lacks {len(missing)} weights, such as {missing[0]}; it is not a whole model.")
    forget_folders(model.config)
    model.config.auto_map = dict(AUTO_MAP)  # of the code that is saved now
    model.config.custom_pipelines = dict(CUSTOM_PIPELINES)
    model.save_pretrained(folder)
    for state in ("is_local", "local_files_only"):  # of this process, which transformers would save with the tokenizer
        processor.tokenizer.init_kwargs.pop(state, None)
    processor.save_pretrained(folder)
    overlay = OVERLAY if (checkpoint / OVERLAY).exists() else None
    if overlay:
        shutil.copyfile(checkpoint / overlay, folder / overlay)
    model_card(model.config, results, release, overlay).save(folder / CARD)


def forget_folders(config: Any) -> None:
    """Drops the folders the encoders of a `QCAConfig` came from, which saving would keep; Hub ids stay."""
    for encoder in (config.vision_config, config.text_config):
        if not is_hub_id(encoder.name_or_path):
            encoder.name_or_path = ""


def _check_model_type(checkpoint: Path) -> None:
    config = _read_json(checkpoint / "config.json")
    if config.get("model_type") != QCAConfig.model_type:
        raise ValueError(
            f"{checkpoint} holds a {config.get('model_type')!r} model; only qca models are published here."
        )


def _assemble_adapter(checkpoint: Path, folder: Path, release: Release, results: Results | None) -> None:
    config = _read_json(checkpoint / ADAPTER_CONFIG)
    if not (checkpoint / ADAPTER_WEIGHTS).exists():
        raise ValueError(f"{checkpoint} has no {ADAPTER_WEIGHTS}; save the adapter with save_pretrained.")
    base = config["base_model_name_or_path"] = adapter_base(config["base_model_name_or_path"], release)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(checkpoint / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    card = ModelCard.load(checkpoint / CARD)
    for key, value in card_metadata(results, release).to_dict().items():
        if key not in ("library_name", "tags", "base_model_relation"):
            card.data[key] = value
    card.data["base_model"], card.data["base_model_relation"] = base, "adapter"
    # PEFT's tag of the base model it was trained on names a folder of this machine
    card.data["tags"] = [re.sub(r"^(base_model:adapter:).*", rf"\g<1>{base}", tag) for tag in card.data.tags or []]
    card.save(folder / CARD)


def adapter_base(stored: str | None, release: Release) -> str:
    """The Hub id of an adapter's base model: the release's, or the `stored` one of the adapter.

    Raises:
        ValueError: where that is a folder, or nothing.
    """
    base = release.base_model[0] if release.base_model else stored
    if base is None or not is_hub_id(base):
        raise ValueError(
            f"The adapter's base model {base!r} is not on the Hub: push it first, and pass its id as `base_model`. It "
            "is the model before LoRA was merged; a run that has the adapter merged needs none."
        )
    return base


def _merged_run(adapter: Path) -> set[str]:
    """SHA-256 of the weights of the run an adapter lies in, which has it merged; of nothing else."""
    run = adapter.resolve().parent
    if not (adapter / ADAPTER_CONFIG).exists() or not (run / RESULTS).exists():
        return set()
    if read_results(run / RESULTS).get("recipe", {}).get("lora_rank") is None:
        return set()
    return {_sha256(path) for path in run.glob("*.safetensors")}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); pass the folder of a saved checkpoint."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _without_directories(value: Any) -> Any:
    """Every absolute path in the strings of `value` shortened to its last part."""
    if isinstance(value, dict):
        return {key: _without_directories(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_directories(inner) for inner in value]
    if isinstance(value, str):
        return ABSOLUTE_PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], value)
    return value


def check_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: naming the file that may hold a pickle, a token or an absolute path.
    """
    token = get_token()
    for path in sorted(folder.rglob("*"), key=lambda path: path.name == CARD):  # the card only repeats the others
        if path.suffix not in ALLOWED:
            raise ValueError(f"{path.name} is not published: only {', '.join(sorted(ALLOWED))} files are.")
        if path.suffix not in READABLE:
            continue
        text = path.read_text(encoding="utf-8")
        if TOKEN.search(text) or (token is not None and token in text):
            raise ValueError(f"{path.name} holds an access token; remove it, and revoke it if it was shared.")
        if path.name not in VOCABULARIES and (match := ABSOLUTE_PATH.search(text)):
            raise ValueError(f"{path.name} holds the absolute path {match[0]}; make it relative or remove it.")


def _check_base(api: HfApi, base: str, merged: set[str]) -> None:
    """
    Raises:
        ValueError: where `base` holds `merged` weights: loading would apply the adapter twice, and say nothing.
    """
    stored = _retry(lambda: list(api.list_repo_tree(base)))
    if merged & {file.lfs.sha256 for file in stored if isinstance(file, RepoFile) and file.lfs}:
        raise ValueError(
            f"{base} has this adapter merged and would get it twice: pass, as `base_model`, the model before LoRA was "
            "merged."
        )


def _upload(folder: Path, release: Release, private: bool, merged: set[str]) -> str:
    """One commit on main. Its tag is made first, on a branch of its own: main moves once all else is done.

    Args:
        merged: of `_merged_run`.
    """
    api = HfApi()
    repo_id, tag = release.repo_id, release.tag
    branch = f"push-{tag}"

    def commit_to(revision: str) -> CommitInfo:
        return _retry(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=tag or "Publish",
                delete_patterns=replaced,
            )
        )

    outcome = f"{repo_id} was not published"
    begun = done = False
    try:
        if merged:
            _check_base(api, _read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"], merged)
        _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        info = _retry(lambda: api.model_info(repo_id))
        if private and not info.private:
            raise ValueError(f"{repo_id} exists and is public; make it private on the Hub, or choose another name.")
        refs = _retry(lambda: api.list_repo_refs(repo_id))
        if branch in [ref.name for ref in refs.branches]:  # of a push that was cut off, whose tag counts for nothing
            _retry(lambda: _remove(lambda: api.delete_tag(repo_id, tag=str(tag))))
            _retry(lambda: _remove(lambda: api.delete_branch(repo_id, branch=branch)))
        elif tag in [ref.name for ref in refs.tags]:
            raise ValueError(f"{repo_id} already has a tag {tag!r}; choose another one.")
        stored = [file.rfilename for file in info.siblings or []]
        top = [name for name in stored if "/" not in name]
        replaced = [name for name in top if Path(name).suffix in REPLACED or name in REPLACED_FILES]
        if tag:
            begun = True
            _retry(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
            tagged = commit_to(branch).oid
            _retry(lambda: api.create_tag(repo_id, tag=tag, revision=tagged, exist_ok=True))
        commit = commit_to("main")
        done = True
    except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error  # a failed upload comes wrapped
        raise _as_one_message(cause or error, outcome) from error
    finally:
        if begun:
            with suppress(HTTPError):  # a Hub that does not answer keeps them for the next push to remove
                if not done:
                    _with_timeout(lambda: _remove(lambda: api.delete_tag(repo_id, tag=str(tag))))
                _with_timeout(lambda: api.delete_branch(repo_id, branch=branch))
    return commit.commit_url


def _remove(request: Callable[[], None]) -> None:
    """The deletion of a ref that may be gone: it never was, or the reply to a first attempt was lost."""
    try:
        request()
    except HfHubHTTPError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise


def _retry(request: Callable[[], Outcome]) -> Outcome:
    """`request`, which must be harmless to repeat, again after a failure that may pass.

    huggingface_hub itself repeats the parts of an upload, but not creating, committing and tagging. A commit whose
    reply was lost is found made by the second attempt, which has nothing left to change.
    """
    started = time.monotonic()
    for attempt in range(1, ATTEMPTS):
        try:
            return _with_timeout(request)
        except (HTTPError, json.JSONDecodeError) as error:  # a gateway may send HTML where JSON was expected
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in RETRYABLE_STATUS:
                raise
            if time.monotonic() - started > RETRY_DEADLINE:
                raise
            time.sleep(2**attempt)
    return _with_timeout(request)


def _with_timeout(request: Callable[[], Outcome]) -> Outcome:
    """`request`, given up where the Hub is silent: huggingface_hub itself would wait for ever."""
    session = get_session()
    before, session.timeout = session.timeout, REQUEST_TIMEOUT
    try:
        return request()
    finally:
        session.timeout = before


def _as_one_message(error: BaseException, outcome: str) -> OSError:
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"{outcome}: the Hub cannot be reached ({error}). Run the command again.")
    status = error.response.status_code
    if status in (401, 403):
        return PermissionError(
            f"{outcome}: the Hub refuses the token ({status}). Log in with `hf auth login` and a token that may write."
        )
    reason = error.server_message or error.response.reason_phrase
    return ConnectionError(f"{outcome}: the Hub answers {status} {reason}. Run the command again.")
