"""Boxes of the objects that questions name, from a zero-shot object detection model of transformers.

The model is any of `AutoModelForZeroShotObjectDetection`: OWL-ViT, OWLv2, Grounding DINO, OmDet-Turbo.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from ...files.atomic_write import atomic_write
from ...files.progress import track
from ..marked_objects import MarkedObject
from ..regions import Box
from .question_words import object_phrases


class Detection(NamedTuple):
    """One of the phrases that were looked for, its score in [0, 1], and where it is in the picture."""

    phrase: str
    score: float
    box: Box


class Detector:
    """
    Args:
        source: folder or Hub id.
        threshold: lowest score of a detection, in [0, 1).
        device: where the model computes; by default a GPU if there is one.

    Raises:
        ValueError: the threshold is another number, or `source` is no such model.
    """

    def __init__(self, source: str, threshold: float, device: torch.device | None = None):
        if not 0 <= threshold < 1:
            raise ValueError(f"the threshold of detections is 0 or more and less than 1, got {threshold}")
        available = torch.accelerator.is_available()
        self.device = device or (torch.accelerator.current_accelerator() if available else torch.device("cpu"))
        self.source, self.threshold = source, threshold
        try:
            self._processor: Any = AutoProcessor.from_pretrained(source)
            model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{source}: no model for zero-shot object detection there: {str(error).splitlines()[0]}. Pass the "
                "folder or Hub id of one, such as google/owlv2-base-patch16-ensemble or "
                "IDEA-Research/grounding-dino-tiny"
            ) from error
        self._model = model.to(self.device).eval()
        # Grounding DINO joins phrases to one text, and its boxes name tokens of it: it gets one phrase at a time.
        post_process = inspect.signature(self._processor.post_process_grounded_object_detection)
        self._one_by_one = "input_ids" in post_process.parameters

    @torch.no_grad()
    def find(self, picture: Image.Image, phrases: Sequence[str]) -> list[Detection]:
        """The detections of `phrases` in an upright RGB picture, best first. Boxes are cut at its border."""
        groups = [[phrase] for phrase in phrases] if self._one_by_one else [list(phrases)][: len(phrases)]
        found = [detection for group in groups for detection in self._find(picture, group)]
        return sorted(found, key=lambda detection: -detection.score)

    def _find(self, picture: Image.Image, phrases: list[str]) -> Iterator[Detection]:
        inputs = self._processor(images=picture, text=[phrases], truncation=True, return_tensors="pt").to(self.device)
        outputs = self._model(**inputs)
        named = {"input_ids": inputs["input_ids"]} if self._one_by_one else {"text_labels": [phrases]}
        [result] = self._processor.post_process_grounded_object_detection(
            outputs, threshold=self.threshold, target_sizes=[(picture.height, picture.width)], **named
        )
        labels = phrases * len(result["scores"]) if self._one_by_one else result["text_labels"]
        for label, score, box in zip(labels, result["scores"].tolist(), result["boxes"].tolist(), strict=True):
            left, top, right, bottom = box
            cut = Box(max(0.0, left), max(0.0, top), min(picture.width, right), min(picture.height, bottom))
            if cut.left < cut.right and cut.top < cut.bottom:  # else it lies in the padding
                yield Detection(label, score, cut)


def detect_objects(
    questions: Iterable[tuple[str, str]], read: Callable[[str], Image.Image], detector: Detector, file: Path
) -> list[MarkedObject]:
    """
    The objects that the phrases of the questions name.

    Args:
        questions: (name of the picture, question).
        read: gives the upright RGB picture of a name.
        detector: its phrases are those of `question_words.object_phrases`.
        file: JSON lines, one for each picture that is done. A stopped search goes on from it.

    Raises:
        ValueError: a picture cannot be read.
    """
    phrases: dict[str, dict[str, None]] = {}
    for image, question in questions:
        phrases.setdefault(image, {}).update(dict.fromkeys(object_phrases(question)))
    header = {"detector": detector.source, "threshold": detector.threshold}
    done = _read_done(file, header)
    unknown = {image: [one for one in asked if one not in done.get(image, {})] for image, asked in phrases.items()}
    missing = {image: asked for image, asked in unknown.items() if asked}
    with open(file, "a", encoding="utf-8") as lines:
        for image, asked in track(missing.items(), "Detecting objects", total=len(missing)):
            boxes: dict[str, list] = {phrase: [] for phrase in asked}
            for phrase, score, box in detector.find(read(image), asked):
                boxes[phrase].append([box.left, box.top, box.right, box.bottom, score])
            done.setdefault(image, {}).update(boxes)
            lines.write(json.dumps({"image": image, "boxes": boxes}, ensure_ascii=False) + "\n")
            lines.flush()
    return [
        MarkedObject(image, phrase, Box(*box), detector.source)
        for image, asked in phrases.items()
        for phrase in asked
        for *box, _ in done[image][phrase]
    ]


def _read_done(file: Path, header: dict[str, Any]) -> dict[str, dict[str, list]]:
    """Picture -> phrase -> boxes with scores; the file begins anew for another detector or threshold."""
    done: dict[str, dict[str, list]] = {}
    entries = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the line that an interruption cut
                entries.append(json.loads(line))
    if entries[:1] == [header]:
        for entry in entries[1:]:
            done.setdefault(entry["image"], {}).update(entry["boxes"])
    kept = [header, *({"image": image, "boxes": boxes} for image, boxes in done.items())]
    with atomic_write(file) as unfinished, open(unfinished, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
    return done
