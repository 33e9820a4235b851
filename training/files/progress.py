"""Progress of long loops: a bar in a terminal, and without one a line every ten seconds."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich import get_console
from rich.progress import track as rich_track

SECONDS_BETWEEN_LINES = 10.0
Item = TypeVar("Item")


class ProgressLines:
    """
    Prints lines such as `Training: 120 of 400, 3.4/s, 1:22 left`, to the standard error.

    Args:
        description: the first words of each line.
        total: number of steps; None if it is not known.
        done: number of steps that were done before.
    """

    def __init__(self, description: str, total: int | None, done: int = 0):
        self.description, self.total, self.before = description, total, done
        self._start = self._printed = time.monotonic()

    def update(self, done: int, *further: str) -> None:
        """Print a line, with `further` values, if the last one is old enough."""
        now = time.monotonic()
        if now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        rate = (done - self.before) / (now - self._start)
        parts = [f"{done} of {self.total}" if self.total is not None else str(done), f"{rate:.3g}/s"]
        if self.total is not None and rate > 0:
            minutes, seconds = divmod(round((self.total - done) / rate), 60)
            parts.append(f"{minutes}:{seconds:02d} left")
        print(f"{self.description}: {', '.join([*parts, *further])}", file=sys.stderr, flush=True)


def track(items: Iterable[Item], description: str, total: int | None = None, disable: bool = False) -> Iterator[Item]:
    """The `items` of a loop, whose progress is shown. A finished bar disappears."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if disable or get_console().is_terminal:
        yield from rich_track(items, description, total=total, transient=True, disable=disable)
        return
    lines = ProgressLines(description, total)
    for done, item in enumerate(items, start=1):
        yield item
        lines.update(done)
