"""COCO annotations in JSON: boxes, polygons, and run-length encoded masks.

pycocotools decodes masks. The rest is read from the JSON itself: pycocotools does not know the rotation of CVAT's
boxes or attributes, and `supervision` rounds polygons to whole pixels and leaves out what it cannot read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..marked_objects import parse_region
from ..regions import Box, Mask, Polygon, Region, Size, rotated_box
from .export import Annotation, Export, entry_at, fixed, parse_hop, parse_number, parse_size, read_json


def read_coco(path: Path) -> Export:
    """The objects of a COCO file. `attributes` may hold `rotation` (CVAT), `question_id` and `hop`.

    Raises:
        ValueError: the file is not COCO, or an annotation is malformed. The message names the annotation.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise ValueError(f"{path}: not COCO: it needs the lists `images`, `annotations` and `categories`")
    if any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"]):
        raise ValueError(f"{path}: COCO-panoptic; pass the folder of its PNGs with --from masks --classes {path}")
    with entry_at(f"{path} images and categories"):
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        sizes = {
            image["id"]: parse_size(image.get("width"), image.get("height"), f"{path} image {image['id']}")
            for image in content["images"]
        }
    export = Export(images=list(files.values()))
    for index, entry in enumerate(content["annotations"]):
        place = f"{path} annotation {entry.get('id', index) if isinstance(entry, dict) else index}"
        with entry_at(place):
            if entry["image_id"] not in files or entry["category_id"] not in names:
                raise ValueError(f"{place}: its image or category is not in the file")
            _add(export, entry, place, files[entry["image_id"]], names[entry["category_id"]], sizes[entry["image_id"]])
    return export


def _add(export: Export, entry: Mapping[str, Any], place: str, image: str, label: str, size: Size | None) -> None:
    attributes = entry.get("attributes") or {}
    region = _region(entry, attributes, place)
    if region is None:
        export.left_out["annotations without a box and without a segmentation"] += 1
        return
    question_id = attributes.get("question_id")
    question_id = None if question_id in (None, "") else str(question_id)
    hop = parse_hop(attributes.get("hop"), place)
    export.annotations.append(Annotation(place, image, label, fixed(region), size, question_id=question_id, hop=hop))


def _region(entry: Mapping[str, Any], attributes: Mapping[str, Any], place: str) -> Region | None:
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return _mask(segmentation, place)
    if segmentation:
        parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
        try:
            outlines = [list(zip(part[::2], part[1::2], strict=True)) for part in parts]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: a polygon is [x, y, x, y, ...], not {segmentation!r:.80}") from error
        return parse_region("polygon", outlines, place)
    if not entry.get("bbox"):
        return None
    if len(entry["bbox"]) != 4:
        raise ValueError(f"{place}: `bbox` is [x, y, width, height], not {entry['bbox']!r:.80}")
    left, top, width, height = entry["bbox"]
    box = parse_region("box", [left, top, left + width, top + height], place)
    assert isinstance(box, Box)
    return turn_about_center(box, parse_number(attributes.get("rotation") or 0, "rotation", place))


def turn_about_center(box: Box, degrees: float) -> Box | Polygon:
    """A box that CVAT states with its rotation, clockwise about its center."""
    if degrees % 360 == 0:
        return box
    center = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
    return rotated_box(box.left, box.top, box.right - box.left, box.bottom - box.top, degrees, center)


def _mask(segmentation: Mapping[str, Any], place: str) -> Mask:
    counts = segmentation.get("counts")
    if not isinstance(counts, str):
        region = parse_region("mask", segmentation, place)
        assert isinstance(region, Mask)
        return region
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ValueError(f"{place}: its mask needs pycocotools: pip install 'modeling-qca[maps]'") from error
    try:
        height, width = (int(side) for side in segmentation["size"])
        runs = coco_mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{place}: its mask cannot be decoded: {error!r}") from error
    if not runs.any():
        raise ValueError(f"{place}: its mask chooses no pixel")
    return Mask.from_array(runs > 0)
