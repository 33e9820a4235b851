"""Reading the picture of a row."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image


def read_image(row: Mapping[str, Any]) -> Image.Image:
    """The decoded picture of a row whose image is stored as `{"path", "bytes"}`.

    Raises:
        ValueError: naming the file and the question where it cannot be read.
    """
    stored = row["image"]
    try:
        picture = Image.open(stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"]))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Image {stored['path'] or row['image_id']} of question {row['question_id']} cannot be read: {error}"
        ) from error
    return picture
