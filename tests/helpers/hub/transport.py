"""Receiving a request and sending its reply, with the injected faults in between."""

import socket
import struct
from abc import abstractmethod
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from time import sleep  # its own name: tests replace `time.sleep` for the client
from typing import TYPE_CHECKING, NamedTuple

from .fault import Fault

if TYPE_CHECKING:
    from .local_hub import LocalHub


class Reply(NamedTuple):
    body: bytes
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)


class FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: "LocalHub"

    @abstractmethod
    def answer(self) -> Reply:
        """The reply to `self.command`, `self.path`, `self.headers` and `self.body`."""

    def log_message(self, *_: object) -> None:
        pass

    def dispatch(self) -> None:
        fault = self.hub.next_fault(f"{self.command} {self.path}")
        if fault.kind == "stall":
            sleep(fault.delay)
            self.reset_connection()
            return
        if fault.kind == "reset":
            next(self.body_pieces(2))
            self.reset_connection()
            return
        self.body = b""
        for piece in self.body_pieces(fault.pieces):
            self.body += piece
            sleep(fault.delay)
        if fault.kind == "status":
            self.send(Reply(b"<html>Bad gateway</html>", fault.status, {"Content-Type": "text/html"}), fault)
            return
        with self.hub.lock:
            reply = self.answer()
        if fault.kind == "lost_reply":
            self.reset_connection()
        else:
            self.send(reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch  # noqa: N815 (http.server's names)

    def body_pieces(self, pieces: int) -> Iterator[bytes]:
        """The body as it arrives, then an empty piece."""
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():  # how httpx sends a file object
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            step = max(1, length // pieces)
            for start in range(0, length, step):
                yield self.rfile.read(min(step, length - start))
        yield b""

    def reset_connection(self) -> None:
        self.hub.record(self.command, self.path, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def send(self, reply: Reply, fault: Fault) -> None:
        self.hub.record(self.command, self.path, reply.status)
        self.send_response(reply.status)
        for key, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = reply.body
        if fault.kind == "truncate":
            body = body[: len(body) // 2]
            self.close_connection = True
        step = max(1, len(body) // fault.pieces)
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            sleep(fault.delay)
