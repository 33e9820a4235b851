"""Seeded hostile tables: cells of any type, odd delimiters and encodings, and damaged files."""

import json
from pathlib import Path
from random import Random
from typing import Any

from .hostile_text import PATHS, WORDS

COLUMNS = ("image", "question", "answer", "answers", "question_id", "image_id", "question_type", "relevance", "extra")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1")


def table(generator: Random, folder: Path) -> Path:
    """A file of train rows in `folder`, which has the image a.png."""
    columns = ["image", "question", "answer", *generator.sample(COLUMNS[3:], generator.randint(0, 3))]
    if generator.random() < 0.2:
        columns.remove(generator.choice(columns))
    if generator.random() < 0.1:
        columns = [name.upper() for name in columns]
    rows = [{name: cell(generator, name) for name in columns} for _ in range(generator.choice([0, 1, 3, 8]))]
    name, content = generator.choice([delimited, as_json, as_json_lines])(generator, columns, rows)
    if generator.random() < 0.1:
        content = content[: generator.randrange(len(content) + 1)]
    path = folder / name
    path.write_bytes(content)
    return path


def cell(generator: Random, column: str) -> Any:
    """A good value of a column, or one of another type."""
    if generator.random() < 0.95:
        return {"image": "a.png", "answers": ["red", "blue"], "relevance": None}.get(column, "red")
    odd = [
        None,
        "",
        " ",
        0,
        1.0,
        -5,
        True,
        float("nan"),
        float("inf"),
        [],
        ["a", None],
        {},
        {"a": 1},
        "[red]",
        "<3",
        "A",
    ]
    return generator.choice([*odd, *PATHS, " ".join(generator.choices(WORDS, k=5)), "x" * 10_000])


def delimited(generator: Random, columns: list[str], rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    delimiter, suffix = generator.choice([(",", "csv"), (";", "csv"), ("\t", "tsv"), ("|", "csv")])
    lines = [delimiter.join(columns)]
    lines += [delimiter.join("" if value is None else str(value) for value in row.values()) for row in rows]
    if generator.random() < 0.2:
        lines.insert(generator.randint(1, len(lines)), generator.choice(["", delimiter * 40, '"open']))
    text = generator.choice(["\n", "\r\n"]).join(lines)
    return f"train.{suffix}", text.encode(generator.choice(ENCODINGS), "replace")


def as_json(generator: Random, columns: list[str], rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    return "train.json", json.dumps(generator.choice([rows, rows, {"data": rows}, rows[0] if rows else 7])).encode()


def as_json_lines(generator: Random, columns: list[str], rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    return "train.jsonl", "\n".join(json.dumps(row) for row in rows).encode()
