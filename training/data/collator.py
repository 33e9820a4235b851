"""Rows in, one batch out: each image once, its questions beside it.

B questions, I images, T hops, N patches, C answers.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import BatchFeature

from modeling_qca import QCAConfig, QCAProcessor

from .answers import AnswerRule, answer_scores, majority_answer
from .image_features import ImageFeatureCache
from .images import read_image


@dataclass
class QuestionCollator:
    """
    Args:
        processor: of the model.
        config: of the model; holds the answers (`label2id`), the number of hops and how answers are scored
            (`problem_type`).
        relevance: what the maps of the rows supervise: nothing, the last hop, or every hop.
        features: where a frozen encoder's features lie ready, by image id; without them the images are read.
        answer_rule, normalize_answers: as in `answers.answer_scores`.
        with_question_ids: put `question_ids` in the batch, for `QCATrainer` to say which one made the loss no number.

    A row is of the schema in `dataset.py`, its image not decoded. `input_ids` come first in the batch, since there
    are as many of them as questions and fewer images.

    Raises:
        ValueError: where an image cannot be read, or a row's maps do not fit the hops; the message names the row.
    """

    processor: QCAProcessor
    config: QCAConfig
    attention_supervision: Literal["none", "last_hop", "every_hop"] = "none"
    features: ImageFeatureCache | None = None
    answer_rule: AnswerRule = "consensus"
    normalize_answers: bool = True
    with_question_ids: bool = False

    def __post_init__(self):
        if self.attention_supervision != "none" and self.processor.image_processor.do_center_crop:
            raise ValueError(
                "Relevance maps cover the whole picture, but the image processor crops it: set `do_center_crop=False`."
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images: dict[str, Any] = {}
        for row in rows:
            images.setdefault(row["image_id"], row)
        position = {image_id: index for index, image_id in enumerate(images)}
        question_ids = [row.get("question_id", index) for index, row in enumerate(rows)]
        text = tokenize_questions(self.processor, [row["question"] for row in rows], question_ids)
        batch = {name: text[name] for name in text}  # input_ids, attention_mask, ...: [B, L]
        if self.features is None:
            pictures = [read_image(row) for row in images.values()]
            batch["pixel_values"] = self.processor(images=pictures)["pixel_values"]  # [I, 3, h, w]
            height, width = batch["pixel_values"].shape[-2:]
            grid = (height // self.config.patch_size[0], width // self.config.patch_size[1])
        else:
            batch["image_features"] = self.features.read(list(images))  # [I, P + N, E]
            grid = batch["image_grid"] = self.features.grid
        batch["image_index"] = torch.tensor([position[row["image_id"]] for row in rows])
        batch["labels"] = self._labels(rows)
        if self.with_question_ids:
            batch["question_ids"] = [row["question_id"] for row in rows]
        if self.attention_supervision != "none":
            batch["target_relevance"] = torch.stack([self._relevance(row, grid) for row in rows])
        return batch

    def _labels(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        label2id = self.config.label2id
        if self.config.problem_type != "multi_label_classification":
            return torch.tensor([label2id.get(self._majority(row), -100) for row in rows])  # [B]
        labels = torch.zeros(len(rows), self.config.num_labels)
        for scores, row in zip(labels, rows, strict=True):
            for answer, score in answer_scores(row["answers"], self.answer_rule, self.normalize_answers).items():
                if answer in label2id:
                    scores[label2id[answer]] = score
        return labels  # [B, C]

    def _majority(self, row: dict[str, Any]) -> str | None:
        return majority_answer(row["answers"], self.normalize_answers)

    def _relevance(self, row: dict[str, Any], grid: tuple[int, int]) -> torch.Tensor:
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


def tokenize_questions(processor: QCAProcessor, questions: list[str], question_ids: list[Any]) -> BatchFeature:
    """Tokens of `questions`.

    Raises:
        ValueError: where one is too long for the text encoder; the message names it.
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
