"""Custom handler of Hugging Face Inference Endpoints: answers questions about an image with this repository's model.

`qca push` publishes this file with each checkpoint. It needs transformers and torch, not the modeling-qca package.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP_K = 5
MAXIMUM_QUESTIONS = 64


@dataclass(frozen=True)
class Question:
    """One request.

    Args:
        image: encoded bytes, or a PIL image that the endpoint decoded.
        questions: about the image.
        top_k: number of answers to each question.
        is_list: whether the request had a list of questions, and its reply has a list of answers for each.
        threshold: the lowest probability of an answer that is given; None if the request does not say.
    """

    image: Any
    questions: list[str]
    top_k: int = TOP_K
    is_list: bool = False
    threshold: float | None = None


def parse_request(data: Any) -> Question:
    """Read the JSON of a request.

    Args:
        data: `{"inputs": {"image": base64, "question": str}, "parameters": {"top_k": int, "threshold": float}}`, or
            the form that `InferenceClient.visual_question_answering` sends: `{"image": base64, "question": str, ...}`.
            The question may be a list of questions. Parameters may be left out.

    Raises:
        ValueError: A field is missing or of another kind. An image is never read from a path or URL.
    """
    if not isinstance(data, Mapping):
        raise ValueError('The request must be a JSON object: {"inputs": {"image": base64, "question": text}}.')
    inputs = data.get("inputs")
    fields = {**data, **inputs} if isinstance(inputs, Mapping) else data
    question, parameters = fields.get("question"), data.get("parameters") or {}
    questions = list(question) if isinstance(question, list) else [question]
    if not questions or not all(isinstance(text, str) and text.strip() for text in questions):
        raise ValueError("`question` must be a text or a list of texts, and none may be empty.")
    if len(questions) > MAXIMUM_QUESTIONS:
        raise ValueError(f"`question` has {len(questions)} questions; send at most {MAXIMUM_QUESTIONS} in a request.")
    top_k = parameters.get("top_k", TOP_K) if isinstance(parameters, Mapping) else None
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError("`parameters` must be an object, and its `top_k` a whole number of at least 1.")
    threshold = parameters.get("threshold")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
        raise ValueError("`threshold` must be a number, the lowest probability of an answer that is given.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is a probability between 0 and 1, got {threshold}.")
    return Question(_image(fields.get("image")), questions, top_k, isinstance(question, list), threshold)


def withhold(answers: list[dict[str, Any]], request: Question, threshold: float = 0.0) -> list[dict[str, Any]]:
    """No answer, with the probability of the best one, if that is below the threshold.

    Args:
        answers: to one question, best first.
        threshold: of a request that does not have its own.
    """
    lowest = threshold if request.threshold is None else request.threshold
    best = answers[0]["score"]
    return [{"answer": None, "score": best}] if best < lowest else answers


def _image(image: Any) -> Any:
    if hasattr(image, "convert"):  # Inference Endpoints may decode it
        return image
    if not isinstance(image, str) or not image:
        raise ValueError("`image` must be the base64 text of an encoded image, such as a JPEG file.")
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(
            "`image` is not base64. Send the bytes of the file as base64, not its path or URL."
        ) from error


class EndpointHandler:
    """The class that Inference Endpoints looks for in `handler.py`.

    Args:
        path: folder of the repository.
    """

    def __init__(self, path: str = ""):
        from transformers import pipeline

        folder = path or str(Path(__file__).parent)
        self.ask = pipeline(model=folder, trust_remote_code=True)  # type: ignore[call-overload]

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """
        Args:
            data: see `parse_request`.

        Returns:
            `[{"score": float, "answer": str}, ...]`, best first; a list of these for a list of questions. Where the
            best score is below the request's threshold, one element with the answer None.

        Raises:
            ValueError: for a request that cannot be answered. Inference Endpoints reply with status 400.
        """
        request = parse_request(data)
        found = self.ask(request.image, request.questions, top_k=request.top_k)
        answers = [withhold(each, request) for each in found]
        return answers if request.is_list else answers[0]
