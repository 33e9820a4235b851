"""Work on many files with all processors."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from .progress import track

FEW = 100  # items that one process has done before others have started
CHUNK = 16  # items that a process takes at a time
Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any]  # of a worker process


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, processes: int | None = None
) -> Iterator[Result]:
    """`function` of each of `items` in their order, computed by several processes, with progress.

    Args:
        function: depends on its argument alone, and can be pickled.
        items: few items are done in this process.
        description: see `progress.track`.
        processes: how many; by default one for each processor that this process may use.

    Raises:
        Exception: the first error of `function`; work that has not started is dropped.
    """
    processes = _processors() if processes is None else processes
    if processes == 1 or len(items) <= FEW:
        yield from map(function, track(items, description))
        return
    executor = ProcessPoolExecutor(min(processes, len(items)), initializer=_set_function, initargs=(function,))
    try:
        results = executor.map(_call, items, chunksize=CHUNK)  # starts the processes, before progress has a thread
        yield from track(results, description, total=len(items))
    finally:
        executor.shutdown(cancel_futures=True)


def end_with_parent(*_: Any) -> None:
    """Let this worker process end when the process that started it is killed.

    Otherwise a worker that has a result to hand over waits for its reader forever.
    """
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_function(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _call(item: Any) -> Any:
    return _function(item)
