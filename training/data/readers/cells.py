"""One cell of a table as text, answers, image or relevance map. Other kinds of cells are refused."""

import ast
import io
import math
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_qca.image_qca import open_image

from ..answers import count_answers
from ..images import ImageFolder, StoredImage
from ..relevance_maps import as_hops

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_REMOTE = ("http://", "https://")


def is_empty(value: Any) -> bool:
    """Whether a cell is null, blank or not a number (NaN), as an empty cell of a table may be written."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_python(value: Any) -> Any:
    """A numpy scalar, array or tuple as the Python value it stands for."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def cell_text(value: Any, place: str, what: str) -> str:
    """A text without outer spaces, or a number as text; "" for an empty cell. Whole numbers have no point: 1.0 is `1`.

    Raises:
        ValueError: the cell is a truth value, an infinite number, a list, another container or a date.
    """
    value = as_python(value)
    if is_empty(value):
        return ""
    if isinstance(value, str):
        if _is_container(value):
            raise ValueError(
                f"{place}: the {what} {value!r:.80} is a list written as text: keep it as a list in JSON lines or "
                "Parquet, or write its members side by side and name what is between them (`answer_separator`)"
            )
        return value.strip()
    if isinstance(value, bool):
        raise ValueError(f"{place}: the {what} is the truth value {value}: write it as text, such as yes or no")
    if isinstance(value, (int, float)) and math.isfinite(value):
        return str(int(value)) if float(value).is_integer() else repr(value)
    raise ValueError(f"{place}: the {what} is of type {type(value).__name__}, not a text: {value!r:.80}")


def cell_question(value: Any, place: str) -> str:
    """The text of a question.

    Raises:
        ValueError: the cell is empty, a number or a container.
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError(f"{place}: the question is a list: write one row for each question, not {value!r:.80}")
    if not isinstance(value, str) and not is_empty(as_python(value)):
        raise ValueError(f"{place}: the question is of type {type(value).__name__}, not a text: {value!r:.80}")
    if not (question := cell_text(value, place, "question")):
        raise ValueError(f"{place}: the question is empty")
    return question


def cell_answers(value: Any, separator: str | None, place: str) -> list[dict[str, Any]]:
    """An answer, several, or a list of {"answer", "count"}, as the schema's list.

    Raises:
        ValueError: an answer is empty, or the cell is of another kind.
    """
    value = as_python(value)
    if isinstance(value, list) and value and all(map(_is_counted, value)):
        given = [answer["answer"].strip() for answer in value for _ in range(answer.get("count", 1))]
    elif isinstance(value, list) and not any(isinstance(answer, (list, Mapping)) for answer in value):
        given = [cell_text(answer, place, "answer") for answer in value]
    elif isinstance(value, (str, int, float)) or value is None:
        text = cell_text(value, place, "answer")
        given = [part.strip() for part in text.split(separator)] if separator else [text]
    else:
        raise ValueError(
            f"{place}: an answer is a text, a number, a list of them or a list of {{answer, count}}, not {value!r:.80}"
        )
    if not given or not all(given):
        raise ValueError(f"{place}: the answer is empty")
    return count_answers(given)


def cell_relevance(value: Any, place: str) -> NDArray[np.float32] | None:
    """Relevance maps [T, rows, columns]; None for an empty cell."""
    if is_empty(value):
        return None
    if isinstance(value, (str, Mapping)):
        raise ValueError(f"{place}: a relevance map is lists of numbers, not {value!r:.80}; put maps in an npz file")
    return as_hops(value, place)


def cell_image(value: Any, place: str, folder: ImageFolder | None) -> StoredImage | None:
    """The image of a row as it is stored; None for an empty cell.

    A cell is a file name, a number that is a file name, a URL, encoded bytes, base64 text, a PIL image, an array, the
    {"path", "bytes"} of `datasets`, or a list of one of them.

    Raises:
        ValueError: the cell is of another kind, or holds several images.
    """
    if isinstance(value, (list, tuple)) and len(value) <= 1:
        value = value[0] if value else None
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return {"path": value.get("path"), "bytes": value["bytes"]}
        value = value.get("path")
    if isinstance(value, Image.Image) or getattr(value, "ndim", 0) > 1:
        try:
            return {"path": None, "bytes": _png(open_image(value))}
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"path": None, "bytes": bytes(value)} if len(value) else None
    value = as_python(value)
    if is_empty(value):
        return None
    if isinstance(value, list):
        raise ValueError(f"{place}: its image cell is a list of {len(value)} entries; a row has one image")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{place}: an image is a file name, URL, encoded bytes or PIL image, not {value!r:.80}")
    text = cell_text(value, place, "image") if not isinstance(value, str) else value.strip()
    if text.startswith(_REMOTE):
        return _downloaded(text)
    if (content := inline_image(text)) is not None:
        return {"path": None, "bytes": content}
    return folder.find(text) if folder else text


def inline_image(text: str) -> bytes | None:
    """The encoded image that `text` holds as a `data:` URL or as base64; None for a name."""
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    elif not _BASE64.fullmatch(text):
        return None
    try:
        content = b64decode(text)
    except Base64Error:
        return None
    return content if content.startswith(_IMAGE_STARTS) else None


@lru_cache(maxsize=8)  # the rows of an image mostly follow one another
def _downloaded(url: str) -> StoredImage:
    try:
        return {"path": url, "bytes": _png(open_image(url))}
    except ValueError as error:
        return {"path": url, "bytes": None, "fault": str(error)}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _is_container(text: str) -> bool:
    """Whether `text` is a list, tuple, set or dict as Python, JSON or numpy write one."""
    try:
        text = text.strip()
        return text.startswith(("[", "(", "{")) and isinstance(ast.literal_eval(text), (list, tuple, set, dict))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _is_counted(answer: Any) -> bool:
    return (
        isinstance(answer, Mapping)
        and isinstance(answer.get("answer"), str)
        and isinstance(answer.get("count", 1), int)
    )
