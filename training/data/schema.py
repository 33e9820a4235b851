"""The row schema, and what a reader of a file format offers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import datasets

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "question_id": datasets.Value("string"),
        "question_type": datasets.Value("string"),
        "answers": datasets.List({"answer": datasets.Value("string"), "count": datasets.Value("int32")}),
        "relevance": datasets.List(datasets.List(datasets.List(datasets.Value("float32")))),
    }
)
"""The row schema. `relevance` is [T][rows][columns], one map per hop, or None."""

Record: TypeAlias = Mapping[str, Any]
"""One row of a file as it is written there, column -> value."""

Row: TypeAlias = dict[str, Any]
"""One row in the schema `FEATURES`. A reader may leave its image None; then the row has no image."""


class Reader(Protocol):
    """The interface of every format. Its shards can be read independently of one another."""

    @property
    def data(self) -> Any: ...
    def shards(self) -> list[str]: ...
    def sources(self) -> list[Path]: ...
    def rows(self, shard: str) -> Iterator[tuple[str, Row]]: ...
