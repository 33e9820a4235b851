"""Load a server of `qca serve` with many clients and faults, and compare every answer with the model's own.

    python scripts/serving_load.py runs/demo/checkpoint photos/ --output docs/results/serving_load.json

Each client asks about one photo after another. Meanwhile other clients send a body that is too large, a picture that
cannot be read, and a request that never ends. The exit status is 1 if a reply is wrong or missing.
"""

import argparse
import base64
import json
import platform
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import httpx

QUESTIONS = ("what is it", "what color is it", "is there a cup", "how many are there")
TOLERANCE = 1e-4


def main() -> int:
    """Run the load and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint or ONNX export")
    parser.add_argument("photos", type=Path, help="folder of images")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    photos = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})[:100]
    with Server(given.model) as server:
        figures = measure(server.address, photos, given.clients, given.requests)
    wrong = compare(given.model, photos, figures.pop("replies"))
    figures |= {"wrong": wrong, "model": Path(given.model).name, "processor": platform.machine()}
    print(json.dumps(figures, indent=2))
    if given.output:
        before = json.loads(given.output.read_text(encoding="utf-8")) if given.output.exists() else {}
        given.output.write_text(json.dumps(before | {figures["model"]: figures}, indent=2) + "\n", encoding="utf-8")
    return int(wrong > 0 or figures["answered"] != given.requests or figures["faults_refused"] != figures["faults"])


class Server:
    """`qca serve` in a process of its own, on a free port."""

    def __init__(self, model: str):
        command = [sys.executable, "-c", "from qca_cli.main import main; main()", "serve", model, "--port", "0"]
        self.process = subprocess.Popen([*command, "--max-waiting", "1000"], stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Server":
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " on http" not in line:
            raise RuntimeError(f"the server did not start: {line}")
        self.address = line.split(" on ")[1].split()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def payload(photo: Path, question: str) -> dict[str, Any]:
    """The JSON of one request."""
    return {"inputs": {"image": base64.b64encode(photo.read_bytes()).decode(), "question": question}}


def measure(address: str, photos: list[Path], clients: int, requests: int) -> dict[str, Any]:
    """Milliseconds of the replies, and the replies to the faults."""
    replies: dict[int, Any] = {}
    times: list[float] = []
    jobs = iter(range(requests))
    lock = threading.Lock()

    def client(_: int) -> None:
        with httpx.Client(timeout=120) as session:
            while (number := take()) is not None:
                photo, question = job(photos, number)
                begin = time.perf_counter()
                reply = session.post(address, json=payload(photo, question))
                with lock:
                    times.append(time.perf_counter() - begin)
                    if reply.status_code == 200:
                        replies[number] = reply.json()

    def take() -> int | None:
        with lock:
            return next(jobs, None)

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients + 3) as threads:
        faults = [threads.submit(fault, address, photos[0]) for fault in (huge_body, corrupt_picture, slow_client)]
        list(threads.map(client, range(clients)))
        seconds = time.perf_counter() - begin
        refused = [fault.result() for fault in faults]
    health = httpx.get(f"{address}/health", timeout=30).json()
    return {
        "clients": clients,
        "requests": requests,
        "answered": len(replies),
        "p50_ms": round(1000 * float(np.percentile(times, 50)), 1),
        "p99_ms": round(1000 * float(np.percentile(times, 99)), 1),
        "requests_per_second": round(requests / seconds, 1),
        "faults": sum(count for count, _ in refused),
        "faults_refused": sum(good for _, good in refused),
        "waiting_afterwards": health["waiting"],
        "replies": replies,
    }


def job(photos: list[Path], number: int) -> tuple[Path, str]:
    """Photo and question of a request."""
    draw = random.Random(number)
    return draw.choice(photos), draw.choice(QUESTIONS)


def huge_body(address: str, photo: Path) -> tuple[int, int]:
    """(faults, faults that were refused with the right status)"""
    refused = 0
    for _ in range(5):
        try:
            refused += httpx.post(address, content=b" " * 20_000_000, timeout=120).status_code == 413
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            refused += 1  # the server closed the connection while the body was being sent
    return 5, refused


def corrupt_picture(address: str, photo: Path) -> tuple[int, int]:
    """As `huge_body`."""
    content = base64.b64encode(photo.read_bytes()[:200]).decode()
    body = {"inputs": {"image": content, "question": "what is it"}}
    return 20, sum(httpx.post(address, json=body, timeout=120).status_code == 400 for _ in range(20))


def slow_client(address: str, photo: Path) -> tuple[int, int]:
    """As `huge_body`."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        return 1, int(b" 408 " in slow.recv(1000).split(b"\r\n")[0])


def compare(model: str, photos: list[Path], replies: dict[int, Any]) -> int:
    """The number of replies that differ from the answers of the model asked alone."""
    from qca_cli.serving.server import load_model

    alone, known, wrong = load_model(model), {}, 0
    for number, reply in replies.items():
        photo, question = job(photos, number)
        if (photo, question) not in known:
            ((answers,),) = alone.answer([alone.read_image(photo.read_bytes())], [[question]], 5)
            known[photo, question] = {item["answer"]: item["score"] for item in answers}
        expected = known[photo, question]
        best = max(expected, key=expected.__getitem__)
        score = {item["answer"]: item["score"] for item in reply}.get(best, -1.0)
        wrong += abs(score - expected[best]) > TOLERANCE
    return wrong


if __name__ == "__main__":
    sys.exit(main())
