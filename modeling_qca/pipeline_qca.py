"""Visual question answering as a pipeline, the task that transformers 5 removed."""
# transformers leaves its pipelines loosely typed:
# mypy: disable-error-code="assignment, misc, operator, override, union-attr"

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.utils import ModelOutput

from .boxes_qca import maps_on_grids
from .evaluation_copy_qca import evaluation_copy, is_training, unwrapped_model
from .explanation_qca import VisualExplanation
from .image_qca import ImageSource, describe_image, is_collection, is_stream, open_image
from .labels_qca import answer_numbers
from .overlay_qca import place_maps, seen_box
from .relevance_qca import available_method
from .words_qca import word_importance

Question = str | Sequence[str]


class QCAVisualQuestionAnsweringPipeline(Pipeline):
    """
    Ask questions about images. Several questions about one image encode it once.

    ```python
    >>> ask = pipeline(model="name/of-a-checkpoint", trust_remote_code=True)
    >>> ask("room.jpg", "what is on the table", top_k=2)
    [{'answer': 'lamp', 'score': 0.61}, {'answer': 'books', 'score': 0.14}]
    >>> ask("room.jpg", "what color is the bed", answers=["red", "blue"])  # multiple choice
    >>> ask("room.jpg", ["what is on the table", "is there a bed"])  # one list of answers for each question
    >>> ask(["a.jpg", "b.jpg"], ["is there a bed", "how many chairs"])  # pairs
    >>> ask(["a.jpg", "b.jpg"], ["is there a bed", "how many chairs"], every_question=True)  # all about each image
    >>> ask.look("room.jpg", "what is on the table").overlay().save("look.png")  # where it looked
    >>> ask([{"image": "room.jpg", "question": "is there a bed"}, ...], batch_size=8)  # also datasets and generators
    ```

    The pipeline answers in evaluation mode, also around a model that is being trained. It changes neither the model
    nor the processor that it was given, and threads may share it. A PEFT model answers with its adapters.

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
        self.processor = deepcopy(self.processor)  # the tokenizer gets a limit, and the caller keeps the one without
        self.processor.set_max_question_length(unwrapped_model(self.model))
        self.tokenizer = self.processor.tokenizer

    def __call__(
        self,
        image: ImageSource | dict | Iterable,
        question: Question | Sequence[Question] | None = None,
        batch_size: int | None = None,
        every_question: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            image: one image (path, URL, bytes, base64, open file, PIL image or array), or a collection of images:
                list, dataset or dataset column. Or, in place of both arguments, rows
                `{"image": ..., "question": ...}`: one, a list, a dataset, or an iterator.
            question: one question, or a list of questions about one image. For a collection of images: one question
                for all, or a list with an entry (one question or a list) for each image.
            batch_size: number of images that go through the model together; 1, or as set when the pipeline was made.
            every_question: ask every question of the list about every image.
            kwargs: `top_k` (`int`, 5), the number of answers; `return_relevance` (`bool`, `False`);
                `truncation` (`bool`, `False`), cuts questions longer than the text encoder reads; `answers`
                (`list[str]`), the choices for every question of the call, out of `config.id2label`.

        Returns:
            For one question `[{"answer": str, "score": float}, ...]`, best first. With `return_relevance` it is
            `{"answers": [...], "relevance": [hops, height, width] tensor}` at the size of the image; a part that the
            image processor crops away is zero. Lists of questions and collections of images give lists of these, and
            iterators without a length give an iterator.

        Raises:
            ValueError: for an image that cannot be read, an empty or too long question, an unknown answer in
                `answers`, and for images and questions of different numbers.
        """
        if isinstance(image, dict) and question is None and is_collection(image.get("image")):
            image, question = image["image"], image.get("question")  # a slice of a dataset
        size = batch_size or self._batch_size or 1
        rows = _rows(image, question, every_question)
        groups = _Groups(rows, size) if is_collection(rows) else _grouped(rows, size)
        results = super().__call__(groups, batch_size=1, **kwargs)
        flat = (result for group in results for result in group)
        if is_stream(image):
            return flat
        return list(flat) if is_collection(image) else next(flat)

    def look(
        self, image: ImageSource, question: Question, method: str = "relevance", top_k: int = 5
    ) -> VisualExplanation | list[VisualExplanation]:
        """
        Where the model looks and which words its answer depends on.

        `ask.look("room.jpg", "is there a bed").overlay()` shows where.

        Args:
            image: one image, as in [`__call__`].
            method: `"relevance"`, `"rollout"` or `"gradient"`, see `QCAForVisualQuestionAnswering.explain`. A model
                without hops has only the gradient's map, which is given in place of the others.

        Returns:
            A [`VisualExplanation`], or one for each of a list of questions.
        """
        picture, questions = open_image(image), [question] if isinstance(question, str) else list(question)
        inputs = self.processor(images=picture, text=questions).to(self.device)
        model = unwrapped_model(self.model)
        method = available_method(model.config, method)
        explanation = model.explain(inputs, method)
        answers = self.processor.post_process_question_answering(explanation, model.config, top_k)
        maps = self.processor.post_process_relevance(explanation)
        words = word_importance(model, self.processor.tokenizer, questions, inputs, explanation.answers)
        kept = [None] * len(questions)
        if explanation.patch_mask is not None:
            kept = maps_on_grids(explanation.patch_mask.cpu(), explanation.grid, explanation.patch_boxes)
        box = seen_box(self.processor.image_processor, *picture.size)
        boxes = explanation.zoom_boxes
        windows = [[]] * len(questions) if boxes is None else [[tuple(one) for one in row] for row in boxes.tolist()]
        parts = zip(questions, answers, maps, words, kept, strict=True)
        looks = [
            VisualExplanation(picture, *row, box=box, method=method, windows=chosen)
            for row, chosen in zip(parts, windows, strict=True)
        ]
        return looks[0] if isinstance(question, str) else looks

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any):
        """Save the model, its code and the processor, from which the pipeline can be loaded again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        return_relevance: bool | None = None,
        truncation: bool | None = None,
        answers: Sequence[str] | None = None,
    ) -> tuple[dict, dict, dict]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        if answers is not None:
            answer_numbers(answers, self.model.config.id2label)  # refuses unknown ones before the model runs
        postprocess = {"top_k": top_k, "return_relevance": return_relevance, "answers": answers}
        preprocess = {} if truncation is None else {"truncation": truncation}
        return preprocess, {}, {name: value for name, value in postprocess.items() if value is not None}

    def preprocess(self, group: list[dict], truncation: bool = False) -> dict[str, Any]:
        for item in group:
            if not isinstance(item, dict) or not {"image", "question"} <= item.keys():
                raise ValueError(
                    'Expected an image and a question, or {"image": ..., "question": ...}, got an item '
                    f"{describe_image(item)}."
                )
        images = [open_image(item["image"]) for item in group]
        asked = [item["question"] for item in group]
        questions = [list(question) if is_collection(question) else [question] for question in asked]
        if not all(questions):
            source = describe_image(group[questions.index([])]["image"])
            raise ValueError(f"The image {source} comes without a question; pass at least one.")
        index = [image for image, about_image in enumerate(questions) for _ in about_image]
        flat = [question for about_image in questions for question in about_image]
        inputs = self.processor(images=images, text=flat, image_index=index, truncation=truncation)
        return {"inputs": inputs, "asked": asked, "sizes": [images[i].size for i in index]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        model, inputs = unwrapped_model(self.model), model_inputs.pop("inputs")
        if is_training(model):
            model = evaluation_copy(model)
        elif hasattr(self.model, "_orig_mod"):
            model = self.model  # compiled
        return {"outputs": model(**inputs, return_dict=True), **model_inputs}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        top_k: int = 5,
        return_relevance: bool = False,
        answers: Sequence[str] | None = None,
    ) -> list:
        outputs: ModelOutput = model_outputs["outputs"]
        process = self.processor.post_process_question_answering
        results: Iterable[Any] = process(outputs, self.model.config, top_k, answers)
        if return_relevance:
            if self.model.config.num_attention_layers == 0:
                raise ValueError("`return_relevance` needs a model with hops; this one has `num_attention_layers=0`.")
            maps = self.processor.post_process_relevance(outputs)
            results = [
                {"answers": best, "relevance": self._placed(grid, *size)}
                for best, grid, size in zip(results, maps, model_outputs["sizes"], strict=True)
            ]
        remaining = iter(results)
        return [
            list(islice(remaining, len(question))) if is_collection(question) else next(remaining)
            for question in model_outputs["asked"]
        ]

    def _placed(self, maps: Any, width: int, height: int) -> Any:
        return place_maps(maps, (height, width), seen_box(self.processor.image_processor, width, height))


class _Groups(Dataset):
    """Rows in groups of `size`, read when they are needed."""

    def __init__(self, rows: Any, size: int):
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, index: int) -> list[dict]:
        start = index * self.size
        return [self.rows[place] for place in range(start, min(start + self.size, len(self.rows)))]


class _Pairs(Sequence):
    """Rows of images and questions. Images are read when they are needed."""

    def __init__(self, images: Any, questions: Sequence):
        self.images, self.questions = images, questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: Any) -> dict:
        return {"image": self.images[index], "question": self.questions[index]}


def _rows(image: Any, question: Any, every_question: bool) -> Any:
    """Rows `{"image": ..., "question": ...}`: a collection where `image` has a length, else an iterator."""
    if question is None and (is_collection(image) or is_stream(image)):
        return image
    if question is None:
        return [image]
    if is_stream(question):
        question = list(question)
    if is_stream(image):
        if is_collection(question) and not every_question:
            raise ValueError(
                "Images without a length take one question for all, `every_question=True`, or come as rows "
                '{"image": ..., "question": ...}.'
            )
        return ({"image": one, "question": question} for one in image)
    if not is_collection(image):
        return [{"image": image, "question": question}]
    if every_question or not is_collection(question):
        return _Pairs(_by_place(image), [question] * len(image))
    if len(question) != len(image):
        raise ValueError(
            f"{len(image)} images but {len(question)} questions: pass one question for all images, an entry for each "
            "image, or `every_question=True` to ask every question about every image."
        )
    return _Pairs(_by_place(image), _by_place(question))


def _by_place(collection: Any) -> Any:
    """Indexed by place; pandas indexes by label."""
    return list(collection) if hasattr(collection, "iloc") else collection


def _grouped(items: Iterable[dict], size: int) -> Iterator[list[dict]]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


__all__ = ["QCAVisualQuestionAnsweringPipeline"]
