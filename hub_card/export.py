"""A checkpoint as a program that runs without this code: ONNX, or a `torch.export` one.

Transformers' own exporters trace the model; batch, questions per image and question length stay free, the size of the
picture is the checkpoint's. What was written is loaded again and compared with the model before anyone sees it.
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

from .publish import forget_folders

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
    differences: of `logits` and `relevance`, the largest from those of the checkpoint over a few inputs.
    """

    files: dict[str, int]
    differences: dict[str, float]


def export_checkpoint(checkpoint: str, output_dir: Path, format: Format = "onnx", int8: bool = False) -> Export:
    """
    Write a program, its processor and its config to a folder that `ExportedModel.from_pretrained` reads; ONNX Runtime
    reads `model.onnx` by itself.

    Args:
        checkpoint: folder or Hub id.
        output_dir: folder to make.
        format: `onnx`, or `torch` for a `torch.export` program.
        int8: ONNX only: 8-bit weights and activations in the encoders; what ranks patches and answers stays in float.

    Raises:
        ImportError: where a package that ONNX needs is not installed.
        ValueError: for a checkpoint that cannot be exported, an `output_dir` that is not empty, and a program whose
            answers are not the checkpoint's; nothing is written then.
    """
    _check_request(output_dir, format, int8)
    model = load_checkpoint(checkpoint).float()
    if model.config.token_budget is not None and model.config.token_budget_scorer == "random":
        raise ValueError(f"{checkpoint} keeps patches by chance (`token_budget_scorer`), which no program repeats.")
    processor = load_processor(checkpoint)
    forget_folders(model.config)
    with _quietly():
        try:
            program = _trace(model, _inputs(model, processor, images=2, questions=3), format, int8)
        except Exception as error:  # whatever the exporters stumble over
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
        raise ValueError(f"{output_dir} exists and is not an empty folder; choose another one.")
    if format == "torch":
        if int8:
            raise ValueError("int8 is for ONNX; a model of torch is quantized as it is loaded, by torchao.")
        return
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}: pip install "modeling-qca[export]"')


def _trace(model: QCAForVisualQuestionAnswering, inputs: dict[str, Any], format: Format, int8: bool) -> ExportedModel:
    free = Dim.DYNAMIC  # raises where the traced size would be the only one
    shapes: dict[str, Any] = {name: {0: free, 1: free} for name in inputs}
    shapes |= {name: {0: free} for name in ("pixel_values", "image_index")}
    if format == "torch":
        exported = DynamoExporter().export(model, inputs, DynamoConfig(dynamic_shapes=shapes))
        for node in exported.program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names folders of this machine
        return exported
    quantizer = EncoderQuantizer() if int8 else None
    exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic_shapes=shapes, quantizer=quantizer))
    for node in exported.program.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    return exported


class EncoderQuantizer(OnnxRuntimeQuantizer):
    """The encoders' products with weights in 8 bits: nearly all of the compute, and none of the decisions."""

    def quantize(self, model: Any, sample_inputs: dict[str, Any], export_format: Any) -> Any:
        nodes = [
            node.name
            for node in model.graph
            if node.op_type in ("MatMul", "Gemm")
            and any(encoder in node.metadata_props.get("pkg.torch.onnx.name_scopes", "") for encoder in ENCODERS)
        ]
        # 7 of the 8 bits of a weight: with all of them the sums overflow on processors that lack VNNI.
        self.config = OnnxRuntimeDynamicConfig(nodes_to_quantize=nodes, per_channel=True, reduce_range=True)
        return super().quantize(model, sample_inputs, export_format)


def _inputs(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, images: int, questions: int
) -> dict[str, Any]:
    """`questions` questions about `images` pictures of noise."""
    size = [cells * pixels for cells, pixels in zip(model.config.image_grid, model.config.patch_size, strict=True)]
    noise = np.random.default_rng(0).integers(256, size=(images, *size, 3), dtype=np.uint8)
    text = [QUESTIONS[i % len(QUESTIONS)] for i in range(questions)]
    image_index = [i % images for i in range(questions)]
    return dict(processor([Image.fromarray(each) for each in noise], text, image_index, truncation=True))


def _differences(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, program: ExportedModel, exact: bool
) -> dict[str, float]:
    """The largest of `logits` and of `relevance`, at sizes other than the traced ones.

    Raises:
        ValueError: where an `exact` program's are beyond the tolerance.
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
    """The exporters report every step, and versions they were not tested with; what comes out is compared instead."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(disabled)


__all__ = ["Export", "Format", "export_checkpoint"]
