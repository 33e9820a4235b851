"""Crops and mirror images of VQA-RAD, and its questions about them.

    python scripts/studies/vqa_rad_views.py VQA_RAD data/vqa_rad_views

The folder gets `images`, `train.csv` with each question about its own image and about VIEWS views of it, and
`rows/train.csv` with the questions of VQA_RAD. Both tables have a column `row`: with `group_by: row`, no question of
the validation split is asked about a view in training, and the split is the same as that of VQA_RAD without groups.

A crop keeps at least KEPT of the width and of the height. The last view is mirrored too, unless the question or the
answer names a side: left, right, side, lateral.
"""

import argparse
import random
import re
import shutil
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

from modeling_qca.image_qca import open_image
from modeling_qca.training.files.progress import track

VIEWS = 3
KEPT = 0.85
SIDES = re.compile(r"left|right|side|lateral|\b[lr]\b|\b[lr][lmu]l\b", re.IGNORECASE)
MIRRORED = "mirror"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="VQA_RAD")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    questions = pd.read_csv(arguments.data / "train.csv", dtype=str, keep_default_na=False)
    questions["row"] = [str(index) for index in range(len(questions))]
    images = arguments.output / "images"
    images.mkdir(parents=True)
    (arguments.output / "rows").mkdir()
    generator = random.Random(0)
    for name in track(sorted(set(questions["image"])), "Cutting views"):
        write_views(arguments.data / "images" / name, images, generator)
    asked = [questions, *(questions.assign(image=image_names(questions, view)) for view in range(VIEWS))]
    pd.concat(asked).to_csv(arguments.output / "train.csv", index=False)
    questions.to_csv(arguments.output / "rows" / "train.csv", index=False)


def write_views(path: Path, images: Path, generator: random.Random) -> None:
    """The image itself, its crops, and the last of them mirrored."""
    shutil.copy(path, images)
    picture = open_image(path)
    for view in range(VIEWS):
        crop = random_crop(picture, generator)
        crop.save(images / f"view{view}_{path.name}", quality=95)
    ImageOps.mirror(crop).save(images / f"{MIRRORED}_{path.name}", quality=95)


def random_crop(picture: Image.Image, generator: random.Random) -> Image.Image:
    width, height = (round(length * generator.uniform(KEPT, 1)) for length in picture.size)
    left, top = generator.randint(0, picture.width - width), generator.randint(0, picture.height - height)
    return picture.crop((left, top, left + width, top + height))


def image_names(questions: pd.DataFrame, view: int) -> list[str]:
    """The image of each question in a view."""
    names = []
    for name, question, answer in zip(questions["image"], questions["question"], questions["answer"], strict=True):
        keeps_side = view < VIEWS - 1 or SIDES.search(f"{question} {answer}")
        names.append(f"view{view}_{name}" if keeps_side else f"{MIRRORED}_{name}")
    return names


if __name__ == "__main__":
    main()
