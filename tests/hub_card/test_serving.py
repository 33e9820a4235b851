"""The endpoint handler and the server of `qca serve` answer as the checkpoint does."""

import base64
import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from helpers.calibration import write_calibration
from helpers.fresh_process import run
from helpers.hub.checkpoint import save_checkpoint
from helpers.tiny import tiny_image
from huggingface_hub import InferenceClient, constants
from huggingface_hub.utils import httpx
from PIL import Image
from transformers import pipeline

from modeling_qca import QCAVisualQuestionAnsweringPipeline
from modeling_qca.hub_card.card import Release
from modeling_qca.hub_card.upload_folder import write_upload_folder

pytest.importorskip("uvicorn", reason='pip install "modeling-qca[serve]"')
pytest.importorskip("fastapi", reason='pip install "modeling-qca[serve]"')

from fastapi import FastAPI
from helpers.server import serving, serving_app
from qca_cli.serving.checkpoint_model import CheckpointModel
from qca_cli.serving.handler import MAXIMUM_QUESTIONS, EndpointHandler, parse_request
from qca_cli.serving.server import Limits, lowest_probability, read_abstain_answer

CLIENT = httpx.Client(verify=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))
QUESTIONS = ["what color is the cube", "is there a ring", "how many balls are left of the cube"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def ask(checkpoint) -> QCAVisualQuestionAnsweringPipeline:
    return pipeline(model=str(checkpoint), pipeline_class=QCAVisualQuestionAnsweringPipeline)


@pytest.fixture(scope="module")
def model(checkpoint) -> CheckpointModel:
    return CheckpointModel(str(checkpoint))


def photo(seed: int) -> bytes:
    file = BytesIO()
    tiny_image(seed, size=(40 + seed, 30)).save(file, "PNG")
    return file.getvalue()


def body(image: bytes, question: Any, **parameters: Any) -> dict[str, Any]:
    inputs = {"image": base64.b64encode(image).decode(), "question": question}
    return {"inputs": inputs, "parameters": parameters}


def same(found: list[dict], expected: list[dict]) -> bool:
    answers, scores = ([[item[name] for item in side] for side in (found, expected)] for name in ("answer", "score"))
    return answers[0] == answers[1] and scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_inference_client_gets_the_answers_of_the_checkpoint(model, ask, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(model) as address:
        client = InferenceClient(address)
        found = client.visual_question_answering(photo(1), QUESTIONS[0], top_k=2)
        default = client.visual_question_answering(photo(1), QUESTIONS[0])
    expected = ask(photo(1), QUESTIONS[0], top_k=2)
    assert len(found) == 2 and len(default) == 5
    assert same([{"answer": item.answer, "score": item.score} for item in found], expected)


def test_many_clients_get_their_own_answers_in_shared_batches(model, ask, monkeypatch):
    sizes, plain = [], CheckpointModel.answer
    monkeypatch.setattr(
        CheckpointModel, "answer", lambda self, *given: sizes.append(len(given[0])) or plain(self, *given)
    )
    jobs = [(seed, QUESTIONS[: 1 + seed % 3] if seed % 2 else QUESTIONS[seed % 3], 1 + seed % 4) for seed in range(40)]
    with serving(model) as address, ThreadPoolExecutor(20) as threads:

        def post(job):
            seed, question, top_k = job
            reply = CLIENT.post(address, json=body(photo(seed), question, top_k=top_k), timeout=60)
            return reply.raise_for_status().json()

        replies = list(threads.map(post, jobs))
    assert max(sizes) > 1 and sum(sizes) == len(jobs)
    for (seed, question, top_k), reply in zip(jobs, replies, strict=True):
        expected = ask(photo(seed), question, top_k=top_k)
        assert all(map(same, reply, expected)) if isinstance(question, list) else same(reply, expected)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "Expecting"),
        (b"[" * 100_000, 400, ""),
        (b"[1]", 400, "JSON object"),
        (json.dumps({"inputs": {"question": "why"}}).encode(), 400, "`image`"),
        (json.dumps({"inputs": {"image": "/etc/passwd", "question": "why"}}).encode(), 400, "base64"),
        (json.dumps({"inputs": {"image": "https://a.org/b.png", "question": "why"}}).encode(), 400, "base64"),
        (json.dumps(body(b"not an image", "why")).encode(), 400, "cannot identify"),
        (json.dumps(body(photo(1)[:60], "why")).encode(), 400, "Cannot read"),
        (json.dumps(body(photo(1), " ")).encode(), 400, "`question`"),
        (json.dumps(body(photo(1), ["why"] * (MAXIMUM_QUESTIONS + 1))).encode(), 400, "at most"),
        (json.dumps(body(photo(1), "why " * 5000)).encode(), 400, "tokens"),
        (json.dumps(body(photo(1), "why", top_k=0)).encode(), 400, "top_k"),
        (json.dumps(body(photo(1), "why", top_k=True)).encode(), 400, "top_k"),
        (json.dumps(body(photo(1), "why", threshold="0.5")).encode(), 400, "`threshold` must be a number"),
        (json.dumps(body(photo(1), "why", threshold=1.5)).encode(), 400, "between 0 and 1, got 1.5"),
        (json.dumps(body(photo(1), "why", threshold=float("nan"))).encode(), 400, "between 0 and 1, got nan"),
        (b" " * 200_000, 413, "larger"),
    ],
    ids=str,
)
def test_bad_requests_get_a_status_and_one_message(model, content, status, message):
    with serving(model, Limits(megabytes=0.12)) as address:
        reply = CLIENT.post(address, content=content, timeout=30)
        assert reply.status_code == status, reply.text
        assert message in reply.json()["error"] and len(reply.json()["error"]) <= 500
        assert CLIENT.get(f"{address}/health").json() == {"status": "ok", "waiting": 0}


def test_chunked_body_without_length_is_limited(model):
    with serving(model, Limits(megabytes=0.1)) as address:
        pieces = (b" " * 50_000 for _ in range(100))
        with suppress(httpx.WriteError):  # the server may close the connection while the client is sending
            assert CLIENT.post(address, content=pieces, timeout=30).status_code == 413


def test_slow_client_is_dropped_and_others_are_answered(model):
    with serving(model, Limits(seconds=0.5)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
            assert CLIENT.post(address, json=body(photo(1), "why"), timeout=30).status_code == 200
            assert b"408" in slow.recv(1000).split(b"\r\n")[0]


def test_the_inference_client_asks_the_endpoint_handler(checkpoint, ask, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    handler, app = EndpointHandler(str(checkpoint)), FastAPI()

    @app.post("/")  # as the container of an endpoint does
    def answer(data: dict) -> list:
        return handler(data)

    with serving_app(app) as address:
        found = InferenceClient(address).visual_question_answering(photo(1), QUESTIONS[0], top_k=2)
    expected = ask(photo(1), QUESTIONS[0], top_k=2)
    assert [item.answer for item in found] == [item["answer"] for item in expected]
    assert [item.score for item in found] == pytest.approx([item["score"] for item in expected], abs=1e-5)


def test_below_the_threshold_a_question_gets_no_answer(checkpoint, model, ask, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    expected = [best["score"] for (best, *_) in ask(photo(1), QUESTIONS, top_k=2)]
    between = sum(sorted(expected)[:2]) / 2
    with serving(model, threshold=between) as address:
        client = InferenceClient(address)
        found = [client.visual_question_answering(photo(1), question, top_k=2) for question in QUESTIONS]
        several = CLIENT.post(address, json=body(photo(1), QUESTIONS), timeout=30).json()
        every = CLIENT.post(address, json=body(photo(1), QUESTIONS, threshold=0), timeout=30).json()
        none = CLIENT.post(address, json=body(photo(1), QUESTIONS, threshold=1), timeout=30).json()
    for answers, score in zip(found, expected, strict=True):
        assert answers[0].score == pytest.approx(score, abs=1e-5)
        assert (answers[0].answer is None, len(answers)) == ((True, 1) if score < between else (False, 2))
    assert [len(answers) for answers in several] == [1 if a[0].answer is None else 5 for a in found]
    assert [len(answers) for answers in every] == [5] * 3
    assert [answers[0]["answer"] for answers in none] == [None] * 3
    handler = EndpointHandler.__new__(EndpointHandler)
    handler.ask = ask
    assert handler(body(photo(1), QUESTIONS, threshold=1)) == [
        [{"answer": None, "score": pytest.approx(score, abs=1e-5)}] for score in expected
    ]
    assert handler(body(photo(1), QUESTIONS[0], threshold=0.0)) == handler(body(photo(1), QUESTIONS[0]))


def test_threshold_of_a_coverage_is_that_of_the_calibration(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "run")
    assert lowest_probability(str(folder), None, None) == 0 and lowest_probability(str(folder), 0.3, None) == 0.3
    with pytest.raises(ValueError, match="run `qca calibrate`"):
        lowest_probability(str(folder), None, 0.8)
    write_calibration(folder, [1 - percent / 100 for percent in range(1, 101)])
    assert lowest_probability(str(folder), None, 0.8) == pytest.approx(0.2)


def test_the_answer_that_abstains_is_replied_as_no_answer(model, ask):
    (best, *_), expected = ask(photo(1), QUESTIONS, top_k=2)[0], ask(photo(1), QUESTIONS, top_k=5)
    with serving(model, abstain_answer=best["answer"]) as address:
        for parameters in ({}, {"threshold": 0}):
            found = CLIENT.post(address, json=body(photo(1), QUESTIONS, **parameters), timeout=30).json()
            for answers, plain in zip(found, expected, strict=True):
                if plain[0]["answer"] == best["answer"]:
                    assert answers == [{"answer": None, "score": pytest.approx(plain[0]["score"], abs=1e-5)}]
                else:
                    assert same(answers, plain)


def test_the_answer_that_abstains_is_that_of_the_training_or_else_of_the_calibration(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "run")
    assert read_abstain_answer(str(folder)) is None
    write_calibration(folder, [0.5] * 100, abstain_answer="unsure")
    assert read_abstain_answer(str(folder)) == "unsure"
    (folder / "run.json").write_text(json.dumps({"abstain_answer": "unanswerable"}))
    assert read_abstain_answer(str(folder)) == "unanswerable"


class SlowModel:
    """Answers when `release` is set; fails for a question `bad` in a batch."""

    def __init__(self):
        self.begun, self.release, self.batches = threading.Event(), threading.Event(), []

    def read_image(self, image: bytes) -> int:
        return len(image)

    def check_questions(self, questions):
        pass

    def answer(self, images, questions, top_k):
        self.begun.set()
        self.release.wait(30)
        self.batches.append(len(images))
        if ["bad"] in questions:
            raise RuntimeError("secret of the model")
        return [[[{"answer": text, "score": 1.0}] for text in about_image] for about_image in questions]


def wait_for_waiting(address: str, number: int) -> None:
    for _ in range(400):
        if CLIENT.get(f"{address}/health").json()["waiting"] == number:
            return
        time.sleep(0.05)
    raise AssertionError(f"{number} requests do not wait")


def test_full_queue_and_timeout_reply_with_busy(capsys):
    slow = SlowModel()
    with serving(slow, Limits(seconds=1.0, waiting=2, batch=1)) as address, ThreadPoolExecutor(8) as threads:
        job = lambda number: CLIENT.post(address, json=body(b"x", str(number)), timeout=30)  # noqa: E731
        replies = list(threads.map(job, range(8)))
        assert {reply.status_code for reply in replies} == {503}
        assert sum("wait already" in reply.text for reply in replies) >= 4
        assert all(reply.headers["Retry-After"] for reply in replies)
        slow.release.set()
        wait_for_waiting(address, 0)  # dropped requests keep their places until the batch before them ends
        assert CLIENT.post(address, json=body(b"x", "later"), timeout=30).json()[0]["answer"] == "later"
    assert len(slow.batches) <= 3  # the one that was being answered, and the last; dropped requests cost nothing


def test_failure_of_one_request_does_not_fail_its_batch():
    slow = SlowModel()
    with serving(slow) as address, ThreadPoolExecutor(6) as threads:
        questions = ["first", "bad", "a", "b", "c", "d"]
        ask = lambda text: threads.submit(CLIENT.post, address, json=body(b"x", text), timeout=30)  # noqa: E731
        jobs = [ask(questions[0])]
        assert slow.begun.wait(20)
        jobs += [ask(text) for text in questions[1:]]
        wait_for_waiting(address, 5)
        slow.release.set()
        replies = [job.result() for job in jobs]
    for text, reply in zip(questions, replies, strict=True):
        assert reply.status_code == (500 if text == "bad" else 200)
        assert "secret" not in reply.text and (text == "bad" or reply.json()[0]["answer"] == text)
    assert slow.batches == [1, 5, 1, 1, 1, 1, 1]  # the failed batch is answered one by one


@pytest.mark.parametrize("image", ["data:image/png;base64,AAAA", "AA\nAA"])
def test_request_forms_of_client_and_api_are_equal(image):
    api = parse_request({"inputs": {"image": image, "question": "why"}, "parameters": {"top_k": 3}})
    client = parse_request({"inputs": image, "image": image, "question": "why", "parameters": {"top_k": 3}})
    assert api == client
    assert (api.image, api.questions, api.top_k, api.is_list) == (b"\0\0\0", ["why"], 3, False)


@pytest.mark.slow  # imports everything in a process of its own
def test_pushed_handler_answers_in_a_fresh_process_without_the_package(checkpoint, ask, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    write_upload_folder(checkpoint, folder, Release("user/model"))
    requests = [body(photo(1), QUESTIONS[0], top_k=2), body(photo(2), QUESTIONS)]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    program = """
        import json, sys
        sys.path.insert(0, sys.argv[1])
        from handler import EndpointHandler
        handler = EndpointHandler(sys.argv[1])
        print(json.dumps([handler(request) for request in json.load(open("requests.json"))]))
    """
    single, several = json.loads(run(program, folder, folder=tmp_path, without_package=True))
    assert same(single, ask(photo(1), QUESTIONS[0], top_k=2))
    assert all(map(same, several, ask(photo(2), QUESTIONS)))


def test_images_of_the_server_are_those_of_the_processor(model, ask):
    """EXIF rotation and transparency are applied before the request joins a batch."""
    turned, file = tiny_image(3, size=(60, 20)), BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(file, "JPEG", exif=exif)
    with serving(model) as address:
        reply = CLIENT.post(address, json=body(file.getvalue(), QUESTIONS[0]), timeout=30).json()
    assert same(reply, ask(file.getvalue(), QUESTIONS[0]))
