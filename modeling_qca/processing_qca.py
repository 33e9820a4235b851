"""The processor: images and questions to model inputs, model outputs to answers and relevance maps.

B questions, I images (B >= I), L question tokens, h x w pixels.
"""

from collections.abc import Sequence
from operator import index as as_integer
from typing import Any, Unpack

import torch
from torch import nn
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs

from .boxes_qca import maps_on_grids
from .confidence_qca import answer_probabilities
from .configuration_qca import AUTO_MAP
from .evaluation_copy_qca import unwrapped_model
from .image_qca import check_array, describe_image, is_collection, open_image
from .labels_qca import answer_numbers
from .overlay_qca import has_own_rule, sees_whole_picture
from .question_qca import TOKENIZER_LOCK, check_token_counts, flatten_questions
from .validation_qca import check_fields

MAXIMUM_SIDE = 4096  # pixels of an image for the vision encoder
IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class QCAProcessorKwargs(ProcessingKwargs, total=False):
    """Arguments of the tokenizer and of the image processor, flat or as `text_kwargs` and `images_kwargs`."""


class QCAProcessor(ProcessorMixin):
    """
    An image processor and a tokenizer in one.

    Args:
        image_processor: of the vision encoder.
        tokenizer: of the text encoder.

    Raises:
        ValueError: for an image processor that makes images of more than `MAXIMUM_SIDE` pixels, or no numbers.
    """

    valid_processor_kwargs = QCAProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if image_processor is not None:
            _check_image_processor(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, **kwargs)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        image_index: Sequence[int] | None = None,
        **kwargs: Unpack[QCAProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: one image or a collection: path, URL, encoded bytes, open file, PIL image or array, see
                `open_image`. With `do_rescale=False` the values of arrays are taken as they are.
            text: one question, a list of B, or a list with a list of questions for each image.
            image_index: `[B]` image of each question. It may be left out for one image, for one image a question, and
                for a list of questions for each image.
            kwargs: of the tokenizer and the image processor. The defaults are `padding=True` and
                `return_tensors="pt"`. A question is cut only with `truncation=True`.

        Returns:
            `input_ids` and `attention_mask` `[B, L]` for `text` and `pixel_values` `[I, 3, h, w]` for `images`. For
            SigLIP 2 NaFlex `pixel_values` is `[I, N, 3 * patch area]`, with `spatial_shapes` `[I, 2]` and
            `pixel_attention_mask` `[I, N]`. What else an image processor returns is dropped.
            `image_index` `[B]` is there only where question b is not about image b. So pairs that were processed one
            by one can be stacked, and a batch of pairs can be split.

        Raises:
            ValueError: for an image that cannot be read, an empty or too long question, and where images and questions
                do not fit together.
        """
        if images is None and text is None:
            raise ValueError("Pass `images`, `text` or both.")
        options: Any = self._with_defaults(kwargs)
        inputs = BatchFeature()
        questions, entries = ([], None) if text is None else flatten_questions(text)
        pictures = None if images is None else _open_images(images, self._rescales(options))
        if pictures is not None and text is not None:
            image_index = _complete_image_index(image_index, entries, len(pictures), len(questions))
        elif image_index is not None:
            raise ValueError("`image_index` needs both `images` and `text`.")
        elif entries is not None:
            raise ValueError("Lists of questions for each image need `images`.")
        if text is not None:
            with TOKENIZER_LOCK:
                inputs.update(super().__call__(text=questions, **options))
            check_token_counts(self.tokenizer, inputs, questions)
        if pictures is not None:
            inputs.update(self._pixel_values(pictures, options))
        if image_index is not None:
            inputs.update(BatchFeature({"image_index": image_index}, tensor_type=options["return_tensors"]))
        return inputs

    def set_max_question_length(self, model: nn.Module):
        """Limit questions to the number of tokens that the text encoder of `model` reads."""
        longest = unwrapped_model(model).base_model.max_question_length
        if longest is not None:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, longest)

    def _with_defaults(self, kwargs: Any) -> dict[str, Any]:
        """`kwargs` with our defaults, and padding to a length if the tokenizer stores that. A length alone was the
        choice of another task. SigLIP's tokenizer does not mark padding by itself."""
        names = ("padding", "max_length", "truncation", "return_attention_mask")
        if twice := sorted(set(names) & kwargs.keys() & kwargs.get("text_kwargs", {}).keys()):
            raise ValueError(f"`{twice[0]}` is given twice, by itself and in `text_kwargs`. Pass it once.")
        stored = self.tokenizer.init_kwargs
        padding = "max_length" if stored.get("padding") == "max_length" else True
        text_kwargs = {"padding": padding, "max_length": None, "return_attention_mask": True}
        text_kwargs |= kwargs.get("text_kwargs", {}) | {name: kwargs[name] for name in names if name in kwargs}
        if text_kwargs["padding"] == "max_length" and text_kwargs["max_length"] is None:
            text_kwargs["max_length"] = stored.get("max_length")
        limit = self.tokenizer.model_max_length
        cuts = text_kwargs.get("truncation") not in (None, False, "do_not_truncate")
        if cuts and text_kwargs["max_length"] is not None:
            text_kwargs["max_length"] = min(text_kwargs["max_length"], limit)
        others = {name: value for name, value in kwargs.items() if name not in names}
        given = kwargs.get("common_kwargs", {}) | text_kwargs
        others.setdefault("return_tensors", given.get("return_tensors", "pt"))
        text_kwargs.pop("return_tensors", None)
        return others | {"text_kwargs": text_kwargs}

    def _rescales(self, kwargs: dict[str, Any]) -> bool:
        given = kwargs.get("images_kwargs", {}) | kwargs
        return given.get("do_rescale", self.image_processor.do_rescale)

    def _pixel_values(self, pictures: list, kwargs: dict[str, Any]) -> BatchFeature:
        try:
            made = super().__call__(images=pictures, **kwargs)
            return BatchFeature({name: made[name] for name in IMAGE_INPUTS if name in made})
        except ValueError as error:
            given = self.image_processor.to_dict() | kwargs.get("images_kwargs", {}) | kwargs
            if len(pictures) == 1 or given.get("do_center_crop") or "height" in dict(given.get("size") or {}):
                raise
            raise ValueError(
                "The image processor makes images of different sizes, which cannot be stacked. Make all of them the "
                f"same size, for example with {self._uncropped_size()}."
            ) from error

    def _uncropped_size(self) -> str:
        """Arguments of the image processor that show the model whole images, all of one size."""
        if has_own_rule(self.image_processor):
            return "height and width as `size`, in a `ViTImageProcessorPil` with the same numbers"
        fields = self.image_processor.to_dict()
        size = fields.get("crop_size") or fields["size"]
        side = size.get("shortest_edge")
        height, width = size.get("height") or side, size.get("width") or side
        return f'`do_center_crop=False, size={{"height": {height}, "width": {width}}}`'

    def post_process_question_answering(
        self, outputs: Any, config: PreTrainedConfig, top_k: int = 5, answers: Sequence[str] | None = None
    ) -> list[list[dict[str, Any]]]:
        """
        The `top_k` answers to each question, best first.

        Args:
            outputs: of `QCAForVisualQuestionAnswering`.
            config: of the model, with the answers (`id2label`), the meaning of the scores (`problem_type`) and their
                `temperature`.
            top_k: number of answers, at most all of them.
            answers: the choices of a multiple-choice question, out of `id2label`; None for all answers.

        Returns:
            For each question a list of `{"answer": str, "score": float}`; scores are probabilities among the choices.

        Raises:
            ValueError: where `top_k` is not positive, or `answers` is empty or has an unknown answer.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        every = range(outputs.logits.shape[-1])
        numbers = list(every if answers is None else answer_numbers(answers, config.id2label))
        scores = answer_probabilities(outputs.logits[:, numbers], config)
        best, places = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
        return [
            [
                {"answer": config.id2label[numbers[place]], "score": score}
                for score, place in zip(row_scores, row_places, strict=True)
            ]
            for row_scores, row_places in zip(best.tolist(), places.tolist(), strict=True)
        ]

    def post_process_relevance(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """
        The relevance maps of each question, averaged over heads.

        Args:
            outputs: of a QCA model.
            target_sizes: `(height, width)` of the image of each question; `None` keeps the patch grid.

        Returns:
            For each question a float32 tensor `[hops, height, width]`: probabilities on the patch grid, or those
            resized bilinearly (the value of a point is the probability of the patch around it).

        Raises:
            ValueError: where there is not one size for each question, or the image processor crops or pads the images.
        """
        maps = maps_on_grids(outputs.relevance.mean(dim=2), outputs.grid, outputs.patch_boxes)
        if target_sizes is None:
            return maps
        if not sees_whole_picture(self.image_processor):
            raise ValueError(
                "The image processor crops or pads, so the maps do not cover the whole images. Leave `target_sizes` "
                "out for maps on the patch grid, ask the pipeline with `return_relevance=True`, or load the image "
                f"processor with {self._uncropped_size()}."
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
    if (fields.get("max_num_patches") or 0) > MAXIMUM_SIDE:
        raise ValueError(
            f"`max_num_patches` of the image processor must be at most {MAXIMUM_SIDE}, got "
            f"{fields['max_num_patches']}."
        )
    if 0 in (fields.get("image_std") or ()):
        raise ValueError(f"`image_std` of the image processor must not be 0, got {fields['image_std']}.")


def _open_images(images: Any, rescales: bool) -> list:
    sources = list(images) if is_collection(images) else [images]
    if not sources:
        raise ValueError("`images` is empty; pass at least one image.")
    flat = [image for source in sources for image in (source if is_collection(source) else [source])]
    return [open_image(image) if rescales or not hasattr(image, "dtype") else _as_it_is(image) for image in flat]


def _as_it_is(values: Any) -> Any:
    try:
        check_array(values)
    except ValueError as error:
        raise ValueError(f"Cannot read the image {describe_image(values)}: {error}.") from error
    return values


def _complete_image_index(
    image_index: Sequence[int] | None, entries: list[int] | None, images: int, questions: int
) -> list[int] | None:
    """The image of each question; `None` where question b is about image b."""
    if entries is not None:
        if image_index is not None:
            raise ValueError("Pass either `image_index` or a list of questions for each image, not both.")
        lists = entries[-1] + 1
        if lists != images:
            raise ValueError(f"`text` has {lists} lists of questions for {images} images; pass one for each.")
        image_index = entries
    elif image_index is None:
        if images not in (1, questions):
            raise ValueError(
                f"{images} images but {questions} questions: pass `image_index`, the image of each question, or a "
                "list of questions for each image."
            )
        image_index = [0] * questions if images == 1 else list(range(questions))
    image_index = [as_integer(index) for index in image_index]
    if len(image_index) != questions:
        raise ValueError(f"`image_index` has {len(image_index)} entries for {questions} questions.")
    for question, index in enumerate(image_index):
        if not 0 <= index < images:
            raise ValueError(
                f"`image_index` of question {question} is {index}, but there are {images} images (0 is the first)."
            )
    return None if image_index == list(range(images)) else image_index


__all__ = ["QCAProcessor"]
