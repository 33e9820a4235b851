"""Reading the picture of a row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_qca.image_qca import open_image


def read_image(row: Mapping[str, Any]) -> Image.Image:
    """The picture, upright and in RGB, of a row whose image is stored as `{"path", "bytes"}`, or decoded.

    Raises:
        ValueError: naming the file and the question where it cannot be read.
    """
    stored = row["image"]
    path, content = (None, stored) if isinstance(stored, Image.Image) else (stored["path"], stored["bytes"])
    try:
        return open_image(Path(path) if content is None else content)
    except ValueError as error:
        raise ValueError(
            f"Image {path or row['image_id']} of question {row['question_id']} cannot be read: {error.__cause__}"
        ) from error
