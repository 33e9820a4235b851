"""Small data files that tests write."""

import json
from pathlib import Path

from PIL import Image


def draw(path: Path, shade: int = 90, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def write_csv(path: Path, header: str, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def table_folder(folder: Path, rows: int = 24, images: int = 12) -> Path:
    for number in range(images):
        draw(folder / "images" / f"image{number}.jpg", shade=10 * number)
    lines = [f"image{row % images},what is at {row},answer {row}" for row in range(rows)]
    write_csv(folder / "train.csv", "image_id,question,answer", *lines)
    return folder
