"""Reading the picture of a row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_qca.image_qca import open_image


def read_image(row: Mapping[str, Any]) -> Image.Image:
    """The picture, upright and in RGB, of a row whose image is stored as `{"path", "bytes"}`.

    Raises:
        ValueError: naming the file and the question where it cannot be read.
    """
    stored = row["image"]
    try:
        return open_image(Path(stored["path"]) if stored["bytes"] is None else stored["bytes"])
    except ValueError as error:
        raise ValueError(
            f"Image {stored['path'] or row['image_id']} of question {row['question_id']} cannot be read: "
            f"{error.__cause__}"
        ) from error
