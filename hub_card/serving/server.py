"""The HTTP server: one address for questions, one for its health, with limits of size and time."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from .batcher import Batcher, OverloadedError
from .handler import Question, parse_request, withhold

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What the server needs of a model; see `CheckpointModel`."""

    def read_image(self, image: Any) -> Any: ...

    def check_questions(self, questions: Sequence[str]) -> None: ...

    def answer(self, images: Sequence[Any], questions: Sequence[Sequence[str]], top_k: int) -> list: ...


@dataclass(frozen=True)
class Limits:
    """Args:
    megabytes: of the body of a request.
    seconds: for the arrival of a body, and again for its answer.
    waiting: requests that wait for the model; more are refused with status 503.
    batch: requests that the model answers together.
    """

    megabytes: float = 16
    seconds: float = 30
    waiting: int = 256
    batch: int = 16


def load_model(path: str, device: str = "cpu") -> Model:
    """The model in a folder: an ONNX export, or else a checkpoint. A checkpoint needs torch and modeling-qca."""
    if (Path(path) / "model.onnx").exists():
        from .onnx_model import OnnxModel

        return OnnxModel(path)
    from .checkpoint_model import CheckpointModel

    return CheckpointModel(path, device)


def lowest_probability(path: str, threshold: float | None, coverage: float | None) -> float:
    """The lowest probability of an answer that is given.

    Args:
        path: of [`load_model`].
        threshold, coverage: at most one of them. A coverage becomes the threshold that reached it on the rows that the
            model was calibrated on.

    Raises:
        ValueError: A coverage of a model that is not calibrated.
    """
    if (Path(path) / "model.onnx").exists():
        from .onnx_model import coverage_threshold

        return threshold or 0.0 if coverage is None else coverage_threshold(Path(path), coverage)
    from modeling_qca.training.confidence.abstention import read_abstention

    return read_abstention(path, threshold, coverage).threshold


def read_abstain_answer(path: str) -> str | None:
    """The answer that means "no answer": of the training, or else of the calibration. An export has the latter only.

    Args:
        path: of [`load_model`].
    """
    if (Path(path) / "model.onnx").exists():
        from .onnx_model import read_calibration

        return read_calibration(Path(path)).get("abstain_answer")
    from modeling_qca.training.confidence.abstention import read_abstention
    from modeling_qca.training.evaluation.evaluation import read_scoring

    *_, abstain_answer = read_scoring(path, {})
    return read_abstention(path, abstain_answer=abstain_answer).abstain_answer


def make_app(model: Model, limits: Limits, threshold: float = 0.0, abstain_answer: str | None = None) -> FastAPI:
    """
    `POST /` takes what `handler.parse_request` reads and replies with the answers. `GET /health` replies with the
    number of waiting requests.

    Args:
        threshold: the lowest probability of an answer that is given, where the request does not have its own.
        abstain_answer: an answer that means "no answer", at any probability.

    | status | meaning |
    | --- | --- |
    | 400 | the request, its image or a question cannot be read |
    | 408 | the body did not arrive in time |
    | 413 | the body is too large |
    | 503 | too many requests wait, or the answer took too long |
    """

    def answer(items: Sequence[tuple[Any, Question]]) -> list:
        images, requests = zip(*items, strict=True)
        top_k = max(request.top_k for request in requests)
        answered = model.answer(images, [request.questions for request in requests], top_k)
        return [
            [_withhold(answers[: request.top_k], request, threshold, abstain_answer) for answers in about_image]
            for about_image, request in zip(answered, requests, strict=True)
        ]

    def prepare(body: bytes) -> tuple[Any, Question]:
        request = parse_request(json.loads(body))
        model.check_questions(request.questions)
        return model.read_image(request.image), request

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(answer, limits.batch, limits.waiting)
        app.state.decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decoder")
        task = asyncio.create_task(app.state.batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    app = FastAPI(title="modeling-qca", lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": app.state.batcher.queue.qsize()}

    @app.post("/")
    async def ask(request: Request) -> JSONResponse:
        body = await _read_body(request, limits)
        try:
            async with asyncio.timeout(limits.seconds):
                loop = asyncio.get_running_loop()
                image, question = await loop.run_in_executor(app.state.decoders, prepare, body)
                answers = await app.state.batcher.submit((image, question))
        except (TimeoutError, OverloadedError) as error:
            reason = str(error) or f"the answer took longer than {limits.seconds:g} seconds"
            raise HTTPException(503, f"The server is busy: {reason}.", {"Retry-After": "1"}) from error
        except (ValueError, RecursionError) as error:  # JSON that is nested too deep
            raise HTTPException(400, str(error)[:500] or type(error).__name__) from error
        except Exception as error:
            logger.exception("A request failed")
            raise HTTPException(500, "The request failed; the server's log says why.") from error
        return JSONResponse(answers if question.is_list else answers[0])

    @app.exception_handler(HTTPException)
    async def reply_with_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return app


def _withhold(answers: list, request: Question, threshold: float, abstain_answer: str | None) -> list:
    if answers[0]["answer"] == abstain_answer:
        return [{"answer": None, "score": answers[0]["score"]}]
    return withhold(answers, request, threshold)


async def _read_body(request: Request, limits: Limits) -> bytes:
    maximum = int(limits.megabytes * 2**20)
    too_large = HTTPException(413, f"The request is larger than {limits.megabytes:g} MB.", {"Connection": "close"})
    if int(request.headers.get("content-length") or 0) > maximum:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > maximum:
                    raise too_large
    except TimeoutError as error:
        reason = f"The request took longer than {limits.seconds:g} seconds to arrive."
        raise HTTPException(408, reason, {"Connection": "close"}) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "The client left.") from error
    return bytes(body)
