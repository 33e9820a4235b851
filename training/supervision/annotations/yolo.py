"""YOLO labels: a text file for each picture, with boxes or outlines in shares of the sides."""

from collections.abc import Sequence
from pathlib import Path

from ...data.readers.table_files import read_lines
from ...files.safe_yaml import parse_yaml
from ..marked_objects import parse_region
from ..regions import Region, Size
from .export import Annotation, Export, Shape

_NAME_LISTS = ("classes.txt", "obj.names", "notes.txt")
_DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml")


def read_yolo(path: Path) -> Export:
    """The objects of a YOLO folder, given as its folder or its `data.yaml`.

    A line is `class x_center y_center width height [confidence]`, or `class x1 y1 x2 y2 ...` with three corners or
    more. Class names come from `names` in `data.yaml`, or from `classes.txt`. Key points are not read.

    Raises:
        ValueError: there are no class names or label files, the labels have key points, or a line is malformed. The
            message names file and line.
    """
    names, found_in = _class_names(path)
    folder = path if path.is_dir() else path.parent
    files = sorted(file for file in folder.rglob("*.txt") if file.name not in _NAME_LISTS)
    if any("labels" in file.relative_to(folder).parts for file in files):  # beside lists of pictures
        files = [file for file in files if "labels" in file.relative_to(folder).parts]
    if not files:
        raise ValueError(f"{folder}: no label files (*.txt) of YOLO in this folder")
    export = Export()
    for file in files:
        parts = file.relative_to(folder).with_suffix("").parts
        image = "/".join("images" if part == "labels" else part for part in parts)  # as YOLO finds the picture
        export.images.append(image)
        for number, line in enumerate(read_lines(file), start=1):
            place = f"{file} line {number}"
            values = line.split()
            if not values:
                continue
            if not values[0].isdecimal() or int(values[0]) not in names:
                raise ValueError(f"{place}: class {values[0]!r:.40} is not in {found_in}")
            shape = _shape(values[1:], place)
            export.annotations.append(Annotation(place, image, names[int(values[0])], shape, relative=True))
    return export


def _class_names(path: Path) -> tuple[dict[int, str], Path]:
    if path.is_file():
        if path.name not in _NAME_LISTS and path.suffix not in (".yaml", ".yml"):
            raise ValueError(f"{path}: pass the folder of the YOLO labels, or its data.yaml")
        candidates = [path]
    else:
        candidates = [path / name for name in (*_DATA_FILES, *_NAME_LISTS[:2])]
        candidates += [path.parent / name for name in (*_DATA_FILES, *_NAME_LISTS[:2])]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ValueError(f"{path}: has neither data.yaml nor classes.txt with the names of the classes")
    if file.suffix not in (".yaml", ".yml"):
        return dict(enumerate(line.strip() for line in read_lines(file) if line.strip())), file
    content = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    if isinstance(content, dict) and content.get("kpt_shape"):
        raise ValueError(f"{file}: `kpt_shape` says that the labels have key points; export boxes or segments")
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(str(key).isdecimal() for key in names):
        raise ValueError(f"{file}: `names` is a list of class names or {{number: name}}, not {names!r:.80}")
    return {int(key): str(name) for key, name in names.items()}, file


def _shape(values: Sequence[str], place: str) -> Shape:
    try:
        numbers = [float(value) for value in values]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if 2 in numbers[6:]:  # no share of a side, but the number of a visible key point
        raise ValueError(f"{place}: holds key points, which are not read; export boxes or segments")
    if len(numbers) in (4, 5):
        x, y, width, height = numbers[:4]
        region: Region = parse_region("box", [x - width / 2, y - height / 2, x + width / 2, y + height / 2], place)
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        region = parse_region("polygon", list(zip(numbers[::2], numbers[1::2], strict=True)), place)
    else:
        raise ValueError(
            f"{place}: {len(numbers)} numbers after the class; a box has 4 (5 with its confidence), an outline 6 or "
            "more in pairs. Key points are not read."
        )
    if max(map(abs, (*region.corners()[0], *region.corners()[1]))) > 2:
        raise ValueError(f"{place}: coordinates are shares of the sides, from 0 to 1")

    def shape(size: Size) -> Region:
        return region.scaled(*size)

    return shape
