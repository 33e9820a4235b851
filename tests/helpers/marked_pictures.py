"""A table of questions about two pictures, and what its maps hold."""

from pathlib import Path

import numpy as np
from PIL import Image

from modeling_qca.image_qca import ORIENTATION
from modeling_qca.training.data.relevance_maps import read_maps
from modeling_qca.training.supervision.add_relevance import MapOptions, add_relevance

from .data_files import draw, write_csv

GRID = (4, 8)  # cells of 10 x 10 pixels on room.png, of 5 x 20 on phone.jpg
QUESTIONS = (
    "room.png,is the lamp left of the bed,yes",
    "room.png,what is on the beds,cat",
    "room.png,where is the cup,nowhere",
    "phone.jpg,is there a lamp,yes",
)


def marked_folder(folder: Path) -> Path:
    """room.png of 80 x 40 pixels; phone.jpg of 40 x 80, stored as 80 x 40 with an EXIF tag that turns it clockwise."""
    draw(folder / "images" / "room.png", size=(80, 40))
    phone = Image.new("RGB", (80, 40))
    phone.getexif()[ORIENTATION] = 6
    phone.save(folder / "images" / "phone.jpg", exif=phone.getexif())
    write_csv(folder / "train.csv", "image,question,answer", *QUESTIONS)
    return folder


def make_maps(folder: Path, source: str, annotations=None, **options) -> dict[int, np.ndarray]:
    """Row -> maps [T, 4, 8] that `add_relevance` writes."""
    add_relevance(folder, source, annotations, options=MapOptions(grid=GRID), **options)
    return dict(read_maps(folder / "train_relevance.npz"))


def cells(**rows: str) -> np.ndarray:
    """A map of zeros but for the given rows: `cells(row0="0 1 .5")`."""
    made = np.zeros(GRID, dtype=np.float32)
    for name, text in rows.items():
        values = [float(value) for value in text.split()]
        made[int(name.removeprefix("row")), : len(values)] = values
    return made
