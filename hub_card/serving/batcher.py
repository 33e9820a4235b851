"""Dynamic batching: requests that arrive while the model works are answered together in its next batch."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger(__name__)


class OverloadedError(RuntimeError):
    """The queue is full."""


class Batcher:
    """Answers items in batches, in one thread.

    Args:
        answer: the results of a batch of items, in their order.
        size: largest number of items in a batch.
        waiting: largest number of items that wait; more are refused.
    """

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[Any]], size: int, waiting: int):
        self.answer, self.size = answer, size
        self.queue: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue(waiting)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def submit(self, item: Any) -> Any:
        """The result of one item. If the caller is canceled before its batch begins, the item is dropped.

        Raises:
            OverloadedError: Too many items wait.
        """
        future: asyncio.Future = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise OverloadedError(f"{self.queue.maxsize} requests wait already") from None
        return await future

    async def run(self) -> None:
        """Answer batches until it is canceled."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.size and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            waiting = [(item, future) for item, future in batch if not future.done()]
            if waiting:
                await self._answer(waiting)

    async def _answer(self, batch: list[tuple[Any, asyncio.Future]]) -> None:
        """One item that fails must not fail the others, so a failed batch is answered item by item."""
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self.thread, self.answer, [item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._answer([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
