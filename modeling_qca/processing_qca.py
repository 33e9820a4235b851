"""Images and questions in, answers and heat maps out."""

from collections.abc import Sequence
from operator import index as as_integer
from reprlib import repr as short
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin
from transformers.image_utils import ImageInput, is_valid_image, make_flat_list_of_images

from .image_qca import check_array, open_image
from .validation_qca import check_fields

MAXIMUM_SIDE = 4096  # pixels of a picture for the vision encoder
LONGEST_QUESTION = 100_000  # characters; a tokenizer would work for seconds on more, to find that it is too long


class QCAProcessor(ProcessorMixin):
    """
    An image processor and a tokenizer in one.

    Args:
        image_processor: of the vision encoder.
        tokenizer: of the text encoder.

    Raises:
        ValueError: for an image processor that makes pictures of more than `MAXIMUM_SIDE` pixels, or no numbers.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if image_processor is not None:
            _check_image_processor(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        image_index: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list: path, URL, encoded bytes, PIL image or array.
            text: one question or a list of B.
            image_index: which image each question is about; may be left out where there is one image, or one for
                each question.
            kwargs: of the tokenizer and the image processor; `padding=True` and `return_tensors="pt"` unless told.
                A question is cut only where `truncation=True` says so.

        Returns:
            `input_ids` and `attention_mask` `[B, L]`, `pixel_values` `[I, 3, h, w]` and `image_index` `[B]`; the parts
            of what was passed.

        Raises:
            ValueError: for an image that cannot be read, an empty or too long question, and where images and questions
                do not fit together.
        """
        if text is not None:
            text = _check_questions([text] if isinstance(text, str) else text)
        if images is not None:
            images = _open_images(images)
        if images is not None and text is not None:
            image_index = _check_image_index(image_index, len(images), len(text))
        elif image_index is not None:
            raise ValueError("`image_index` needs both `images` and `text`.")
        kwargs.setdefault("return_tensors", "pt")
        # A length stored with the tokenizer was another task's choice; SigLIP's does not say what is padding.
        for name, value in (("padding", True), ("max_length", None), ("return_attention_mask", True)):
            if name not in kwargs.get("text_kwargs", {}):
                kwargs.setdefault(name, value)
        inputs = super().__call__(images=images, text=text, **kwargs)
        if text is not None:
            self._check_lengths(inputs, text)
        if image_index is not None:
            inputs.update(BatchFeature({"image_index": image_index}, tensor_type=kwargs["return_tensors"]))
        return inputs

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "image_index"]

    def set_max_question_length(self, model: nn.Module):
        """Let questions have no more tokens than the text encoder of `model` reads, whatever the tokenizer says."""
        longest = model.base_model.max_question_length
        if longest is not None:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, longest)

    def _check_lengths(self, inputs: BatchFeature, text: list[str]):
        for position, mask in enumerate(inputs.get("attention_mask", ())):
            if not any(mask):
                raise ValueError(f"Question {position} is empty for the tokenizer ({short(text[position])}).")
        limit = self.tokenizer.model_max_length
        if max(len(row) for row in inputs["input_ids"]) <= limit:
            return
        lengths = [len(self.tokenizer(question)["input_ids"]) for question in text]
        longest = max(range(len(text)), key=lengths.__getitem__)
        raise ValueError(
            f"Question {longest} has {lengths[longest]} tokens, the text encoder reads at most {limit}: shorten it, "
            "or pass `truncation=True` to cut it."
        )

    def post_process_question_answering(
        self, outputs: Any, config: PreTrainedConfig, top_k: int = 5
    ) -> list[list[dict[str, Any]]]:
        """
        The `top_k` answers to each question, best first.

        Args:
            outputs: of `QCAForVisualQuestionAnswering`.
            config: the model's, which holds the answers (`id2label`) and how to read the scores (`problem_type`).
            top_k: at most all answers.

        Returns:
            For each question a list of `{"answer": str, "score": float}`; scores are probabilities.

        Raises:
            ValueError: where `top_k` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
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
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
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
            ValueError: where there is not one size for each question, or the image processor cropped the images.
        """
        maps = outputs.relevance.mean(dim=2).unflatten(-1, outputs.grid)  # [B, T, H, N] -> [B, T, rows, columns]
        if target_sizes is None:
            return list(maps)
        if self.image_processor.do_center_crop:
            raise ValueError(
                "The image processor crops: its maps do not cover the whole picture. Set `do_center_crop=False`, or "
                "take the maps on the grid, without `target_sizes`."
            )
        if len(target_sizes) != len(maps):
            raise ValueError(f"{len(target_sizes)} `target_sizes` for {len(maps)} questions; pass one for each.")
        return [
            nn.functional.interpolate(grid[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
            for grid, size in zip(maps, target_sizes, strict=True)
        ]


def _check_image_processor(fields: dict[str, Any]):
    check_fields(fields)
    for name in ("size", "crop_size", "pad_size"):
        for side, pixels in (fields.get(name) or {}).items():
            if pixels is not None and pixels > MAXIMUM_SIDE:
                raise ValueError(
                    f"`{name}.{side}` of the image processor must be at most {MAXIMUM_SIDE}, got {pixels}."
                )
    if 0 in (fields.get("image_std") or ()):
        raise ValueError(f"`image_std` of the image processor must not be 0, got {fields['image_std']}.")


def _open_images(images: Any) -> list:
    sources = list(images) if isinstance(images, (list, tuple)) else [images]
    if not sources:
        raise ValueError("`images` is empty; pass at least one image.")
    is_array = [is_valid_image(image) and not isinstance(image, Image.Image) for image in sources]
    opened = [image if ready else open_image(image) for image, ready in zip(sources, is_array, strict=True)]
    for image, ready in zip(opened, is_array, strict=True):
        if ready:
            check_array(image)
    flat: Any = make_flat_list_of_images(opened)
    return list(flat)


def _check_questions(questions: Any) -> list[str]:
    if not isinstance(questions, (list, tuple)):
        raise ValueError(f"`text` must be a question or a list of questions, got {short(questions)}.")
    if not questions:
        raise ValueError("`text` is empty; pass at least one question.")
    for position, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"Question {position} is empty ({short(question)}); every question needs text.")
        if len(question) > LONGEST_QUESTION:
            raise ValueError(
                f"Question {position} has {len(question):,} characters; shorten it to {LONGEST_QUESTION:,}."
            )
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Question {position} is no text: its character {error.start} is half of a surrogate pair."
            ) from error
    return list(questions)


def _check_image_index(image_index: Sequence[int] | None, images: int, questions: int) -> list[int]:
    if image_index is None:
        if images not in (1, questions):
            raise ValueError(
                f"{images} images but {questions} questions: pass `image_index`, the image of each question."
            )
        return [0] * questions if images == 1 else list(range(questions))
    image_index = [as_integer(index) for index in image_index]
    if len(image_index) != questions:
        raise ValueError(f"`image_index` has {len(image_index)} entries for {questions} questions.")
    for question, index in enumerate(image_index):
        if not 0 <= index < images:
            raise ValueError(
                f"`image_index` of question {question} is {index}, but there are {images} images (0 is the first)."
            )
    return image_index


__all__ = ["QCAProcessor"]
