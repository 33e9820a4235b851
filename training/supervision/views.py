"""Augmented views of labeled pictures: random crops, mirrored and recolored, with their label maps cut alike.

Questions made from the views (`segmentation_questions`) have correct answers, also for "left" and "right". Mirroring
the picture of an existing question would make its answer wrong.
"""

import csv
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageEnhance

from modeling_qca.image_qca import open_image

from ..data.images import ImageFolder, image_files
from ..files.progress import track
from .image_table import ImageTable

IMAGE_TABLE = "images.csv"
AREA = (0.35, 1.0)  # share of the picture
ASPECT = (0.78, 1.28)  # of the crop's width to height, relative to the picture's
LIGHT = (0.7, 1.3)  # brightness and contrast
SATURATION = (0.6, 1.4)


def make_views(
    images: str | os.PathLike,
    labels: str | os.PathLike,
    output: str | os.PathLike,
    count: int,
    seed: int = 0,
    image_table: str | os.PathLike | None = None,
) -> int:
    """
    Write `images/` and `labels/` with the pictures that have a label map, and `count` views of each, to a new folder.

    A view of `image12` is called `view3_image12`. A cut by `group_by: image_id // 12` therefore keeps it with its
    picture. So does a cut by a column of `image_table`.

    Args:
        images, labels: folders of pictures and of label PNGs of the same names, aligned at any scale.
        output: the folder to make; it is renamed into place when complete.
        image_table: a table with a row for each image (see `image_table.ImageTable`). The folder then holds
            `images.csv`, which gives each view the row of its picture.
        seed: of the views; the same seed and files give the same folder.

    Returns:
        The number of pictures written.

    Raises:
        ValueError: `output` exists, `count` is negative, there is no label map, a picture is missing or cannot be
            read, or `image_table` lacks a picture.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output}: already exists; remove it or write to another folder")
    if count < 0:
        raise ValueError(f"`count` must not be negative, got {count}")
    label_maps = sorted(image_files(Path(labels)))
    if not label_maps:
        raise ValueError(f"{labels}: no label maps in this folder")
    pictures = ImageFolder(Path(images))
    table = None if image_table is None else ImageTable(Path(image_table))
    described = {} if table is None else {path.stem: table.row(path.stem) for path in label_maps}
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "images").mkdir(parents=True)
    (part / "labels").mkdir()
    generator = random.Random(seed)
    try:
        for path in track(label_maps, "Cutting views"):
            picture, label_map = open_image(pictures.find(path.stem)), _read_label_map(path)
            for name, (view, cut) in _views(path.stem, picture, label_map, count, generator):
                view.save(part / "images" / f"{name}.jpg", quality=92)
                cut.save(part / "labels" / f"{name}.png")
        if table is not None:
            _write_table(part / IMAGE_TABLE, table.columns, described, count)
        os.replace(part, output)
    except BaseException:
        shutil.rmtree(part)
        raise
    return len(list((output / "images").iterdir()))


def _names(stem: str, count: int) -> list[str]:
    """The name of a picture, and of its views."""
    return [stem, *(f"view{number}_{stem}" for number in range(count))]


def _views(stem, picture, label_map, count, generator):
    own, *names = _names(stem, count)
    yield own, (picture, label_map)
    for name in names:
        yield name, _view(picture, label_map, generator)


def _write_table(path: Path, columns: list[str], described: Mapping[str, Mapping[str, str]], count: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image_id", *columns])
        table.writerows([name, *row.values()] for stem, row in described.items() for name in _names(stem, count))


def _view(picture: Image.Image, label_map: Image.Image, generator: random.Random) -> tuple[Image.Image, Image.Image]:
    area, aspect = generator.uniform(*AREA), generator.uniform(*ASPECT)
    width, height = min(1.0, (area * aspect) ** 0.5), min(1.0, (area / aspect) ** 0.5)
    left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
    mirrored = generator.random() < 0.5
    pair = []
    for image in (picture, label_map):
        x, y = image.size
        box = (round(left * x), round(top * y), round((left + width) * x), round((top + height) * y))
        cut = image.crop(box)
        pair.append(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else cut)
    view = ImageEnhance.Brightness(pair[0]).enhance(generator.uniform(*LIGHT))
    view = ImageEnhance.Contrast(view).enhance(generator.uniform(*LIGHT))
    return ImageEnhance.Color(view).enhance(generator.uniform(*SATURATION)), pair[1]


def _read_label_map(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
