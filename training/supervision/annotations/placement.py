"""From the coordinates of an export to those of the upright picture.

A phone stores a photo on its side, with an EXIF tag that turns it. Some tools mark the upright photo, some the stored
one, and some mark the upright photo but export the size of the stored one.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from ..regions import SIDEWAYS, Box, Mask, Region, Size
from .export import Annotation
from .pictures import Picture

Frame = Literal["upright", "stored"]

ASPECT_TOLERANCE = 0.03  # between the sides that an export states and those of the picture
OUTSIDE_TOLERANCE = 0.05  # of a side, that a box may reach beyond the picture


def find_frame(placed: Iterable[tuple[Annotation, Picture]]) -> Frame:
    """Whether an export states coordinates of upright or of stored pictures, by its photos that EXIF turns sideways.

    The stated size tells, or else a coordinate that fits one of the two alone. Without such photos or sizes it is the
    upright picture.

    Raises:
        ValueError: photos disagree, or they are turned, and nothing tells.
    """
    votes: Counter[Frame] = Counter()
    unclear = None
    for annotation, picture in placed:
        if picture.orientation not in SIDEWAYS or annotation.size is None or annotation.upright:
            continue
        vote = _vote(annotation, annotation.size, picture)
        if vote is None:
            unclear = unclear or annotation
        else:
            votes[vote] += 1
    if len(votes) == 2:
        raise ValueError(
            f"the export has {votes['upright']} marks on upright photos and {votes['stored']} on photos as they are "
            "stored, without their EXIF rotation; split it, and pass --orientation upright or stored"
        )
    if votes:
        return next(iter(votes))
    if unclear is not None:
        raise ValueError(
            f"{unclear.place}: the photo {unclear.image} is stored on its side, and the export states the size of the "
            "stored photo. Its coordinates may be those of the upright photo. Pass --orientation upright or stored, "
            "and look at the pictures of the report"
        )
    return "upright"


def place(annotation: Annotation, picture: Picture, frame: Frame) -> Region:
    """The region of an annotation in pixels of the upright picture.

    Raises:
        ValueError: the export states another shape of the picture, or a box lies outside of it.
    """
    frame = "upright" if annotation.upright else frame
    size = picture.size if frame == "upright" else picture.stored
    stated = annotation.size
    if stated is not None and not _same_shape(stated, size):
        if frame == "upright" and picture.orientation in SIDEWAYS and _same_shape(stated, picture.stored):
            stated = stated[::-1]  # the export swapped the sides
        else:
            raise ValueError(
                f"{annotation.place}: the export has {_text(stated)} pixels, but the picture {annotation.image} has "
                f"{_text(size)}; it was cropped, or it is another picture"
            )
    region = annotation.shape(size if annotation.relative or stated is None else stated)
    if isinstance(region, Mask) and not _same_shape((region.width, region.height), size):
        raise ValueError(
            f"{annotation.place}: its mask has {region.width} x {region.height} pixels, but the picture "
            f"{annotation.image or ''} has {_text(size)}"
        )
    if stated is not None and not annotation.relative:
        region = region.scaled(size[0] / stated[0], size[1] / stated[1])
    if isinstance(region, Box):
        _check_inside(region, size, annotation)
    return region if frame == "upright" else region.turned(picture.orientation, picture.stored)


def _vote(annotation: Annotation, stated: Size, picture: Picture) -> Frame | None:
    """What one annotation of a photo stored on its side tells; None if nothing."""
    if _same_shape(stated, picture.size):
        return None if _same_shape(stated, picture.stored) else "upright"
    region = annotation.shape(stated)
    if annotation.relative or isinstance(region, Mask):
        return None
    _, (right, bottom) = region.corners()
    beyond_stated = right > stated[0] + 1 or bottom > stated[1] + 1
    beyond_swapped = right > stated[1] + 1 or bottom > stated[0] + 1
    if beyond_stated == beyond_swapped:
        return None
    return "upright" if beyond_stated else "stored"


def _check_inside(box: Box, size: Size, annotation: Annotation) -> None:
    across, down = (OUTSIDE_TOLERANCE * side for side in size)
    inside = -across <= box.left < size[0] and -down <= box.top < size[1]
    if not inside or box.right > size[0] + across or box.bottom > size[1] + down or min(box.right, box.bottom) <= 0:
        raise ValueError(
            f"{annotation.place}: the box from ({box.left:g}, {box.top:g}) to ({box.right:g}, {box.bottom:g}) leaves "
            f"the picture {annotation.image or ''} of {_text(size)}; coordinates are pixels of the whole picture"
        )


def _same_shape(first: Size, second: Size) -> bool:
    ratio = (first[0] * second[1]) / (first[1] * second[0])
    return 1 - ASPECT_TOLERANCE <= ratio <= 1 + ASPECT_TOLERANCE


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
