"""CVAT for images 1.1: one XML file with boxes, polygons, ellipses and masks."""

from pathlib import Path
from typing import Any

import numpy as np

from ..marked_objects import parse_region
from ..regions import Box, Mask, Region, Size, ellipse
from .coco import turn_about_center
from .export import Annotation, Export, fixed, parse_hop, parse_number, parse_size, read_xml

_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def read_cvat(path: Path) -> Export:
    """The objects of an XML file, or of `annotations.xml` in a folder. Attributes may be `question_id` and `hop`.

    `rotation` of boxes and ellipses turns them clockwise about their center.

    Raises:
        ValueError: the file is not CVAT for images, or a shape is malformed. The message names picture and shape.
    """
    file = path / "annotations.xml" if path.is_dir() else path
    root = read_xml(file)
    if root.tag != "annotations":
        raise ValueError(f"{file}: not CVAT for images: its root is <{root.tag}>, not <annotations>")
    if root.find("track") is not None:
        raise ValueError(f'{file}: is "CVAT for video"; export the task as "CVAT for images 1.1"')
    if root.find("image") is None:
        raise ValueError(f"{file}: has no <image>")
    export = Export()
    for image in root.iter("image"):
        name = image.get("name", "")
        export.images.append(name)
        size = parse_size(_number(image, "width", f"{file} image {name}"), image.get("height"), f"{file} image {name}")
        assert size is not None  # its width is stated
        for number, item in enumerate(image, start=1):
            place = f"{file} image {name} shape {number}"
            if item.tag in _WITHOUT_AREA:
                export.left_out[f"shapes of the kind {item.tag}"] += 1
                continue
            attributes = {entry.get("name"): (entry.text or "").strip() for entry in item.iter("attribute")}
            annotation = Annotation(
                place,
                name,
                item.get("label", ""),
                fixed(_region(item, size, place)),
                size,
                question_id=attributes.get("question_id") or None,
                hop=parse_hop(attributes.get("hop"), place),
            )
            export.annotations.append(annotation)
    return export


def _region(item: Any, size: Size, place: str) -> Region:
    if item.tag == "box":
        box = parse_region("box", [_number(item, name, place) for name in ("xtl", "ytl", "xbr", "ybr")], place)
        assert isinstance(box, Box)
        return turn_about_center(box, _number(item, "rotation", place, "0"))
    if item.tag == "polygon":
        points = [point.split(",") for point in item.get("points", "").split(";")]
        try:
            corners = [(float(x), float(y)) for x, y in points]
        except ValueError as error:
            raise ValueError(f"{place}: `points` is x,y;x,y;..., not {item.get('points')!r:.80}") from error
        return parse_region("polygon", corners, place)
    if item.tag == "ellipse":
        cx, cy, rx, ry = (_number(item, name, place) for name in ("cx", "cy", "rx", "ry"))
        if min(rx, ry) <= 0:
            raise ValueError(f"{place}: an ellipse without width or height")
        return ellipse((cx, cy), (rx, ry), _number(item, "rotation", place, "0"))
    if item.tag == "mask":
        return _mask(item, size, place)
    raise ValueError(f"{place}: <{item.tag}> is no shape of CVAT for images 1.1")


def _mask(item: Any, size: Size, place: str) -> Mask:
    """Its runs go by rows over a box, beginning with pixels that are not chosen."""
    left, top, width, height = (_whole(item, name, place) for name in ("left", "top", "width", "height"))
    try:
        runs = [int(run) for run in item.get("rle", "").split(",")]
    except ValueError as error:
        raise ValueError(f"{place}: `rle` is whole numbers, not {item.get('rle')!r:.80}") from error
    if min(runs) < 0 or sum(runs) != width * height or not sum(runs[1::2]):
        raise ValueError(f"{place}: `rle` must sum to {width} x {height} pixels and choose at least one")
    if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
        raise ValueError(f"{place}: the mask lies outside its picture of {size[0]} x {size[1]}")
    chosen = np.zeros(size[::-1], dtype=bool)
    chosen[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(
        height, width
    )
    return Mask.from_array(chosen)


def _number(item: Any, name: str, place: str, default: str | None = None) -> float:
    return parse_number(item.get(name, default), name, place)


def _whole(item: Any, name: str, place: str) -> int:
    return round(_number(item, name, place))
