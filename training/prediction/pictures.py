"""Images decoded and resized for the model. Those that cannot be read are set aside with the reason.

I readable images, h x w pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from modeling_qca import QCAProcessor
from modeling_qca.image_qca import open_image


class Pictures(NamedTuple):
    """
    Args:
        pixel_values: `[I, 3, h, w]` float32; None if no image can be read. An array, because worker processes would
            send a tensor through shared memory, of which containers have little.
        sizes: (width, height) in pixels of each readable image.
        rows: place among the given images -> row of `pixel_values`.
        faults: place among the given images -> the reason why that one cannot be read.
    """

    pixel_values: np.ndarray | None
    sizes: list[tuple[int, int]]
    rows: dict[int, int]
    faults: dict[int, str]


def read_pictures(processor: QCAProcessor, images: Sequence[Any]) -> Pictures:
    """
    Args:
        images: what `open_image` takes, or None.

    Raises:
        ValueError: the image processor makes images of different sizes.
    """
    opened, rows, faults = [], {}, {}
    for place, image in enumerate(images):
        try:
            opened.append(open_image(image))
            rows[place] = len(opened) - 1
        except ValueError as error:
            faults[place] = "no image" if image is None else str(error.__cause__ or error)
    arrays: Any = {"return_tensors": "np"}
    pixels = processor(images=opened, **arrays)["pixel_values"] if opened else None
    return Pictures(pixels, [picture.size for picture in opened], rows, faults)
