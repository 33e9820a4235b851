"""Images and questions in, answers and heat maps out."""

from typing import Any

import torch
from PIL import Image, ImageOps
from torch import nn
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.utils import ModelOutput


class QCAProcessor(ProcessorMixin):
    """
    An image processor and a tokenizer in one.

    Args:
        image_processor: of the vision encoder.
        tokenizer: of the text encoder.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        image_index: list[int] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list: PIL, array, path or URL.
            text: one question or a list of B.
            image_index: which image each question is about; may be left out where there is one image, or one for
                each question.
            kwargs: of the tokenizer and the image processor; `padding=True` and `return_tensors="pt"` unless told.

        Returns:
            `input_ids` and `attention_mask` `[B, L]`, `pixel_values` `[I, 3, h, w]` and `image_index` `[B]`; the parts
            of what was passed.

        Raises:
            ValueError: for an empty or too long question, and where images and questions do not fit together.
        """
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            for position, question in enumerate(text):
                if not isinstance(question, str) or not question.strip():
                    raise ValueError(f"Question {position} is empty ({question!r}); every question needs text.")
        if images is not None:
            images = make_flat_list_of_images(self.image_processor.fetch_images(images))
            images = [_upright_rgb(image) for image in images]
        if images is not None and text is not None:
            image_index = _check_image_index(image_index, len(images), len(text))
        elif image_index is not None:
            raise ValueError("`image_index` needs both `images` and `text`.")
        kwargs.setdefault("padding", True)
        kwargs.setdefault("return_tensors", "pt")
        inputs = super().__call__(images=images, text=text, **kwargs)
        if text is not None:
            self._check_lengths(inputs["input_ids"], text)
        if image_index is not None:
            inputs["image_index"] = torch.tensor(image_index)
        return inputs

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "image_index"]

    def _check_lengths(self, input_ids, text: list[str]):
        limit = self.tokenizer.model_max_length
        if max(len(row) for row in input_ids) <= limit:
            return
        lengths = [len(self.tokenizer(question)["input_ids"]) for question in text]
        longest = max(range(len(text)), key=lengths.__getitem__)
        raise ValueError(
            f"Question {longest} has {lengths[longest]} tokens, the text encoder reads at most {limit}: shorten it, or "
            "pass `truncation=True` to cut it."
        )

    def post_process_question_answering(
        self, outputs: ModelOutput, config: PreTrainedConfig, top_k: int = 5
    ) -> list[list[dict[str, Any]]]:
        """
        The `top_k` answers to each question, best first.

        Args:
            outputs: of `QCAForVisualQuestionAnswering`.
            config: the model's, which holds the answers (`id2label`) and how to read the scores (`problem_type`).
            top_k: at most all answers.

        Returns:
            For each question a list of `{"answer": str, "score": float}`; scores are probabilities.
        """
        logits = outputs.logits.float()
        several = config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if several else logits.softmax(dim=-1)
        best, answers = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
        return [
            [
                {"answer": config.id2label[answer], "score": score}
                for score, answer in zip(row_scores, row_answers, strict=True)
            ]
            for row_scores, row_answers in zip(best.tolist(), answers.tolist(), strict=True)
        ]

    def post_process_relevance(
        self, outputs: ModelOutput, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """
        The maps of each question, hop by hop, averaged over heads.

        Args:
            outputs: of a QCA model.
            target_sizes: `(height, width)` of each question's image; `None` keeps the grid of patches.

        Returns:
            For each question a float32 tensor `[hops, height, width]`: probabilities on the grid, or those resized
            bilinearly (a point's value is then the probability of the patch around it).

        Raises:
            ValueError: where there is not one size for each question.
        """
        maps = outputs.relevance.mean(dim=2).unflatten(-1, outputs.grid)  # [B, T, H, N] -> [B, T, rows, columns]
        if target_sizes is None:
            return list(maps)
        if len(target_sizes) != len(maps):
            raise ValueError(f"{len(target_sizes)} `target_sizes` for {len(maps)} questions; pass one for each.")
        return [
            nn.functional.interpolate(grid[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
            for grid, size in zip(maps, target_sizes, strict=True)
        ]


def _upright_rgb(image):
    """The picture as a person sees it: EXIF rotation applied, transparency on white, 16 bits scaled to 8."""
    if not isinstance(image, Image.Image):
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image.convert("RGB")


def _check_image_index(image_index: list[int] | None, images: int, questions: int) -> list[int]:
    if image_index is None:
        if images not in (1, questions):
            raise ValueError(
                f"{images} images but {questions} questions: pass `image_index`, the image of each question."
            )
        return [0] * questions if images == 1 else list(range(questions))
    image_index = [int(index) for index in image_index]
    if len(image_index) != questions:
        raise ValueError(f"`image_index` has {len(image_index)} entries for {questions} questions.")
    for question, index in enumerate(image_index):
        if not 0 <= index < images:
            raise ValueError(
                f"`image_index` of question {question} is {index}, but there are {images} images (0 is the first)."
            )
    return image_index


__all__ = ["QCAProcessor"]
