"""A trained checkpoint, read from a folder or the Hub: a whole model, or a PEFT adapter with its base model."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import cached_file

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline

logger = logging.getLogger(__name__)
ADAPTER_CONFIG = "adapter_config.json"


def load_pipeline(checkpoint: str) -> QCAVisualQuestionAnsweringPipeline:
    """The pipeline around a checkpoint's model and processor. It runs the installed code, not the checkpoint's.

    Raises:
        ValueError: see [`load_checkpoint`] and [`load_processor`].
    """
    model: Any = load_checkpoint(checkpoint)
    return QCAVisualQuestionAnsweringPipeline(model=model, processor=load_processor(checkpoint))


def load_checkpoint(source: str, **fields: Any) -> QCAForVisualQuestionAnswering:
    """
    Load a model, with some fields of its config changed. A PEFT adapter is merged into its base model.

    Weights that are new because of the changed `fields` are named in a warning.

    Args:
        source: a folder or a Hub id.

    Raises:
        ValueError: `source` holds no checkpoint, another kind of model, damaged weights, or an adapter whose base
            model cannot be loaded.
    """
    if (base := adapter_base(source)) is not None:
        return _merge_adapter(source, load_checkpoint(base, **fields))
    try:
        model_type = QCAConfig.get_config_dict(source)[0].get("model_type")
    except OSError as error:
        raise ValueError(f"{source}: no checkpoint there: {str(error).splitlines()[0]}") from error
    if model_type != QCAConfig.model_type:
        raise ValueError(f"{source}: a checkpoint of a {model_type!r} model, not of a {QCAConfig.model_type!r} one")
    try:
        loaded: Any = QCAForVisualQuestionAnswering.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=bool(fields), **fields
        )
    except SafetensorError as error:
        raise ValueError(f"{source}: its weights cannot be read: {error}") from error
    model, info = loaded
    new = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if new:
        modules = sorted({".".join(name.split(".")[:3]) for name in new})
        logger.warning("%s: %d weights start anew: %s", source, len(new), ", ".join(modules))
    return model


def load_processor(source: str) -> QCAProcessor:
    """The processor of a checkpoint. An adapter that was saved without one has that of its base model."""
    base = adapter_base(source)
    if base is not None and _file(source, "processor_config.json") is None:
        return load_processor(base)
    return QCAProcessor.from_pretrained(source)


def adapter_base(source: str) -> str | None:
    """The base model that the PEFT adapter `source` names; None where `source` is no adapter.

    Raises:
        ValueError: the adapter names no base model, or its config cannot be read.
    """
    file = _file(source, ADAPTER_CONFIG)
    if file is None or _file(source, "config.json") is not None:
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: not the config of an adapter: {error}") from error
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{source} is a PEFT adapter that names no base model. Save the model before LoRA with "
            f"`model.save_pretrained(FOLDER)`, and set `base_model_name_or_path` in {ADAPTER_CONFIG} to that folder"
        )
    if base == source:
        raise ValueError(f"{source} is a PEFT adapter that names itself as its base model")
    if not Path(base).is_dir() and (Path(base).is_absolute() or base.count("/") > 1):
        raise ValueError(
            f"{source} is a PEFT adapter of the base model {base}, and there is no such folder. Restore it, or set "
            f"`base_model_name_or_path` in {ADAPTER_CONFIG} to where it is now"
        )
    return base


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides a warning about a property of transformers that PEFT reads by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _merge_adapter(source: str, base: QCAForVisualQuestionAnswering) -> QCAForVisualQuestionAnswering:
    from peft import PeftModel

    try:
        with quiet_peft():
            adapted: Any = PeftModel.from_pretrained(base, source)
    except (RuntimeError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(f"{source}: its adapter does not fit the base model {base.name_or_path}: {reason}") from error
    config = adapted.active_peft_config
    if config.is_prompt_learning:
        raise ValueError(
            f"{source}: an adapter of {config.peft_type.value} cannot be merged into its base model. Call the PEFT "
            "model itself, or train a LoRA adapter."
        )
    return adapted.merge_and_unload()


def _file(source: str, name: str) -> Path | None:
    """The file `name` of a folder or a Hub repository, where there is one."""
    try:
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # no such repository: `load_checkpoint` reports it
        return None
    return None if file is None else Path(file)
