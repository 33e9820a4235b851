"""Export a checkpoint to a program that runs without this package: ONNX or `torch.export`.

The exporters of transformers trace the model. Batch size, questions per image and question length stay free; the image
size is fixed. Fixed questions can be built in, and images are then the only input. The program is loaded again and
compared with the model before it is moved to its folder.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.export import Dim
from transformers import PreTrainedModel

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.training.evaluation.checkpoint import load_checkpoint, load_processor
from modeling_qca.training.evaluation.evaluation_data import EvaluationData, evaluation_data
from modeling_qca.training.files.run_files import read_run, write_json

from .answer_changes import AnswerChanges, count_answer_changes
from .fixed_questions import FixedQuestionModel
from .upload_folder import remove_local_names, write_calibration

try:
    from transformers.exporters import (
        DynamoConfig,
        DynamoExporter,
        ExportedModel,
        OnnxConfig,
        OnnxExporter,
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
    )
except ImportError as error:
    raise ImportError('Export needs transformers 5.23: pip install "modeling-qca[export]"') from error

Format = Literal["onnx", "torch"]
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ENCODERS = ("qca.vision_encoder.backbone.", "qca.text_encoder.")
TOLERANCE = 1e-4  # absolute, and relative to the value
QUESTIONS = ("what is it", "where is the small red ball", "is there a big cube on the left", "how many", "why")


@dataclass(frozen=True)
class Export:
    """Args:
    files: name -> size in bytes.
    differences: largest absolute difference of `logits` and `relevance` from the checkpoint's, over a few inputs;
        empty for int8.
    changes: for int8, how many answers differ from the checkpoint's; None if there is no data to compare them on.
    """

    files: dict[str, int]
    differences: dict[str, float]
    changes: AnswerChanges | None


def export_checkpoint(
    checkpoint: str,
    output_dir: Path,
    format: Format = "onnx",
    int8: bool = False,
    questions: Sequence[tuple[str, str]] | None = None,
    data: EvaluationData | None = None,
) -> Export:
    """
    Write a program with its processor and config. `ExportedModel.from_pretrained` loads the folder, and ONNX Runtime
    loads `model.onnx` alone.

    Args:
        checkpoint: folder or Hub id of a model, or of a PEFT adapter, which is merged into its base model.
        output_dir: folder to make.
        format: `onnx`, or `torch` for a `torch.export` program.
        int8: 8-bit weights and activations in the encoders, for ONNX only. Hops and answer head stay in float.
        questions: (id, text) of questions to build in, see `FixedQuestionModel`; `questions.json` keeps their order.
        data: rows on which the answers of int8 are compared; by default the run's own validation rows.

    Raises:
        ImportError: A package that ONNX needs is not installed.
        ValueError: The checkpoint cannot be exported, `output_dir` is not empty, or the program's outputs differ from
            the checkpoint's. Nothing is written then.
    """
    _check_request(output_dir, format, int8)
    model = load_checkpoint(checkpoint).float()
    if model.config.token_budget is not None and model.config.token_budget_scorer == "random":
        raise ValueError(f"{checkpoint} selects patches at random (`token_budget_scorer`): no program repeats that.")
    processor = load_processor(checkpoint)
    remove_local_names(model.config)
    exported: QCAForVisualQuestionAnswering | FixedQuestionModel = model
    if questions is not None:
        exported = FixedQuestionModel(model, processor, [text for _, text in questions]).eval()
    with _quietly():
        try:
            program = trace_program(exported, _inputs(exported, processor, images=2, questions=3), format, int8)
        except Exception as error:  # the exporters raise errors of many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{checkpoint} cannot be exported as {format}: {reason}") from error
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as temporary:
            folder = Path(temporary) / "export"
            program.save_pretrained(folder)
            processor.save_pretrained(folder)
            write_calibration(checkpoint, folder)
            if questions is not None:
                asked = [{"question_id": name, "question": text} for name, text in questions]
                write_json(folder / "questions.json", asked)
            loaded = ExportedModel.from_pretrained(folder)
            differences = {} if int8 else _differences(exported, processor, loaded)
            changes = _changes(checkpoint, exported, processor, loaded, data) if int8 else None
            files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            if output_dir.exists():
                output_dir.rmdir()
            folder.rename(output_dir)
    return Export(files, differences, changes)


def _check_request(output_dir: Path, format: Format, int8: bool) -> None:
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not an empty folder; choose another folder.")
    if format == "torch":
        if int8:
            raise ValueError("int8 is for ONNX only; quantize a PyTorch model with torchao when you load it.")
        return
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}: pip install "modeling-qca[export]"')


def trace_program(model: PreTrainedModel, inputs: dict[str, Any], format: Format, int8: bool) -> ExportedModel:
    """Trace `model` with free sizes of everything but the images, without names of local folders."""
    free = Dim.DYNAMIC  # raises if tracing would fix the size
    per_image = ("pixel_values", "image_index")
    shapes: dict[str, Any] = {name: {0: free} if name in per_image else {0: free, 1: free} for name in inputs}
    if format == "torch":
        exported = DynamoExporter().export(model, inputs, DynamoConfig(dynamic_shapes=shapes))
        for node in exported.program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names local folders
        return exported
    quantizer = EncoderQuantizer() if int8 else None
    exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic_shapes=shapes, quantizer=quantizer))
    for node in exported.program.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    return exported


class EncoderQuantizer(OnnxRuntimeQuantizer):
    """Quantizes the matrix products of the encoders, which take nearly all of the time."""

    def quantize(self, model: Any, sample_inputs: dict[str, Any], export_format: Any) -> Any:
        nodes = [
            node.name
            for node in model.graph
            if node.op_type in ("MatMul", "Gemm")
            and any(encoder in node.metadata_props.get("pkg.torch.onnx.name_scopes", "") for encoder in ENCODERS)
        ]
        # 7 of the 8 bits of a weight: with 8 bits, sums overflow on processors without VNNI.
        self.config = OnnxRuntimeDynamicConfig(nodes_to_quantize=nodes, per_channel=True, reduce_range=True)
        return super().quantize(model, sample_inputs, export_format)


def _inputs(model: PreTrainedModel, processor: QCAProcessor, images: int, questions: int) -> dict[str, Any]:
    """`questions` questions about `images` random images; the images alone for a model that has its questions."""
    config: Any = model.config
    size = [cells * pixels for cells, pixels in zip(config.image_grid, config.patch_size, strict=True)]
    noise = np.random.default_rng(0).integers(256, size=(images, *size, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in noise]
    if isinstance(model, FixedQuestionModel):
        return {**processor(pictures)}
    text = [QUESTIONS[i % len(QUESTIONS)] for i in range(questions)]
    image_index = [i % images for i in range(questions)]
    inputs = processor(pictures, text, image_index, text_kwargs={"truncation": True})
    return {**inputs, "image_index": torch.tensor(image_index)}  # a program always reads it


def _differences(model: PreTrainedModel, processor: QCAProcessor, program: ExportedModel) -> dict[str, float]:
    """The largest difference of `logits` and of `relevance`, at other sizes than the traced ones.

    Raises:
        ValueError: A difference exceeds the tolerance.
    """
    differences = {"logits": 0.0, "relevance": 0.0}
    for images, questions in ((1, 1), (1, 5), (3, 4)):
        inputs = _inputs(model, processor, images, questions)
        with torch.inference_mode():
            expected = model(**inputs)
        found = program(**inputs)
        for name, worst in differences.items():
            if not torch.allclose(found[name], expected[name], rtol=TOLERANCE, atol=TOLERANCE):
                raise ValueError(
                    f"The exported program's {name} differ from the checkpoint's by up to "
                    f"{float((found[name] - expected[name]).abs().max()):.1e}; nothing was written."
                )
            if found[name].numel():
                differences[name] = max(worst, float((found[name] - expected[name]).abs().max()))
    return differences


def _changes(
    checkpoint: str,
    model: PreTrainedModel,
    processor: QCAProcessor,
    program: ExportedModel,
    data: EvaluationData | None,
) -> AnswerChanges | None:
    """How many answers `program` changes on `data`, or else on the validation rows that the run remembers."""
    if data is None:
        run = read_run(checkpoint)
        if run is None:
            return None
        data = evaluation_data(checkpoint, run, None, None, {})
    return count_answer_changes(model, program, processor, data, not isinstance(model, FixedQuestionModel))


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the exporters' reports of every step and of untested versions; the outputs are compared instead."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(disabled)


__all__ = ["Export", "Format", "export_checkpoint"]
