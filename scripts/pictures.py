"""Draw the README picture: one photo, two questions, and the relevance map of every hop.

    python scripts/pictures.py CHECKPOINT PHOTO "is the bed to the left of the window" \\
        "is the floor to the left of the chair" --output docs/rooms.jpg

CHECKPOINT is a run of `configuration/recipes/results/rooms.yaml`, and PHOTO a validation photo of NYU Depth v2.
"""

import argparse
import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from transformers import pipeline

from modeling_qca import QCAVisualQuestionAnsweringPipeline

PANEL_INCHES = 2.6
JPEG_QUALITY = 85


def draw(looks: list[Any]) -> Image.Image:
    """A row for each question: question and answer as title, the photo, then the map of each hop."""
    photo, columns = looks[0].image, len(looks[0].relevance) + 1
    height = PANEL_INCHES * photo.height / photo.width
    figure = Figure(figsize=(PANEL_INCHES * columns, (height + 0.6) * len(looks)), layout="constrained")
    for row, look in zip(figure.subfigures(len(looks), 1, squeeze=False)[:, 0], looks, strict=True):
        row.suptitle(f"{look.question}?   {look.answers[0]['answer']}", fontsize=12, fontweight="bold")
        panels = [look.image, *(look.overlay(hop, caption=False) for hop in range(columns - 1))]
        for number, (axis, panel) in enumerate(zip(row.subplots(1, columns), panels, strict=True)):
            axis.imshow(panel)
            axis.set_title(f"hop {number}" if number else "photo", fontsize=10)
            axis.set_anchor("N")
            axis.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return Image.open(file).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("photo")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    ask = pipeline(model=arguments.checkpoint, pipeline_class=QCAVisualQuestionAnsweringPipeline)
    draw(ask.look(arguments.photo, arguments.questions)).save(arguments.output, quality=JPEG_QUALITY)


if __name__ == "__main__":
    main()
