"""From rows to one batch: each image once, with its questions.

B questions, I images, U distinct questions, L question tokens, T hops, N patches, C answers.
"""

import warnings
from dataclasses import InitVar, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import BatchFeature

from modeling_qca import QCAConfig, QCAProcessor
from modeling_qca.overlay_qca import sees_whole_picture

from .answers import AnswerRule, answer_key, answer_scores, majority_answer
from .image_features import ImageFeatureCache
from .images import read_image
from .readers.columns import RecordConverter
from .schema import FEATURES, Row
from .text_features import TextFeatureCache

ENOUGH_ROWS = 16  # without one answer of the vocabulary, by then it is not the rows of this data


@dataclass
class QuestionCollator:
    """
    Args:
        processor: of the model.
        config: of the model; holds the answers (`label2id`), the number of hops and how answers are scored
            (`problem_type`).
        attention_supervision: which hops the relevance maps of the rows supervise.
        image_features: a frozen vision encoder's features by image id; without them the images are read.
        answer_rule, normalize_answers: as in `answers.answer_scores`.
        with_question_ids: put `question_ids` in the batch. `QCATrainer` names them where the loss is not a number.
        text_features: a frozen text encoder's features. A batch whose questions are all in it has `question_index`,
            `text_features` and their `attention_mask` in place of the tokens.
        relevance: the name of `attention_supervision` in 0.1; `final` is now `last_hop`.

    A row is in the schema `FEATURES`, its image not decoded, or has plain columns such as `image`, `question` and
    `answer`. The first tensor of a batch has one entry for each question, as `Trainer` expects of a batch.
    `image_index` and `question_index` are there only where some pair b has another image or question than b.

    Raises:
        ValueError: an image cannot be read, the maps of a row do not fit the hops, two answers of the model are one
            after normalization, or no row has an answer of the model. The message names the row.
    """

    processor: QCAProcessor
    config: QCAConfig
    attention_supervision: Literal["none", "last_hop", "every_hop"] = "none"
    image_features: ImageFeatureCache | None = None
    answer_rule: AnswerRule = "consensus"
    normalize_answers: bool = True
    with_question_ids: bool = False
    text_features: TextFeatureCache | None = None
    relevance: InitVar[str | None] = None

    def __post_init__(self, relevance: str | None):
        if isinstance(relevance, str):
            warnings.warn("`relevance` is now called `attention_supervision`", FutureWarning, stacklevel=3)
            self.attention_supervision = "last_hop" if relevance == "final" else relevance  # type: ignore[assignment]
        if self.attention_supervision not in ("none", "last_hop", "every_hop"):
            raise ValueError(
                f"attention_supervision is none, last_hop or every_hop, not {self.attention_supervision!r}"
            )
        if self.attention_supervision != "none" and not sees_whole_picture(self.processor.image_processor):
            raise ValueError(
                "Relevance maps cover the whole picture, but the image processor crops or pads it: set "
                "`do_center_crop=False`, or use a `ViTImageProcessorPil` with the same numbers."
            )
        self._classes = answer_classes(self.config, self.normalize_answers)
        self._unknown_rows: int | None = 0  # rows so far without a known answer; None after the first known one

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = _in_schema(rows)
        batch = self._inputs(rows)
        batch["labels"] = self._labels(rows)
        if self.with_question_ids:
            batch["question_ids"] = [row["question_id"] for row in rows]
        if self.attention_supervision != "none":
            grids, images = self._grids(batch), batch.get("image_index", torch.arange(len(rows))).tolist()
            maps = [self._relevance(row, grids[image]) for row, image in zip(rows, images, strict=True)]
            longest = max(target.shape[-1] for target in maps)
            if "spatial_shapes" in batch:
                longest = batch["pixel_values"].shape[1]  # with the padding
            batch["target_relevance"] = torch.stack([pad(target, (0, longest - target.shape[-1])) for target in maps])
        return batch

    def inputs(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the model reads of `rows`: the batch without labels and target maps, which evaluation does not need."""
        return self._inputs(_in_schema(rows))

    def _inputs(self, rows: list[Row]) -> dict[str, Any]:
        images: dict[str, Any] = {}
        for row in rows:
            images.setdefault(row["image_id"], row)
        position = {image_id: index for index, image_id in enumerate(images)}
        batch = self._questions(rows)
        if self.image_features is None:
            batch |= self.processor(images=[read_image(row) for row in images.values()])  # [I, 3, h, w]
        else:
            batch["image_features"] = self.image_features.read(list(images))  # [I, P + N, E]
            batch["image_grid"] = self.image_features.grid
        image_index = [position[row["image_id"]] for row in rows]
        if image_index != list(range(len(images))):
            batch["image_index"] = torch.tensor(image_index)
        return batch

    def _grids(self, batch: dict[str, Any]) -> list[tuple[int, int]]:
        """(rows, columns) of each image."""
        if "image_grid" in batch:
            return [batch["image_grid"]] * len(batch["image_features"])
        if "spatial_shapes" in batch:
            return [(rows, columns) for rows, columns in batch["spatial_shapes"].tolist()]
        height, width = batch["pixel_values"].shape[-2:]
        grid = (height // self.config.patch_size[0], width // self.config.patch_size[1])
        return [grid] * len(batch["pixel_values"])

    def _questions(self, rows: list[Row]) -> dict[str, Any]:
        """Tokens `[B, L]`, or cached features with their index."""
        question_ids = [row["question_id"] for row in rows]
        tokens = tokenize_questions(self.processor, [row["question"] for row in rows], question_ids)
        cached = None if self.text_features is None else self.text_features.read(tokens)
        return dict(tokens) if cached is None else cached

    def _labels(self, rows: list[Row]) -> torch.Tensor:
        known: list[dict[int, float]] = []
        for row in rows:
            given = answer_scores(row["answers"], self.answer_rule, self.normalize_answers)
            known.append({self._classes[answer]: score for answer, score in given.items() if answer in self._classes})
        self._check_known(rows, known)
        if self.config.problem_type != "multi_label_classification":
            majorities = (majority_answer(row["answers"], self.normalize_answers) for row in rows)
            return torch.tensor([self._classes.get(answer, -100) for answer in majorities])  # [B]
        labels = torch.zeros(len(rows), self.config.num_labels)
        for row_labels, scores in zip(labels, known, strict=True):
            for label, score in scores.items():
                row_labels[label] = score
        return labels  # [B, C]

    def _check_known(self, rows: list[Row], known: list[dict[int, float]]) -> None:
        """Refuse to train on rows that have no answer of the model: their loss would be 0."""
        if self._unknown_rows is None:
            return
        if any(known):
            self._unknown_rows = None
            return
        answered = [row for row in rows if row["answers"]]
        self._unknown_rows += len(answered)
        if self._unknown_rows >= ENOUGH_ROWS:
            given = ", ".join(repr(answer["answer"]) for answer in answered[0]["answers"][:3])
            model = ", ".join(map(repr, list(self.config.label2id)[:3]))
            raise ValueError(
                f"None of {self._unknown_rows} questions has an answer of the model. Question "
                f"{answered[0]['question_id']} has {given}; the model has {model}, ... Build the vocabulary from "
                "these rows with `build_vocabulary` and pass it as `id2label` and `label2id`."
            )

    def _relevance(self, row: Row, grid: tuple[int, int]) -> torch.Tensor:
        hops = self.config.num_attention_layers if self.attention_supervision == "every_hop" else 1
        if row["relevance"] is None or len(row["relevance"]) == 0:
            target = torch.zeros(hops, grid[0] * grid[1])
        else:
            maps = torch.as_tensor(np.asarray(row["relevance"], dtype=np.float32))  # [maps, rows, columns]
            maps = torch.nn.functional.interpolate(maps[None], size=grid, mode="area")[0].flatten(1)
            if self.attention_supervision == "last_hop":
                maps = maps[-1:]
            elif len(maps) == 1:
                maps = maps.expand(hops, -1)
            elif len(maps) != hops:
                raise ValueError(
                    f"Question {row['question_id']} has {len(maps)} relevance maps for {hops} hops; give one map, or "
                    "one for each hop."
                )
            target = maps / maps.sum(-1, keepdim=True).clamp(min=1e-12)
        return target if self.attention_supervision == "every_hop" else target[0]  # [T, N] or [N]


def answer_classes(config: QCAConfig, normalize: bool = True) -> dict[str, int]:
    """The index of each answer of the model, by the form in which answers of rows are compared.

    Raises:
        ValueError: two answers of the model have one form, so that one of them could never be right.
    """
    classes: dict[str, int] = {}
    labels: dict[str, str] = {}
    for label, index in config.label2id.items():
        key = answer_key(label, normalize)
        other = labels.setdefault(key, label)
        classes.setdefault(key, int(index))
        if other != label:
            raise ValueError(
                f"The answers {other!r} and {label!r} of the model are both {key!r} after normalization. Pass "
                "`normalize_answers=False` to keep them apart, or build the vocabulary with `build_vocabulary`."
            )
    return classes


def tokenize_questions(processor: QCAProcessor, questions: list[str], question_ids: list[Any]) -> BatchFeature:
    """Tokens of `questions`.

    Raises:
        ValueError: a question is too long for the text encoder. The message names it.
    """
    try:
        return processor(text=questions)
    except ValueError:
        for question, question_id in zip(questions, question_ids, strict=True):
            try:
                processor(text=question)
            except ValueError as error:
                raise ValueError(f"Question {question_id}, {question!r:.80}: {error}") from error
        raise


def _in_schema(rows: list[dict[str, Any]]) -> list[Row]:
    return [row for index, given in enumerate(rows) for row in _schema_rows(given, index)]


def _schema_rows(row: dict[str, Any], index: int) -> list[Row]:
    """`row` itself, or the rows of a record with plain columns."""
    if row.keys() >= FEATURES.keys():
        return [row]
    converter = RecordConverter("the batch", {}, None, None, keep_decoded=True)
    found = [converted for _, converted in converter.rows(row, str(index), f"row {index} of the batch")]
    for converted in found:
        if converted["image"] is None:
            raise ValueError(f"Row {index} of the batch has no image.")
        if isinstance(converted["image"], str):
            converted["image"] = {"path": converted["image"], "bytes": None}
    return found
