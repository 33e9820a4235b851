"""What training will cost: steps, memory of a batch, disk space of cached features, time to read the images."""

import math
import time
from dataclasses import dataclass

import datasets

from ..data.images import read_image

TRIED = 20  # images read to measure the speed
HALF, SINGLE = 2, 4  # bytes of a number


@dataclass(frozen=True)
class ImageShape:
    """The images of a model: pixels `height` x `width`, and `patches` with `features` numbers each."""

    height: int
    width: int
    patches: int
    features: int


@dataclass(frozen=True)
class Estimate:
    """
    Args:
        steps: optimizer steps of an epoch on one device.
        batch_bytes: the pixels of a batch in single precision, if each question has an image of its own.
        feature_bytes: the patch features of all images in half precision.
        reading_seconds: reading and decoding every image once in one process, extrapolated from `TRIED` images.
    """

    steps: int
    batch_bytes: int
    feature_bytes: int
    reading_seconds: float

    def lines(self, model: str, shape: ImageShape, batch_size: int) -> list[str]:
        """The estimate in words."""
        seconds = f"about {self.reading_seconds:.1f} s" if self.reading_seconds >= 0.1 else "less than 0.1 s"
        return [
            f"Estimate for {model} with images of {shape.height} x {shape.width} and batches of {batch_size}:",
            f"  steps of an epoch on one device: {self.steps}",
            f"  pixels of a batch: at most {in_units(self.batch_bytes)}",
            f"  cached features of all images, in half precision on disk: {in_units(self.feature_bytes)}",
            f"  reading all images once in one process: {seconds}",
        ]


def estimate_costs(
    train: datasets.Dataset, validation: datasets.Dataset, shape: ImageShape, batch_size: int, accumulation: int = 1
) -> Estimate:
    """
    Args:
        train, validation: rows of the schema, images not decoded.
        shape: of the model's images.
        batch_size: questions of a batch.
        accumulation: batches of a step.
    """
    images = {
        image_id: (rows, index) for rows in (train, validation) for index, image_id in enumerate(rows["image_id"])
    }
    tried = [images[image_id] for image_id in sorted(images)[:: max(1, len(images) // TRIED)][:TRIED]]
    start = time.perf_counter()
    for rows, index in tried:
        read_image(rows[index])
    seconds = time.perf_counter() - start
    at_once = min(batch_size, len(set(train["image_id"])))
    return Estimate(
        steps=math.ceil(math.ceil(len(train) / batch_size) / accumulation),
        batch_bytes=at_once * 3 * shape.height * shape.width * SINGLE,
        feature_bytes=len(images) * shape.patches * shape.features * HALF,
        reading_seconds=seconds * len(images) / len(tried),
    )


def in_units(size: float) -> str:
    """A number of bytes in words: 1536 -> `1.5 KiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1024
    return f"{size:.1f} TiB"
