"""Answers of an ONNX export, for the server. It needs onnxruntime, tokenizers, Pillow and numpy, and no torch."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from PIL import Image, ImageOps
from tokenizers import Tokenizer

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # as `modeling_qca.image_qca`
MAXIMUM_PIXELS = 8192 * 6144
MAXIMUM_RATIO = 200
PROCESSOR, CONFIG, MODEL = "processor_config.json", "config.json", "model.onnx"
CALIBRATION = "calibration.json"
FIELDS = {  # of image processors: those of the steps here, and those that change no image
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("image_processor_type", "feature_extractor_type", "processor_class", "use_fast", "default_to_square"),
    *("data_format", "input_data_format", "device", "disable_grouping", "return_tensors", "_valid_processor_keys"),
    *("do_reduce_labels", "reduce_labels", "auto_map"),
}
OTHER_TYPES = ("LevitImageProcessor", "PerceiverImageProcessor")  # their sizes follow a rule that no field names


class OnnxModel:
    """The program that `qca export` wrote.

    Args:
        folder: of `qca export`, with free questions.
        threads: of ONNX Runtime; 0 takes all cores.

    Raises:
        ValueError: The folder lacks a file, or its images are processed in a way that is not supported here.
    """

    def __init__(self, folder: str | Path, threads: int = 0):
        folder = Path(folder)
        missing = [name for name in (PROCESSOR, CONFIG, MODEL, "tokenizer.json") if not (folder / name).exists()]
        if missing:
            raise ValueError(f"{folder} has no {missing[0]}: pass a folder that `qca export --format onnx` wrote.")
        self.config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        self.images = ImagePreparation(_image_fields(folder))
        self.answers = [self.config["id2label"][str(index)] for index in range(len(self.config["id2label"]))]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.max_question_length = _max_question_length(folder, self.config)
        self.padding = self.config["text_config"].get("pad_token_id") or 0
        options = SessionOptions()
        options.intra_op_num_threads = threads
        self.session = InferenceSession(str(folder / MODEL), options)
        self.inputs = {item.name for item in self.session.get_inputs()}
        if "input_ids" not in self.inputs:
            raise ValueError(f"{folder} answers fixed questions only: export the checkpoint without `--questions`.")

    def read_image(self, image: bytes) -> np.ndarray:
        """`[1, 3, height, width]` float32 of one encoded image.

        Raises:
            ValueError: It cannot be read.
        """
        try:
            opened = Image.open(BytesIO(image), formats=FORMATS)
            return self.images(_upright_rgb(opened))
        except Exception as error:  # of a damaged file, decoders raise almost anything
            raise ValueError(f"Cannot read the image {len(image)} bytes: {str(error)[:300]}") from error

    def check_questions(self, questions: Sequence[str]) -> None:
        """
        Raises:
            ValueError: A question has no token, or more than the text encoder reads.
        """
        for question in questions:
            tokens = len(self.tokenizer.encode(question).ids)
            if not 0 < tokens <= self.max_question_length:
                raise ValueError(
                    f"The question {question[:80]!r} has {tokens} tokens; the model reads 1 to "
                    f"{self.max_question_length}. Shorten it."
                )

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]], top_k: int) -> list:
        """As `CheckpointModel.answer`."""
        flat = [text for about_image in questions for text in about_image]
        encoded = [self.tokenizer.encode(text) for text in flat]
        longest = max(len(item.ids) for item in encoded)
        ids = np.full((len(flat), longest), self.padding, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, item in enumerate(encoded):
            ids[row, : len(item.ids)], mask[row, : len(item.ids)] = item.ids, 1
            types[row, : len(item.ids)] = item.type_ids
        index = [place for place, about_image in enumerate(questions) for _ in about_image]
        given = {"input_ids": ids, "attention_mask": mask, "pixel_values": np.concatenate(images)}
        given["token_type_ids"] = types  # of BERT's tokenizers
        given["image_index"] = np.array(index, dtype=np.int64)
        given = {name: value for name, value in given.items() if name in self.inputs}
        (logits,) = self.session.run(["logits"], given)
        answers = iter(self._best(logits, top_k))
        return [[next(answers) for _ in about_image] for about_image in questions]

    def _best(self, logits: np.ndarray, top_k: int) -> list[list[dict[str, Any]]]:
        logits = logits.astype(np.float64) / self.config.get("temperature", 1.0)
        if self.config.get("problem_type") == "multi_label_classification":
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
        return [
            [{"answer": self.answers[column], "score": float(row[column])} for column in columns]
            for row, columns in zip(scores, best, strict=True)
        ]


def coverage_threshold(folder: Path, coverage: float) -> float:
    """The threshold that reached a coverage, as `confidence.abstention.read_abstention` reads it.

    Raises:
        ValueError: The exported checkpoint was not calibrated.
    """
    known = read_calibration(folder).get("thresholds")
    if known is None:
        raise ValueError(
            f"{folder} has no {CALIBRATION}, which says what threshold gives a coverage: run `qca calibrate` on the "
            "checkpoint and export it again, or pass a threshold."
        )
    return 0.0 if coverage == 1 else float(np.interp(coverage * 100, range(1, len(known) + 1), known))


def read_calibration(folder: Path) -> dict[str, Any]:
    """The calibration of the exported checkpoint; empty if there is none."""
    file = folder / CALIBRATION
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


class ImagePreparation:
    """The steps of transformers' PIL image processors: resize, center crop, rescale, normalize.

    Args:
        fields: of the image processor.

    Raises:
        ValueError: A field belongs to a step that is not one of these.
    """

    def __init__(self, fields: dict[str, Any]):
        self.fields, self.size = fields, fields.get("size") or {}
        others = {name: value for name, value in fields.items() if value and name not in FIELDS}
        unknown = [f"`{name}`" for name, value in others.items() if (name, value) != ("ensure_multiple_of", 1)]
        if fields.get("image_processor_type") in OTHER_TYPES:
            unknown.append(f"`{fields['image_processor_type']}`")
        if not ({"height", "width"} <= self.size.keys() or self.size.keys() == {"shortest_edge"}):
            unknown.append(f"`size` {self.size}")
        if unknown:
            raise ValueError(
                f"{PROCESSOR}: images are prepared with {unknown[0]}, which needs torch: serve the checkpoint."
            )
        self.mean = np.array(fields.get("image_mean") or 0, dtype=np.float32)
        self.std = np.array(fields.get("image_std") or 1, dtype=np.float32)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """`[1, 3, height, width]` float32."""
        if self.fields.get("do_resize"):
            image = image.resize(self._resized(image), Image.Resampling(self.fields.get("resample", 2)))
        if self.fields.get("do_center_crop"):
            image = self._cropped(image)
        pixels = np.asarray(image, dtype=np.float32)
        if self.fields.get("do_rescale"):
            pixels = pixels * np.float32(self.fields.get("rescale_factor", 1 / 255))
        if self.fields.get("do_normalize"):
            pixels = (pixels - self.mean) / self.std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        if "height" in self.size:
            return self.size["width"], self.size["height"]
        short, long = sorted(image.size)
        sides = self.size["shortest_edge"], int(self.size["shortest_edge"] * long / short)
        return sides if image.width <= image.height else sides[::-1]

    def _cropped(self, image: Image.Image) -> Image.Image:
        """A part outside the image is black."""
        height, width = self.fields["crop_size"]["height"], self.fields["crop_size"]["width"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def _image_fields(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / PROCESSOR).read_text(encoding="utf-8"))
    if "image_processor" not in content:
        content = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))}
    return content["image_processor"]


def _max_question_length(folder: Path, config: dict[str, Any]) -> int:
    """Tokens that the tokenizer or the text encoder reads at most, the smaller of the two."""
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lengths = [tokenizer.get("model_max_length"), config["text_config"].get("max_position_embeddings")]
    return int(min((length for length in lengths if length), default=10**9))


def _upright_rgb(image: Image.Image) -> Image.Image:
    """As `modeling_qca.image_qca`: EXIF rotation applied, transparency on white, 16 bits scaled to 8."""
    width, height = image.size
    if width * height > MAXIMUM_PIXELS or not 0 < max(width, height) <= MAXIMUM_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels; send a smaller picture with sides of closer length")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if low < 0 or not (high <= 255 or 2**14 <= high <= 65535) or values.dtype.kind == "f":
            raise ValueError(f"values from {low:g} to {high:g} have no clear range; send 8 or 16 bits")
        values = values.astype(np.float64) * (1 if high <= 255 else 255 / 65535)
        image = Image.fromarray(values.round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    upon_white = Image.new("RGB", image.size, "white")
    upon_white.paste(image, mask=image)
    return upon_white
