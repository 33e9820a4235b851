"""Pascal VOC annotations: one XML file for each picture."""

from pathlib import Path
from typing import Any

from ..marked_objects import parse_region
from ..regions import Box
from .coco import turn_about_center
from .export import Annotation, Export, fixed, parse_number, read_xml


def read_voc(path: Path) -> Export:
    """The boxes of an XML file, or of all XML files in a folder and its folders.

    Pixels of VOC count from 1 and `xmax`, `ymax` name the last pixel inside. The attribute `rotation`, which CVAT
    writes, turns a box clockwise about its center.

    Raises:
        ValueError: there is no XML file, or one is malformed. The message names it.
    """
    files = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no XML files of Pascal VOC in this folder")
    export = Export()
    for file in files:
        root = read_xml(file)
        if root.tag != "annotation":
            hint = "; use --from cvat" if root.tag == "annotations" else ""
            raise ValueError(f"{file}: not Pascal VOC: its root is <{root.tag}>, not <annotation>{hint}")
        image = (root.findtext("filename") or "").strip() or file.stem
        size = _size(root, file)
        export.images.append(image)
        for number, item in enumerate(root.iter("object"), start=1):
            place = f"{file} object {number}"
            box = [_number(item, f"bndbox/{name}", place) for name in ("xmin", "ymin", "xmax", "ymax")]
            region = parse_region("box", [box[0] - 1, box[1] - 1, *box[2:]], place)
            assert isinstance(region, Box)
            attributes = {entry.findtext("name"): entry.findtext("value") for entry in item.iter("attribute")}
            turned = turn_about_center(region, parse_number(attributes.get("rotation") or 0, "rotation", place))
            label = (item.findtext("name") or "").strip()
            if not label:
                raise ValueError(f"{place}: has no <name>")
            export.annotations.append(Annotation(place, image, label, fixed(turned), size))
    return export


def _size(root: Any, file: Path) -> tuple[int, int] | None:
    if root.find("size") is None:
        return None
    width, height = (int(_number(root, f"size/{side}", str(file))) for side in ("width", "height"))
    return (width, height) if width and height else None  # labeling tools write 0 for an unknown size


def _number(element: Any, name: str, place: str) -> float:
    return parse_number(element.findtext(name), name, place)
