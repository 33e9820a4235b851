"""What a reader of an annotation format gives: the annotations of an export, and what it left out."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..regions import Region, Size

Shape = Callable[[Size], Region]


@dataclass(frozen=True)
class Annotation:
    """An object as an export states it, before its picture is known.

    Args:
        place: file and entry, for messages.
        image: name of the picture in the export; None: the picture of the question `question_id`.
        label: what the object is; "" if the export does not say.
        shape: gives the region in pixels of a picture of some size. The size is `size` if the export states
            coordinates in pixels, and that of the real picture if it states shares of the sides (`relative`).
        size: width and height of the picture as the export states them; None if it does not.
        relative: whether coordinates are shares of the sides.
        upright: whether coordinates are known to be those of the upright picture.
        annotator, question_id, hop: as in `MarkedObject`.
        image_key: the `image_key` of the picture, if it is known without its name.
    """

    place: str
    image: str | None
    label: str
    shape: Shape
    size: Size | None = None
    relative: bool = False
    upright: bool = False
    annotator: str = ""
    question_id: str | None = None
    hop: int | None = None
    image_key: str | None = None


@dataclass
class Export:
    """Annotations, how many entries of which kind were left out, and the names of all pictures if they are known."""

    annotations: list[Annotation] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    images: list[str] = field(default_factory=list)

    def left_out_text(self) -> str:
        """What was left out, in words; "" if nothing was."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.left_out.items())

    def check_pixels(self) -> None:
        """Raise a ValueError if the coordinates that should be pixels are shares of the sides."""
        in_pixels = [annotation for annotation in self.annotations if not annotation.relative]
        if in_pixels and all(max(annotation.shape((1, 1)).corners()[1]) <= 1 for annotation in in_pixels):
            raise ValueError(
                f"{in_pixels[0].place}: no annotation reaches beyond 1; coordinates are pixels, not shares of the "
                "sides. Multiply them by width and height"
            )


def fixed(region: Region) -> Shape:
    """The shape of a region that is stated in pixels."""
    return lambda size: region


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def read_xml(path: Path) -> Any:
    """The root element of an XML file.

    Raises:
        ValueError: there is no such file, it is not XML, it declares entities, or the library `defusedxml` is missing.
    """
    try:
        from defusedxml import DefusedXmlException, ElementTree
    except ImportError as error:
        raise ValueError(f"{path}: reading XML needs defusedxml: pip install 'modeling-qca[maps]'") from error
    try:
        return ElementTree.parse(path, forbid_dtd=True).getroot()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise ValueError(f"{path}: not XML that can be read: {error!r}") from error


@contextmanager
def entry_at(place: str) -> Iterator[None]:
    """Read an entry of an export. What Python raises for an entry of another form becomes one message.

    Raises:
        ValueError: naming `place`.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{place}: the entry is malformed: {error!r:.200}") from error


def parse_size(width: Any, height: Any, place: str) -> Size | None:
    """Width and height as an export states them; None if it states none.

    Raises:
        ValueError: they are no positive numbers.
    """
    if width is None and height is None:
        return None
    size = (round(parse_number(width, "width", place)), round(parse_number(height, "height", place)))
    if min(size) < 1:
        raise ValueError(f"{place}: the picture has {width} x {height} pixels")
    return size


def parse_number(value: Any, what: str, place: str) -> float:
    """A finite number, or text of one.

    Raises:
        ValueError: it is no such number. The message names `place` and `what`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{place}: `{what}` is a number, not {value!r:.80}")
    return number


def parse_hop(value: Any, place: str) -> int | None:
    """The hop in a cell or attribute; None if it is empty.

    Raises:
        ValueError: it is no whole number from 1.
    """
    text = "" if value is None else str(value).strip().removesuffix(".0")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{place}: the hop is a number from 1, not {value!r:.80}")
    return int(text)
