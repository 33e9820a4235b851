"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """
    A path to write to, which takes the place of `path` when the block ends: nobody ever reads half of it.

    When the block fails, `path` is as it was. Several may write the same file at once; the last one stays.
    """
    unfinished = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
