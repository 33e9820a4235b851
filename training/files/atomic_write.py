"""Write a file completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """
    A temporary path to write to. It replaces `path` when the block ends, so that no reader sees half of the file.

    If the block fails, `path` keeps its content. Several processes may write the same file; the last one stays.
    """
    unfinished = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
