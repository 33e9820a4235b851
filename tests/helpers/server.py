"""A server of a model in a thread of this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import uvicorn
from qca_cli.serving.server import Limits, make_app


def serving(
    model: Any, limits: Limits | None = None, threshold: float = 0.0, abstain_answer: str | None = None
) -> AbstractContextManager[str]:
    """The address of a server of `model` on a free port."""
    return serving_app(make_app(model, limits or Limits(), threshold, abstain_answer))


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """The address of a server of `app` on a free port."""
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="error")
    socket = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        socket.close()
