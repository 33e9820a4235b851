"""Answers of a checkpoint, for the server."""

from collections.abc import Sequence
from typing import Any

import torch

from modeling_qca.training.evaluation.checkpoint import load_checkpoint, load_processor


class CheckpointModel:
    """A checkpoint that answers several requests in one batch.

    Args:
        checkpoint: folder or Hub id.
        device: where it runs, such as `cpu` or `cuda`.
    """

    def __init__(self, checkpoint: str, device: str = "cpu"):
        self.model = load_checkpoint(checkpoint).to(device).eval()
        self.processor = load_processor(checkpoint)
        self.processor.set_max_question_length(self.model)

    def read_image(self, image: Any) -> dict[str, torch.Tensor]:
        """Inputs of the vision encoder of one encoded image.

        Raises:
            ValueError: It cannot be read.
        """
        return dict(self.processor(images=[image]))

    def check_questions(self, questions: Sequence[str]) -> None:
        """
        Raises:
            ValueError: A question is longer than the text encoder reads.
        """
        self.processor(text=list(questions))

    def answer(self, images: Sequence[Any], questions: Sequence[Sequence[str]], top_k: int) -> list:
        """
        Args:
            images: of `read_image`.
            questions: a list for each image.
            top_k: number of answers.

        Returns:
            For each image and each question `[{"answer": str, "score": float}, ...]`, best first.
        """
        flat = [text for about_image in questions for text in about_image]
        index = [place for place, about_image in enumerate(questions) for _ in about_image]
        inputs = dict(self.processor(text=flat))
        inputs |= {name: torch.cat([image[name] for image in images]) for name in images[0]}
        inputs["image_index"] = torch.tensor(index)
        with torch.inference_mode():
            outputs = self.model(**{name: value.to(self.model.device) for name, value in inputs.items()})
        answers = iter(self.processor.post_process_question_answering(outputs, self.model.config, top_k))
        return [[next(answers) for _ in about_image] for about_image in questions]
