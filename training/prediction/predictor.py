"""The answers of a checkpoint, batch in and batch out, in one class that can be pickled.

I images, B pairs of image and question, U distinct questions, L question tokens, E text width.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.overlay_qca import seen_box

from ..confidence.abstention import Abstention, read_abstention
from ..confidence.familiarity import QuestionFamiliarity
from ..data.collator import tokenize_questions
from ..data.image_features import check_one_grid
from ..data.images import blank_image, image_key
from ..data.readers.cells import cell_question
from ..evaluation.calibrate import read_familiarity
from ..evaluation.checkpoint import load_checkpoint, load_processor
from ..evaluation.evaluation import read_scoring
from ..evaluation.evaluation_data import sees_blank_images
from .pictures import Pictures, read_pictures
from .regions import peak_and_box

MAXIMUM_PAIRS = 256  # of one pass through the hops
MAXIMUM_QUESTIONS = 1024  # whose text features are kept, some 40 KB each


class _Question(NamedTuple):
    """
    Args:
        states: `[L, E]`.
    """

    states: torch.Tensor
    unfamiliar: bool


class Predictor:
    """
    Answers questions about images. Each image of a batch and each question is encoded once. A checkpoint that was
    trained on blank images is shown blank images.

    The checkpoint is loaded when it is first needed, so that the object is small when it is sent to another process.
    Ray Data runs the class as it is:
    `rows.map_batches(Predictor, fn_constructor_kwargs={"checkpoint": ...}, concurrency=4)`.

    Args:
        checkpoint: folder or Hub id.
        questions: asked about every image; None if each row brings its own.
        top_k: answers of each row.
        regions: also where the last relevance map points: `peak` and `box`, see `regions.peak_and_box`.
        device: such as `cuda:1`; by default a GPU if there is one.
        threshold, coverage: when a question gets no answer, see `abstention.read_abstention`.

    Raises:
        ValueError: `top_k` is below 1, or `questions` is empty.
    """

    def __init__(
        self,
        checkpoint: str,
        questions: Sequence[str] | None = None,
        top_k: int = 1,
        regions: bool = False,
        device: str | torch.device | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
    ):
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}")
        if isinstance(questions, str) or (questions is not None and not len(questions)):
            raise ValueError(f"`questions` is a list of at least one question, not {questions!r}")
        self.checkpoint, self.top_k, self.regions = str(checkpoint), top_k, regions
        self.questions = None if questions is None else list(questions)
        self.device, self.threshold, self.coverage = device, threshold, coverage
        self._questions: dict[str, _Question] = {}

    def __getstate__(self) -> dict[str, Any]:
        loaded = ("model", "processor", "familiarity", "blank_pixels")
        return {name: value for name, value in self.__dict__.items() if name not in loaded} | {"_questions": {}}

    @cached_property
    def model(self) -> QCAForVisualQuestionAnswering:
        """The model, in evaluation mode.

        Raises:
            ValueError: see `load_checkpoint`; or `regions` of a model without hops.
        """
        model = load_checkpoint(self.checkpoint).eval()
        if self.regions and model.config.num_attention_layers == 0:
            raise ValueError(f"{self.checkpoint}: a model without hops has no relevance maps; leave the regions out")
        check_one_grid(model.config, "`qca predict`")
        return model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]

    @cached_property
    def processor(self) -> QCAProcessor:
        """The processor, which refuses questions that are too long for the model.

        Raises:
            ValueError: `regions` with an image processor that crops or pads by a rule of its own.
        """
        model = self.model  # a checkpoint that is not there is reported by it
        processor = load_processor(self.checkpoint)
        processor.set_max_question_length(model)
        if self.regions:
            seen_box(processor.image_processor, 1, 1)
        return processor

    @cached_property
    def abstention(self) -> Abstention:
        """When a question gets no answer.

        Raises:
            ValueError: see `read_scoring` and `read_abstention`.
        """
        self.model  # noqa: B018  a checkpoint that is not there is reported by it
        *_, abstain_answer = read_scoring(self.checkpoint, {})
        return read_abstention(self.checkpoint, self.threshold, self.coverage, abstain_answer)

    @cached_property
    def familiarity(self) -> QuestionFamiliarity | None:
        """Tells questions that are unlike those trained on, if `qca calibrate` stored what it needs."""
        return read_familiarity(self.checkpoint)

    @cached_property
    def blank_pixels(self) -> torch.Tensor | None:
        """`[1, 3, h, w]`: what is shown in the place of every image; None for the images themselves."""
        if not sees_blank_images(self.checkpoint):
            return None
        return torch.from_numpy(read_pictures(self.processor, [blank_image()["bytes"]]).pixel_values)

    @property
    def fields(self) -> dict[str, Any]:
        """The names of what [`answer`] finds out about a pair, with the values where the image cannot be read."""
        empty: dict[str, Any] = {"answer": "", "probability": float("nan")}
        if self.top_k > 1:
            empty |= {"answers": [], "probabilities": []}
        if self.regions:
            empty |= {"peak": [], "box": []}
        may_abstain = (self.threshold, self.coverage, self.abstention.abstain_answer) != (None, None, None)
        if may_abstain:
            empty["abstained"] = False
        return empty if self.familiarity is None else empty | {"unfamiliar": False}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """
        Args:
            batch: columns of equal length: `image` (what `open_image` takes), and `question` where the predictor has
                no `questions` of its own.

        Returns:
            A row for each question about each image: the columns of `batch` (`image` only if it is text), `question`,
            `answer`, `probability`, `error`, and the fields of [`answer`] that were asked for. Where an image cannot
            be read, `error` says why, `answer` is empty and `probability` is not a number.

        Raises:
            ValueError: a column is missing or has a name of the results, or a question is empty or too long.
        """
        self._check_columns(batch)
        images = list(batch["image"])
        places: dict[str, int] = {}  # an image that several rows show is encoded once
        shown = [places.setdefault(_key(image, row), len(places)) for row, image in enumerate(images)]
        pictures = read_pictures(self.processor, [images[shown.index(place)] for place in range(len(places))])
        if self.questions is None:
            asked = [(row, cell_question(question, f"row {row}")) for row, question in enumerate(batch["question"])]
        else:
            asked = [(row, question) for row in range(len(images)) for question in self.questions]
        readable = [(shown[row], question) for row, question in asked if shown[row] in pictures.rows]
        answers = iter(self.answer(pictures, *zip(*readable, strict=True)) if readable else [])
        found = [
            {"error": pictures.faults[shown[row]], **self.fields} if shown[row] in pictures.faults else next(answers)
            for row, _ in asked
        ]
        kept = {name: values for name, values in batch.items() if name != "image" or _is_text(values)}
        columns: dict[str, list] = {name: [values[row] for row, _ in asked] for name, values in kept.items()}
        columns["question"] = [question for _, question in asked]
        columns |= {name: [record.get(name, "") for record in found] for name in (*self.fields, "error")}
        return {name: _array(values) for name, values in columns.items()}

    @torch.inference_mode()
    def answer(self, pictures: Pictures, places: Sequence[int], questions: Sequence[str]) -> list[dict[str, Any]]:
        """
        Args:
            places: of the image of each pair, among those that `pictures` was read from.
            questions: of each pair.

        Returns:
            For each pair `answer` and `probability`; with `top_k` over 1 also `answers` and `probabilities`, best
            first; with `regions` also `peak` and `box`; with a threshold, a coverage or an answer that abstains also
            `abstained`; with `familiarity` also `unfamiliar`. `answer` is empty below the threshold; `probability` is
            always that of the best answer.

        Raises:
            ValueError: a question is empty or too long.
        """
        rows = [pictures.rows[place] for place in places]
        pixel_values = torch.from_numpy(pictures.pixel_values)
        if self.blank_pixels is not None:
            pixel_values = self.blank_pixels.expand_as(pixel_values)
        pixel_values = pixel_values.to(self.model.device)
        # With zoom, the questions choose what is encoded.
        features = None if self.model.config.zoom_factor > 1 else self.model.get_image_features(pixel_values)
        records: list[dict[str, Any]] = []
        for start in range(0, len(rows), MAXIMUM_PAIRS):
            chunk = slice(start, start + MAXIMUM_PAIRS)
            first, last = min(rows[chunk]), max(rows[chunk])
            text, unfamiliar = self._text_features(questions[chunk])
            shown: dict[str, Any] = {"pixel_values": pixel_values[first : last + 1]}
            if features is not None:
                shown = {"image_features": features.last_hidden_state[first : last + 1], "image_grid": features.grid}
            outputs = self.model(
                **shown,
                image_index=torch.tensor([row - first for row in rows[chunk]], device=self.model.device),
                **text,
            )
            records += self._records(outputs, unfamiliar, [pictures.sizes[row] for row in rows[chunk]])
        return records

    def check_questions(self, questions: Sequence[tuple[str, str]]) -> None:
        """
        Args:
            questions: (name, text) of each.

        Raises:
            ValueError: a question is empty or too long for the model. The message has its name.
        """
        if questions:
            tokenize_questions(self.processor, [text for _, text in questions], [name for name, _ in questions])

    def _records(self, outputs: Any, unfamiliar: list[bool], sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        records = []
        may_abstain = "abstained" in self.fields
        for answers in self.processor.post_process_question_answering(outputs, self.model.config, self.top_k):
            record: dict[str, Any] = {"answer": answers[0]["answer"], "probability": answers[0]["score"]}
            if self.top_k > 1:
                record["answers"] = [each["answer"] for each in answers]
                record["probabilities"] = [each["score"] for each in answers]
            if may_abstain:
                record["abstained"] = self.abstention(record["answer"], record["probability"])
                if record["probability"] < self.abstention.threshold:
                    record["answer"] = ""
            records.append(record)
        if self.familiarity is not None:
            for record, is_unfamiliar in zip(records, unfamiliar, strict=True):
                record["unfamiliar"] = is_unfamiliar
        if self.regions:
            maps = self.processor.post_process_relevance(outputs)
            for record, grid, size in zip(records, maps, sizes, strict=True):
                seen = seen_box(self.processor.image_processor, *size)
                record["peak"], record["box"] = peak_and_box(grid[-1].float().cpu().numpy(), seen)
        return records

    def _text_features(self, questions: Sequence[str]) -> tuple[dict[str, torch.Tensor], list[bool]]:
        """`text_features` `[U, L, E]`, their `attention_mask` and `question_index` `[B]`; and each pair's flag."""
        places: dict[str, int] = {}
        index = [places.setdefault(question, len(places)) for question in questions]
        if new := [question for question in places if question not in self._questions]:
            self._encode(new)
        known = [self._questions[question] for question in places]
        states = [question.states for question in known]
        mask = [torch.ones(len(tokens), dtype=torch.long, device=tokens.device) for tokens in states]
        for question in list(self._questions)[: max(0, len(self._questions) - MAXIMUM_QUESTIONS)]:
            del self._questions[question]
        inputs = {
            "text_features": pad_sequence(states, batch_first=True),
            "attention_mask": pad_sequence(mask, batch_first=True),
            "question_index": torch.tensor(index, device=self.model.device),
        }
        return inputs, [known[place].unfamiliar for place in index]

    def _encode(self, questions: list[str]) -> None:
        text = self.model.get_text_features(**self.processor(text=questions).to(self.model.device))
        lengths = text.attention_mask.sum(dim=1).tolist()
        unfamiliar = [False] * len(questions)
        if self.familiarity is not None:
            distances = self.familiarity.distances(text.pooler_output.float().cpu().numpy())
            unfamiliar = (distances > self.familiarity.threshold).tolist()
        for question, states, length, far in zip(questions, text.last_hidden_state, lengths, unfamiliar, strict=True):
            self._questions[question] = _Question(states[:length].clone(), far)

    def _check_columns(self, batch: Mapping[str, Sequence[Any]]) -> None:
        for name in ("image", *(["question"] if self.questions is None else [])):
            if name not in batch:
                advice = ", or give the predictor `questions`" if name == "question" else ""
                raise ValueError(f"the batch has no column {name!r}, only {', '.join(batch)}; rename one{advice}")
        results = [*self.fields, "error", *([] if self.questions is None else ["question"])]
        if taken := [name for name in results if name in batch]:
            raise ValueError(f"the batch has a column {taken[0]!r}, as the results have: rename or drop it before")


def _is_text(values: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in values)


def _key(image: Any, row: int) -> str:
    """A text that tells images apart; an image of an unusual kind is one of its own."""
    if isinstance(image, (bytes, bytearray)):
        image = {"bytes": bytes(image)}
    return image_key(image) if isinstance(image, (str, Mapping)) else f"row {row}"


def _array(values: list) -> np.ndarray:
    """Numbers as an array of numbers; texts, lists and other values as objects."""
    if all(isinstance(value, (int, float)) for value in values):
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
