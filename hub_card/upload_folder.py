"""The folder that `qca push` uploads: weights, code, processor, card and results of one checkpoint.

The folder is written anew from the loaded checkpoint, never copied. Then it is searched for private data.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from qca_cli.serving import handler
from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.configuration_qca import AUTO_MAP, CUSTOM_PIPELINES
from modeling_qca.training.confidence.abstention import read_calibration
from modeling_qca.training.confidence.familiarity import QuestionFamiliarity
from modeling_qca.training.files.run_files import CALIBRATION, OVERLAY, RESULTS, TRAINED_QUESTIONS

from .adapter_folder import ADAPTER_CONFIG, write_adapter_folder
from .card import CARD, Release, is_hub_id, model_card
from .private_data import check_private_data, copy_pixels, shorten_paths
from .results_file import Results, read_json, read_results

HANDLER = "handler.py"  # the name that Inference Endpoints look for


def write_upload_folder(
    checkpoint: Path, folder: Path, release: Release, *, with_example_picture: bool = False
) -> None:
    """Write the files of a checkpoint to the empty `folder`.

    Args:
        checkpoint: folder of a model or of a PEFT adapter.
        with_example_picture: include overlay.png, an answered question of the validation rows with its photo.

    Raises:
        ValueError: The checkpoint is incomplete or of another model, there is no picture to include, or a file holds
            private data.
    """
    check_is_checkpoint(checkpoint)
    is_adapter = (checkpoint / ADAPTER_CONFIG).exists()
    if with_example_picture and (is_adapter or not (checkpoint / OVERLAY).exists()):
        raise ValueError(
            f"{checkpoint} has no {OVERLAY} to publish: leave the example picture out, or publish the folder of a "
            "training run with relevance maps."
        )
    results = read_results(checkpoint / RESULTS) if (checkpoint / RESULTS).exists() else None
    if results is not None:
        results = shorten_paths(_with_calibration(results, read_calibration(str(checkpoint))))
        (folder / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if is_adapter:
        write_adapter_folder(checkpoint, folder, release, results)
    else:
        _write_model_folder(checkpoint, folder, release, results, with_example_picture)
    check_private_data(folder)


def check_is_checkpoint(folder: Path) -> None:
    """
    Raises:
        ValueError: `folder` holds neither a model of ours nor an adapter. The message names the checkpoints in its
            subfolders, such as those of a `Trainer`.
    """
    if (folder / ADAPTER_CONFIG).exists():
        return
    inner = sorted(path.parent for name in (ADAPTER_CONFIG, CONFIG_NAME) for path in folder.glob(f"*/{name}"))
    if inner and not (folder / CONFIG_NAME).exists():
        names = ", ".join(sorted({path.name for path in inner}))
        raise ValueError(f"{folder} holds no checkpoint itself: pass one of its subfolders ({names}).")
    model_type = read_json(folder / CONFIG_NAME).get("model_type")
    if model_type is None:
        raise ValueError(
            f"{folder / CONFIG_NAME} names no model type: pass the folder of a saved model, or of an adapter with its "
            f"{ADAPTER_CONFIG}."
        )
    if model_type != QCAConfig.model_type:
        raise ValueError(f"{folder} holds a {model_type!r} model; pass the folder of a 'qca' model or of an adapter.")


def _write_model_folder(
    checkpoint: Path, folder: Path, release: Release, results: Results | None, with_example_picture: bool
) -> None:
    try:
        loaded: Any = QCAForVisualQuestionAnswering.from_pretrained(checkpoint, output_loading_info=True)
        processor = QCAProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} cannot be loaded: {str(error).splitlines()[0]}") from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{checkpoint} lacks {len(missing)} weights, such as {missing[0]}; it is not a whole model.")
    remove_local_names(model.config)
    model.config.auto_map = dict(AUTO_MAP)  # of the code that is saved now
    model.config.custom_pipelines = dict(CUSTOM_PIPELINES)
    model.save_pretrained(folder)
    for state in ("is_local", "local_files_only"):  # transformers would save these with the tokenizer
        processor.tokenizer.init_kwargs.pop(state, None)
    processor.save_pretrained(folder)
    shutil.copyfile(handler.__file__, folder / HANDLER)
    write_calibration(str(checkpoint), folder)
    if (questions := checkpoint / TRAINED_QUESTIONS).exists() and (folder / CALIBRATION).exists():
        QuestionFamiliarity.read(questions).write(folder / TRAINED_QUESTIONS)
    picture = OVERLAY if with_example_picture else None
    if picture is not None:
        copy_pixels(checkpoint / picture, folder / picture)
    model_card(model.config, results, release, picture).save(folder / CARD)


def _with_calibration(results: Results, calibration: dict[str, Any] | None) -> Results:
    """`results` with what was measured at the temperature of the checkpoint; without that of another temperature."""
    if calibration is None:
        return results
    others = {name: value for name, value in results.items() if name not in ("calibration", "selective")}
    if calibration["data"]["fingerprint"] != results["data"]["fingerprint"]:
        return others
    after = calibration["after"]
    measured = {"temperature": calibration["temperature"]} | after["calibration"]
    return others | {"calibration": measured, "selective": after["selective"]}


def write_calibration(checkpoint: str, folder: Path) -> None:
    """Copy `calibration.json`, if there is one, without the digests of images and the folders of this machine."""
    calibration = read_calibration(checkpoint)
    if calibration is not None:
        (folder / CALIBRATION).write_text(json.dumps(shorten_paths(calibration) | {"images": None}, indent=2) + "\n")


def remove_local_names(config: Any) -> None:
    """Remove the local folders of the encoders from a `QCAConfig`; Hub ids stay."""
    for encoder in (config.vision_config, config.text_config):
        if not is_hub_id(encoder.name_or_path):
            encoder.name_or_path = ""
