"""Visual question answering as a pipeline, the task that transformers 5 removed."""
# transformers leaves its pipelines loosely typed:
# mypy: disable-error-code="assignment, misc, operator, override, union-attr"

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import Pipeline
from transformers.utils import ModelOutput

from .explanation_qca import Look, seen_box
from .image_qca import open_image
from .relevance_qca import word_relevance

ImageSource = str | Path | bytes | Image.Image
Question = str | list[str]


class QCAVisualQuestionAnsweringPipeline(Pipeline):
    """
    Ask questions about images. Several questions about one image encode it once.

    ```python
    >>> ask = pipeline(model="name/of-a-checkpoint", trust_remote_code=True)
    >>> ask("room.jpg", "what is on the table", top_k=2)
    [{'answer': 'lamp', 'score': 0.61}, {'answer': 'books', 'score': 0.14}]
    >>> ask("room.jpg", ["what is on the table", "is there a bed"])  # one list of answers for each question
    >>> ask.look("room.jpg", "what is on the table").overlay().save("look.png")  # where it looked
    >>> ask([{"image": "room.jpg", "question": "is there a bed"}, ...], batch_size=8)  # also from a generator
    ```

    With the package installed, `pipeline(model=..., pipeline_class=QCAVisualQuestionAnsweringPipeline)` runs no code
    from the checkpoint.
    """

    model: Any
    processor: Any
    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.processor.set_max_question_length(self.model)

    def __call__(
        self,
        image: ImageSource | dict | list | Iterator[dict],
        question: Question | list[Question] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            image: a path, URL, bytes or PIL image, or a list of them; or instead of both arguments
                `{"image": ..., "question": ...}`, a list or an iterator of such.
            question: one question or a list about one image. With a list of images: one question for all, or a list
                with an entry (one question or a list) for each.
            batch_size: images that go through the model together, 1 unless set here or when loading.
            kwargs: `top_k` (`int`, 5), the number of answers; `return_relevance` (`bool`, `False`);
                `truncation` (`bool`, `False`), cuts questions longer than the text encoder reads.

        Returns:
            For one question `[{"answer": str, "score": float}, ...]`, best first; with `return_relevance` instead
            `{"answers": [...], "relevance": [hops, height, width] tensor}` at the size of the image. Lists of
            questions, lists of images and iterators give lists, lists and iterators of these.

        Raises:
            ValueError: for an image that cannot be read, an empty or too long question, or numbers that do not fit.
        """
        items = self._items(image, question)
        size = batch_size or self._batch_size or 1
        if isinstance(items, Iterator):
            results = super().__call__(_grouped(items, size), batch_size=1, **kwargs)
            return (result for group in results for result in group)
        if not items:
            return []
        results = super().__call__(list(_grouped(items, size)), batch_size=1, **kwargs)
        flat = [result for group in results for result in group]
        return flat if isinstance(image, (list, tuple)) else flat[0]

    def look(
        self, image: ImageSource, question: Question, method: str = "relevance", top_k: int = 5
    ) -> Look | list[Look]:
        """
        Where the model looks and which words it reads; `ask.look("room.jpg", "is there a bed").overlay()` shows it.

        Args:
            method: `"relevance"`, `"rollout"` or `"gradient"`, see `QCAForVisualQuestionAnswering.explain`.

        Returns:
            A [`Look`], or one for each of a list of questions.
        """
        picture, questions = open_image(image), [question] if isinstance(question, str) else list(question)
        inputs = self.processor(images=picture, text=questions).to(self.device)
        explanation = self.model.explain(inputs, method)
        answers = self.processor.post_process_question_answering(explanation, self.model.config, top_k)
        maps = self.processor.post_process_relevance(explanation)
        words: list[list] = [[] for _ in questions]
        if explanation.token_relevance is not None:
            words = word_relevance(
                self.processor.tokenizer, questions, inputs["attention_mask"], explanation.token_relevance
            )
        kept = [None] * len(questions)
        if explanation.patch_mask is not None:
            kept = explanation.patch_mask.unflatten(-1, explanation.grid).cpu()
        box = seen_box(self.processor.image_processor, *picture.size)
        looks = [Look(picture, *parts, box=box) for parts in zip(questions, answers, maps, words, kept, strict=True)]
        return looks[0] if isinstance(question, str) else looks

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any):
        """Save the model, its code and the processor, all that loading the pipeline again takes."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _items(self, image: Any, question: Any) -> list[dict] | Iterator[dict]:
        if isinstance(image, Iterator):
            return image
        if question is None:
            return list(image) if isinstance(image, (list, tuple)) else [image]
        if not isinstance(image, (list, tuple)):
            return [{"image": image, "question": question}]
        questions = [question] * len(image) if isinstance(question, str) else question
        if len(questions) != len(image):
            raise ValueError(
                f"{len(image)} images but {len(questions)} questions: pass one question for all, or an entry for each."
            )
        return [{"image": one, "question": asked} for one, asked in zip(image, questions, strict=True)]

    def _sanitize_parameters(
        self, top_k: int | None = None, return_relevance: bool | None = None, truncation: bool | None = None
    ) -> tuple[dict, dict, dict]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        postprocess = {"top_k": top_k, "return_relevance": return_relevance}
        preprocess = {} if truncation is None else {"truncation": truncation}
        return preprocess, {}, {name: value for name, value in postprocess.items() if value is not None}

    def preprocess(self, group: list[dict], truncation: bool = False) -> dict[str, Any]:
        for item in group:
            if not isinstance(item, dict) or not {"image", "question"} <= item.keys():
                raise ValueError(
                    f'Expected an image and a question, or {{"image": ..., "question": ...}}, got {item!r}.'
                )
        images = [open_image(item["image"]) for item in group]
        asked = [item["question"] for item in group]
        questions = [list(question) if isinstance(question, (list, tuple)) else [question] for question in asked]
        if not all(questions):
            raise ValueError(
                f"Image {group[questions.index([])]['image']!r} comes without a question; pass at least one."
            )
        inputs = self.processor(
            images=images,
            text=[question for about_image in questions for question in about_image],
            image_index=[index for index, about_image in enumerate(questions) for _ in about_image],
            truncation=truncation,
        )
        return {"inputs": inputs, "asked": asked, "sizes": [(image.height, image.width) for image in images]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = model_inputs.pop("inputs")
        return {
            "outputs": self.model(**inputs, return_dict=True),
            "image_index": inputs["image_index"],
            **model_inputs,
        }

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 5, return_relevance: bool = False) -> list:
        outputs: ModelOutput = model_outputs["outputs"]
        results: Iterable[Any] = self.processor.post_process_question_answering(outputs, self.model.config, top_k)
        if return_relevance:
            if self.model.config.num_attention_layers == 0:
                raise ValueError("`return_relevance` needs a model with hops; this one has `num_attention_layers=0`.")
            sizes = [model_outputs["sizes"][image] for image in model_outputs["image_index"].tolist()]
            maps = self.processor.post_process_relevance(outputs, sizes)
            results = [
                {"answers": answers, "relevance": relevance} for answers, relevance in zip(results, maps, strict=True)
            ]
        remaining = iter(results)
        return [
            next(remaining) if isinstance(question, str) else list(islice(remaining, len(question)))
            for question in model_outputs["asked"]
        ]


def _grouped(items: Iterable[dict], size: int) -> Iterator[list[dict]]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


__all__ = ["QCAVisualQuestionAnsweringPipeline"]
