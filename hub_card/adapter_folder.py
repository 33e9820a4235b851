"""The upload folder of a PEFT adapter: its weights, its config, and PEFT's card with our metadata."""

import hashlib
import json
import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, RepoFile

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.training.files.run_files import RESULTS

from .card import CARD, Release, card_metadata, is_hub_id
from .hub_requests import retry
from .results_file import Results, read_json, read_results

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# `AutoPeftModel` imports this. Transformers' module of downloaded code, which PEFT would write, cannot be imported.
AUTO_MAPPING = {"base_model_class": QCAForVisualQuestionAnswering.__name__, "parent_library": "modeling_qca"}


def write_adapter_folder(checkpoint: Path, folder: Path, release: Release, results: Results | None) -> None:
    """Write an adapter to `folder`: of PEFT's `save_pretrained`, a `Trainer`'s checkpoint, or a run's adapter/.

    Raises:
        ValueError: There are no safetensors weights, or the base model is not on the Hub.
    """
    config = read_json(checkpoint / ADAPTER_CONFIG)
    if not (checkpoint / ADAPTER_WEIGHTS).exists():
        raise ValueError(f"{checkpoint} has no {ADAPTER_WEIGHTS}; save the adapter with save_pretrained.")
    base = config["base_model_name_or_path"] = adapter_base(config.get("base_model_name_or_path"), release)
    if config.get("task_type") is None:
        config["auto_mapping"] = AUTO_MAPPING
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(checkpoint / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    _adapter_card(checkpoint / CARD, base, release, results).save(folder / CARD)


def _adapter_card(path: Path, base: str, release: Release, results: Results | None) -> ModelCard:
    """PEFT's card with our metadata."""
    if path.exists():
        card = ModelCard.load(path)
    else:
        card = ModelCard.from_template(ModelCardData(library_name="peft"), model_id=release.name)
    for key, value in card_metadata(results, release).to_dict().items():
        if key not in ("library_name", "tags", "base_model_relation"):
            card.data[key] = value
    card.data["library_name"] = "peft"  # a `Trainer` may have written its own
    card.data["base_model"], card.data["base_model_relation"] = base, "adapter"
    # PEFT's tag of the base model names a local folder
    card.data["tags"] = [re.sub(r"^(base_model:adapter:).*", rf"\g<1>{base}", tag) for tag in card.data.tags or []]
    return card


def adapter_base(stored: str | None, release: Release) -> str:
    """The Hub id of an adapter's base model: of the release, or else the `stored` one of the adapter.

    Raises:
        ValueError: The base model is a folder or unknown.
    """
    base = release.base_model[0] if release.base_model else stored
    if base is None or not is_hub_id(base):
        raise ValueError(
            f"The adapter's base model {base!r} is not on the Hub: push it first, and pass its id as `base_model`. It "
            "is the model before LoRA was merged; a run that has the adapter merged needs none."
        )
    return base


def merged_weights(adapter: Path) -> set[str]:
    """SHA-256 of the weights of the run around a run's adapter/ folder, which hold the adapter merged."""
    run = adapter.resolve().parent
    if not (adapter / ADAPTER_CONFIG).exists() or not (run / RESULTS).exists():
        return set()
    if read_results(run / RESULTS).get("recipe", {}).get("lora_rank") is None:
        return set()
    return {_sha256(path) for path in run.glob("*.safetensors")}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_base_is_not_merged(api: HfApi, base: str, merged: set[str]) -> None:
    """
    Args:
        base: Hub id of the base model.
        merged: of `merged_weights`.

    Raises:
        ValueError: `base` has the adapter merged, so that loading would apply it twice without a warning.
    """
    stored = retry(lambda: list(api.list_repo_tree(base)))
    if merged & {file.lfs.sha256 for file in stored if isinstance(file, RepoFile) and file.lfs}:
        raise ValueError(
            f"{base} has this adapter merged and would get it twice: pass, as `base_model`, the model before LoRA was "
            "merged."
        )
