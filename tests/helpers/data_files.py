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


def save_image(image: Image.Image, path: Path, **options: object) -> str:
    image.save(path, **options)  # type: ignore[arg-type]
    return str(path)


def two_images(folder: Path) -> Path:
    for shade, name in enumerate("ab"):
        draw(folder / "images" / f"{name}.png", shade=100 * shade)
    return folder


def answered_images(folder: Path, answers: list[list[str]]) -> Path:
    """A validation table with one image and one question for each list of answers."""
    lines = []
    for number, given in enumerate(answers):
        draw(folder / "images" / f"{number}.png", shade=40 * number)
        lines.append(json.dumps({"image": f"{number}.png", "question": f"what is {number}", "answers": given}))
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def table_folder(folder: Path, rows: int = 24, images: int = 12) -> Path:
    for number in range(images):
        draw(folder / "images" / f"image{number}.jpg", shade=10 * number)
    lines = [f"image{row % images},what is at {row},answer {row}" for row in range(rows)]
    write_csv(folder / "train.csv", "image_id,question,answer", *lines)
    return folder
