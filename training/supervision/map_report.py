"""What came of making relevance maps: figures, words and labels in lines of text, and pictures on a page."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from numpy.typing import NDArray

from modeling_qca.image_qca import open_image
from modeling_qca.overlay_qca import overlay, strip

from ..data.images import StoredImage
from ..data.readers.tabular import map_file
from ..files.html_page import render_page

PICTURE_SIDE = 260  # pixels of the longer side of a picture on the page
MOST_SHOWN = 20  # words or labels in a line
STYLE = ".examples { display: flex; flex-wrap: wrap; gap: 1.5rem; }\n"
BODY = """\
<ul>
{% for line in lines %}<li>{{ line }}</li>
{% endfor %}</ul>
<p class="quiet">Each picture stands beside the target region of each hop. Bright cells are the target.</p>
<div class="examples">
{% for example in examples %}<figure>
<img src="data:image/jpeg;base64,{{ example.picture }}" alt="Relevance maps for: {{ example.question }}">
<figcaption><b>{{ example.question }}</b><br>
<span class="quiet">{{ example.place }}: {{ example.hops }}</span></figcaption>
</figure>
{% endfor %}</div>
"""


@dataclass
class MapReport:
    """Figures of one table.

    Args:
        table: the file of questions.
        questions: their number.
        hops: number of maps a question.
        mapped: questions that have maps.
        partial: those of them with a hop without a target, because the picture has no such object.
        words: how many questions name objects by these words, among the questions that have maps.
        idle: labels of objects that serve no question, with the number of objects.
        notes: further lines, such as what an export left out.
    """

    table: Path
    questions: int
    hops: int
    mapped: int = 0
    partial: int = 0
    words: Counter[str] = field(default_factory=Counter)
    idle: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def map_file(self) -> Path:
        """The relevance maps."""
        return map_file(self.table)

    @property
    def page(self) -> Path:
        """The page with pictures."""
        return self.map_file.with_suffix(".html")

    def lines(self) -> list[str]:
        """The report as text."""
        maps = "one map" if self.hops == 1 else f"a map for each of {self.hops} hops"
        lines = [f"questions with {maps}: {self.mapped:,} of {self.questions:,}"]
        if self.partial:
            lines.append(f"of these, questions that name an object nobody marked: {self.partial:,} (no target there)")
        if self.words:
            lines.append(f"words that chose objects: {_counted(self.words)}")
        if self.idle:
            lines.append(f"labels of objects that serve no question here: {_counted(self.idle)}")
        return lines + self.notes


def map_page(title: str, lines: Sequence[str], examples: Iterable[dict[str, str]]) -> str:
    """A self-contained HTML page with the lines and pictures of a report. It refers to no other file."""
    return render_page(BODY, STYLE, {"title": title, "lines": lines, "examples": list(examples)})


def draw_example(image: StoredImage, maps: NDArray) -> str:
    """A picture beside its maps [T, rows, columns], as base64 of a JPEG without metadata."""
    picture = open_image(image if isinstance(image, str) else dict(image))
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    drawn = [overlay(picture, torch.as_tensor(relevance), legend=False) for relevance in maps]
    buffer = io.BytesIO()
    strip([picture, *drawn]).save(buffer, "jpeg", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _counted(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name or '(no label)'} ({count:,})" for name, count in counts.most_common(MOST_SHOWN))
    more = len(counts) - MOST_SHOWN
    return f"{shown}, and {more:,} more" if more > 0 else shown
