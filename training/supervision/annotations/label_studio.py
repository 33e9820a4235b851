"""Label Studio exports: JSON and JSON-MIN, with rectangles, polygons, ellipses and brush masks.

label-studio-converter pins an old ijson and is no longer maintained; label-studio-sdk installs OpenCV and thirty
other packages. Both drop the rotation of boxes in most of their exports.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.images import SUFFIXES
from ..marked_objects import parse_region
from ..regions import Mask, Region, Size, ellipse, rotated_box
from .export import Annotation, Export, Shape, entry_at, fixed, parse_number, parse_size, read_json

_SHAPES = ("rectangle", "polygon", "ellipse", "brush")
_WITHOUT_AREA = ("keypoint", "vector", "cuboid", "bitmask")
_ALPHA = 3  # channel of a brush mask that says where the brush was


def read_label_studio(path: Path) -> Export:
    """The objects of the submitted annotations; predictions, drafts and cancelled annotations are left out.

    Annotators stay apart. If the data of the tasks have a `question_id`, the objects serve that question alone.

    Raises:
        ValueError: the file is no export, or a region is malformed. The message names the task.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ValueError(f"{path}: not an export of Label Studio (JSON or JSON-MIN): it must be a list of tasks")
    export = Export()
    for index, task in enumerate(tasks):
        place = f"{path} task {task.get('id', index)}"
        data = task.get("data") if "data" in task else task  # JSON-MIN has no `data`
        if not isinstance(data, dict):
            raise ValueError(f"{place}: `data` is a mapping, not {data!r:.80}")
        with entry_at(place):
            _read_task(export, task, data, place)
    return export


def _read_task(export: Export, task: Mapping[str, Any], data: Mapping[str, Any], place: str) -> None:
    found = list(_results(task, data, place, export))
    if not found:
        export.left_out["tasks without a submitted annotation"] += 1
        return
    question_id = data.get("question_id")
    for annotator, regions in found:
        for region in _joined(regions):
            image = _image_name(data, region.get("to_name"), place)
            _add(export, region, place, image, annotator, None if question_id is None else str(question_id))


def _results(
    task: Mapping[str, Any], data: Mapping[str, Any], place: str, export: Export
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(annotator, regions) of each submitted annotation that has regions."""
    if "data" not in task:
        regions = [
            {"id": f"{name} {number}", "type": "", "value": region, **_sizes(region)}
            for name, cell in data.items()
            if isinstance(cell, list)
            for number, region in enumerate(cell)
            if isinstance(region, dict) and (region.keys() & {"x", "points", "rle"})
        ]
        if regions:
            yield str(data.get("annotator", "")), regions
        return
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        raise ValueError(f"{place}: has no list `annotations`; export the project as JSON or JSON-MIN")
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            export.left_out["cancelled annotations"] += 1
        elif annotation.get("result"):
            who = annotation.get("completed_by", "")
            yield str(who.get("id", "") if isinstance(who, dict) else who), annotation["result"]


def _sizes(region: Mapping[str, Any]) -> dict[str, Any]:
    return {name: region[name] for name in ("original_width", "original_height", "image_rotation") if name in region}


def _joined(regions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One entry for each region: tags such as Rectangle and Labels write an entry each, with one id."""
    joined: dict[str, dict[str, Any]] = {}
    for number, region in enumerate(regions):
        if not isinstance(region.get("value"), dict):
            continue  # a relation between regions
        known = joined.setdefault(str(region.get("id", number)), {"value": {}, "type": ""})
        value, kind = known["value"] | region["value"], str(region.get("type", ""))
        is_shape = kind.startswith((*_SHAPES, *_WITHOUT_AREA)) or not known["type"]
        known |= region | {"value": value, "type": kind if is_shape else known["type"]}
    yield from joined.values()


def _add(
    export: Export, region: Mapping[str, Any], place: str, image: str, annotator: str, question_id: str | None
) -> None:
    value, kind = region["value"], region["type"]
    if "rle" in value:
        kind = "brush"
    elif not kind:  # JSON-MIN
        kind = "polygon" if "points" in value else "ellipse" if "radiusX" in value else "rectangle"
        kind = "keypoint" if kind == "rectangle" and "height" not in value else kind
    shape_kind = next((name for name in (*_SHAPES, *_WITHOUT_AREA) if kind.startswith(name)), None)
    if shape_kind not in _SHAPES:
        export.left_out[f"regions of the kind {kind}"] += 1
        return
    if region.get("image_rotation"):
        raise ValueError(f"{place}: its picture is turned in Label Studio (`image_rotation`); turn it back and export")
    size = parse_size(region.get("original_width"), region.get("original_height"), place)
    shape = _shape(shape_kind, value, size, place)
    labels = next((value[key] for key in value if key.endswith("labels") and value[key]), [""])
    for label in labels:
        export.annotations.append(
            Annotation(place, image, str(label), shape, size, True, False, annotator, question_id)
        )


def _shape(kind: str, value: Mapping[str, Any], size: Size | None, place: str) -> Shape:
    """The shape of a region whose coordinates are percents of the sides."""
    if kind == "brush":
        if size is None:
            raise ValueError(f"{place}: a brush region without `original_width` and `original_height`")
        return fixed(_brush(value["rle"], size, place))
    try:
        if kind == "polygon":
            points = [(float(x) / 100, float(y) / 100) for x, y in value["points"]]
            polygon = parse_region("polygon", points, place)
            return lambda size: polygon.scaled(*size)
        names = ("x", "y", "radiusX", "radiusY") if kind == "ellipse" else ("x", "y", "width", "height")
        x, y, across, down = (parse_number(value.get(name), name, place) / 100 for name in names)
        degrees = parse_number(value.get("rotation") or 0, "rotation", place)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: a malformed {kind}: {error!r}") from error
    if across <= 0 or down <= 0:
        raise ValueError(f"{place}: a {kind} without width or height")

    def shape(size: Size) -> Region:
        width, height = size
        if kind == "ellipse":
            return ellipse((x * width, y * height), (across * width, down * height), degrees)
        if degrees % 360 == 0:
            return parse_region("box", [x * width, y * height, (x + across) * width, (y + down) * height], place)
        corner = (x * width, y * height)  # the one that was the upper left corner before the rotation
        return rotated_box(*corner, across * width, down * height, degrees, corner)

    return shape


def _brush(rle: Any, size: Size, place: str) -> Mask:
    try:
        values = decode_brush(np.asarray(rle, dtype=np.uint8))
        chosen = values.reshape(size[1], size[0], 4)[..., _ALPHA] > 0
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"{place}: its brush mask cannot be decoded for {size[0]} x {size[1]} pixels") from error
    if not chosen.any():
        raise ValueError(f"{place}: its brush mask chooses no pixel")
    return Mask.from_array(chosen)


def decode_brush(encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The values of a brush mask, four a pixel by rows. Source: `decode` of @thi.ng/rle-pack, which wrote it.

    Raises:
        ValueError: the bits end before the values do.
    """
    bits = np.unpackbits(encoded)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        taken = bits[position : position + count]
        if len(taken) < count:
            raise ValueError("the mask ends early")
        position += count
        return int("".join(map(str, taken.tolist())), 2)

    total, word = read(32), read(5) + 1
    run_bits = [read(4) + 1 for _ in range(4)]
    if word != 8:
        raise ValueError(f"values of {word} bits instead of 8")
    values = np.zeros(total, dtype=np.uint8)
    start = 0
    while start < total:
        repeated = read(1)
        end = start + read(run_bits[read(2)]) + 1
        if repeated:
            values[start:end] = read(word)
        else:
            count = end - start
            values[start:end] = np.packbits(bits[position : position + count * word])
            position += count * word
        start = end
    return values


def _image_name(data: Mapping[str, Any], to_name: Any, place: str) -> str:
    """The only image of a task, or that of the region's tag; exports do not say which data a tag shows."""
    names = {key: value for key, value in data.items() if isinstance(value, str) and _is_image(value)}
    if len(names) == 1:
        return next(iter(names.values()))
    if to_name in names:
        return names[to_name]
    raise ValueError(
        f"{place}: its data has {len(names)} image names ({', '.join(names)}), and the `to_name` of a region is "
        f"{to_name!r:.80}; keep one image name in a task, or export JSON whose Image tags are called like the data"
    )


def _is_image(name: str) -> bool:
    return Path(name.partition("?")[0] if "?d=" not in name else name).suffix.lower() in SUFFIXES
