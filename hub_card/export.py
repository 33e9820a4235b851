"""Export a checkpoint to a program that runs without this package: ONNX or `torch.export`.

The exporters of transformers trace the model. Batch size, questions per image and question length stay free; the image
size is fixed. The program is loaded again and compared with the model before it is moved to its folder.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
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

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.training.evaluation.checkpoint import load_checkpoint, load_processor

from .upload_folder import remove_local_names

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
    differences: largest absolute difference of `logits` and `relevance` from the checkpoint's, over a few inputs.
    """

    files: dict[str, int]
    differences: dict[str, float]


def export_checkpoint(checkpoint: str, output_dir: Path, format: Format = "onnx", int8: bool = False) -> Export:
    """
    Write a program with its processor and config. `ExportedModel.from_pretrained` loads the folder, and ONNX Runtime
    loads `model.onnx` alone.

    Args:
        checkpoint: folder or Hub id of a model, or of a PEFT adapter, which is merged into its base model.
        output_dir: folder to make.
        format: `onnx`, or `torch` for a `torch.export` program.
        int8: 8-bit weights and activations in the encoders, for ONNX only. Hops and answer head stay in float.

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
    with _quietly():
        try:
            program = trace_program(model, _inputs(model, processor, images=2, questions=3), format, int8)
        except Exception as error:  # the exporters raise errors of many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{checkpoint} cannot be exported as {format}: {reason}") from error
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as temporary:
            folder = Path(temporary) / "export"
            program.save_pretrained(folder)
            processor.save_pretrained(folder)
            differences = _differences(model, processor, ExportedModel.from_pretrained(folder), exact=not int8)
            files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            if output_dir.exists():
                output_dir.rmdir()
            folder.rename(output_dir)
    return Export(files, differences)


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


def trace_program(
    model: QCAForVisualQuestionAnswering, inputs: dict[str, Any], format: Format, int8: bool
) -> ExportedModel:
    """Trace `model` with free sizes of everything but the images, without names of local folders."""
    free = Dim.DYNAMIC  # raises if tracing would fix the size
    shapes: dict[str, Any] = {name: {0: free, 1: free} for name in inputs}
    shapes |= {name: {0: free} for name in ("pixel_values", "image_index")}
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


def _inputs(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, images: int, questions: int
) -> dict[str, Any]:
    """`questions` questions about `images` random images."""
    size = [cells * pixels for cells, pixels in zip(model.config.image_grid, model.config.patch_size, strict=True)]
    noise = np.random.default_rng(0).integers(256, size=(images, *size, 3), dtype=np.uint8)
    text = [QUESTIONS[i % len(QUESTIONS)] for i in range(questions)]
    image_index = [i % images for i in range(questions)]
    inputs = processor([Image.fromarray(each) for each in noise], text, image_index, text_kwargs={"truncation": True})
    return {**inputs, "image_index": torch.tensor(image_index)}  # a program always reads it


def _differences(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, program: ExportedModel, exact: bool
) -> dict[str, float]:
    """The largest difference of `logits` and of `relevance`, at other sizes than the traced ones.

    Raises:
        ValueError: A difference of an `exact` program exceeds the tolerance.
    """
    differences = {"logits": 0.0, "relevance": 0.0}
    for images, questions in ((1, 1), (1, 5), (3, 4)):
        inputs = _inputs(model, processor, images, questions)
        with torch.inference_mode():
            expected = model(**inputs)
        found = program(**inputs)
        for name, worst in differences.items():
            if exact and not torch.allclose(found[name], expected[name], rtol=TOLERANCE, atol=TOLERANCE):
                raise ValueError(
                    f"The exported program's {name} differ from the checkpoint's by up to "
                    f"{float((found[name] - expected[name]).abs().max()):.1e}; nothing was written."
                )
            if found[name].numel():
                differences[name] = max(worst, float((found[name] - expected[name]).abs().max()))
    return differences


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
