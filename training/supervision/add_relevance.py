"""Relevance maps beside a table, from annotations that people already have.

Annotations become marked objects of the upright pictures, and the objects of a picture become the maps of the
questions that name them.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.readers.cells import as_python, is_empty
from ..data.relevance_maps import Grid, write_maps
from ..files.atomic_write import atomic_write
from ..files.progress import track
from .annotations.box_column import read_box_column
from .annotations.box_table import read_box_table
from .annotations.coco import read_coco
from .annotations.cvat import read_cvat
from .annotations.export import Annotation, Export, fixed
from .annotations.label_studio import read_label_studio
from .annotations.mask_pictures import read_masks
from .annotations.pascal_voc import read_voc
from .annotations.pictures import open_picture
from .annotations.placed_objects import PlacedObjects
from .annotations.placement import Frame
from .annotations.yolo import read_yolo
from .asked_questions import SPLITS, AskedQuestion, AskedTable, read_tables
from .detection.detections import read_detections
from .map_report import MapReport, draw_example, map_page
from .marked_objects import OBJECTS_FILE, MarkedObject, read_objects, write_objects
from .object_maps import HopObjects, draw_hop_maps, objects_by_hop
from .object_matching import LabelMatcher, Mention
from .regions import Size

READERS: dict[str, Callable[[Path], Export]] = {
    "coco": read_coco,
    "voc": read_voc,
    "yolo": read_yolo,
    "label_studio": read_label_studio,
    "cvat": read_cvat,
    "csv": read_box_table,
}
"""The formats that are one file or folder. `masks`, `columns`, `objects` and `detector` need more."""

SOURCES = (*READERS, "masks", "columns", "objects", "detector")
EXAMPLES = 20  # pictures of a report

ObjectsOfPicture = Mapping[str, Sequence[MarkedObject]]
"""`image_key` of a picture -> its marked objects."""


@dataclass(frozen=True)
class MapOptions:
    """How maps are made.

    Args:
        grid: rows and columns of a map.
        hops: number of maps a question has at most.
        label_words: words that name a label instead of the label itself (see `LabelMatcher`).
        objects_column: column of the table that names the labels of a question, in the order of the hops: a list, or
            text with `,` or `;` between the labels. By default the words of the question choose.
        replace: replace map files that exist; that of a table without a map now is removed.
    """

    grid: Grid = (16, 16)
    hops: int = 2
    label_words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    objects_column: str | None = None
    replace: bool = False


def add_relevance(
    data: str | Path,
    source: str,
    annotations: str | Path | None = None,
    *,
    options: MapOptions | None = None,
    data_options: Mapping[str, Any] | None = None,
    splits: Collection[str] = SPLITS,
    classes: str | Path | None = None,
    column: str = "boxes",
    orientation: Frame | None = None,
    detector: str | None = None,
    threshold: float = 0.2,
    save_objects: bool = False,
) -> list[MapReport]:
    """Write relevance maps, and a page with twenty of them, beside the tables of `data`.

    Args:
        data: a folder or file of questions, as for `load_rows`.
        source: one of `SOURCES`.
        annotations: the file or folder of the source; not for `columns` and `detector`, and by default
            `objects.jsonl` beside the table for `objects`.
        options: how maps are made; by default, as `MapOptions()` says.
        data_options: options of the table, such as `images`.
        splits: which tables get maps.
        classes: names of the class numbers in `masks`; without it each mask is of one question.
        column: column of the boxes, for `columns`.
        orientation: whether coordinates are those of upright pictures, or of pictures stored on their side. By default
            the export must tell (see `find_frame`).
        detector, threshold: for `detector`, see `read_detections`.
        save_objects: also add the objects to `objects.jsonl` beside the table.

    Returns:
        A report for each table.

    Raises:
        ValueError: a map file exists already, the annotations are malformed or do not fit the pictures, or no question
            gets a map. Then nothing is written.
    """
    if source not in SOURCES:
        raise ValueError(f"--from is one of {', '.join(SOURCES)}, not {source!r}")
    if classes is not None and source != "masks":
        raise ValueError("--classes names the classes of masks; it belongs to --from masks")
    if annotations is not None and source in ("columns", "detector"):
        raise ValueError(f"--from {source} reads the table itself and takes no --annotations; leave it out")
    options = options or MapOptions()
    columns = {options.objects_column, column if source == "columns" else None} - {None}
    tables = read_tables(data, data_options or {}, splits, columns)
    check_map_files(tables, options)
    if source == "detector":
        export = read_detections(tables, detector, threshold)
    else:
        export = _read_source(source, annotations, classes, column, tables)
    if not export.annotations:
        raise ValueError(
            f"{annotations or data}: holds no annotation; left out: {export.left_out_text() or 'nothing'}"
        )
    export.check_pixels()
    placed = PlacedObjects(tables, export, orientation)
    if save_objects:
        path = tables[0].path.with_name(OBJECTS_FILE)
        known = list(read_objects(path)) if path.exists() else []
        saved = list(dict.fromkeys([*known, *(item for found in placed.objects.values() for item in found)]))
    reports = write_relevance(tables, placed.objects, options, placed.sizes, placed.notes)
    if save_objects:
        write_objects(path, saved)
    return reports


def check_map_files(tables: Iterable[AskedTable], options: MapOptions) -> None:
    """Raise a ValueError if a map file exists and must not be replaced, or `options` are wrong."""
    if options.hops < 1 or min(options.grid) < 1:
        raise ValueError(f"hops and grid are positive numbers, not {options.hops} and {options.grid}")
    for table in tables:
        if table.map_file.exists() and not options.replace:
            raise ValueError(f"{table.map_file}: already exists; move it, or pass --replace to write it anew")


def write_relevance(
    tables: Sequence[AskedTable],
    objects: ObjectsOfPicture,
    options: MapOptions,
    sizes: Mapping[str, Size] | None = None,
    notes: Sequence[str] = (),
) -> list[MapReport]:
    """Write the maps of the questions that name the objects of their picture, and a page with twenty of them.

    Beside `train.csv` these are `train_relevance.npz` and `train_relevance.html`. All files are written, or none.

    Args:
        tables: see `read_tables`.
        objects: of each picture, in pixels of the upright picture.
        options: how maps are made.
        sizes: width and height of pictures that are known already, by their keys.
        notes: further lines of the report.

    Raises:
        ValueError: no question gets a map, or a picture cannot be read.
    """
    matcher = LabelMatcher((item.label for found in objects.values() for item in found), options.label_words)
    known = dict(sizes or {})
    chosen = [
        [(question, hops) for question in table.questions if (hops := _hops(question, objects, matcher, options))]
        for table in tables
    ]
    if not any(chosen):
        raise ValueError(_nothing_matched(tables, objects))
    count = min(options.hops, max(len(hops) for found in chosen for _, hops in found))
    reports: list[MapReport] = []
    stale: list[Path] = []
    with ExitStack() as files:
        for table, found in zip(tables, chosen, strict=True):
            report = _report(table, found, objects, count, notes)
            reports.append(report)
            if not found:
                if options.replace and table.map_file.exists():
                    stale.append(table.map_file)
                    report.notes.append(f"removed {table.map_file.name}: no question of this table has a map now")
                continue
            maps = files.enter_context(atomic_write(table.map_file))
            page = files.enter_context(atomic_write(table.map_file.with_suffix(".html")))
            examples = _write_maps(maps, found, known, options.grid, count)
            text = map_page(f"Relevance maps of {table.path.name}", report.lines(), examples)
            page.write_text(text, encoding="utf-8")
    for file in stale:
        file.unlink()
        file.with_suffix(".html").unlink(missing_ok=True)
    return reports


def _write_maps(
    path: Path,
    found: Sequence[tuple[AskedQuestion, list[HopObjects]]],
    sizes: dict[str, Size],
    grid: Grid,
    count: int,
) -> list[dict[str, str]]:
    """Write the map file, and return the examples of the page."""
    shown = frozenset(random.Random(0).sample(range(len(found)), min(EXAMPLES, len(found))))
    examples: list[dict[str, str]] = []

    def maps() -> Iterator[NDArray[np.float32]]:
        for index, (question, hops) in enumerate(track(found, "Drawing relevance maps")):
            if question.image_key not in sizes:
                sizes[question.image_key] = open_picture(question.image).size
            drawn = draw_hop_maps(hops, sizes[question.image_key], grid, count)
            if index in shown:
                named = "; ".join(f"hop {n}: {_described(hop)}" for n, hop in enumerate(hops, start=1))
                picture = draw_example(question.image, drawn)
                examples.append(
                    {"question": question.text, "place": question.place, "hops": named, "picture": picture}
                )
            yield drawn

    write_maps(path, maps(), len(found), (count, *grid), rows=[question.row for question, _ in found])
    return examples


def _described(hop: HopObjects) -> str:
    labels = Counter(item.label or "marked for the question" for item in hop.objects)
    marked = ", ".join(f"{number} x {label}" for label, number in labels.items()) or "not marked"
    return f"“{hop.words}” ({marked})" if hop.words else marked


def _hops(
    question: AskedQuestion, objects: ObjectsOfPicture, matcher: LabelMatcher, options: MapOptions
) -> list[HopObjects]:
    found = objects.get(question.image_key, ())
    if not found:
        return []
    column = options.objects_column
    if column is None or not (labels := _named_labels(question, column)):
        return objects_by_hop(question.text, question.question_id, found, matcher)
    shared = [item for item in found if item.question_id in (None, question.question_id)]
    mentions = [Mention(label, matcher.labels_of(label)) for label in labels]
    hops = [HopObjects(words, tuple(item for item in shared if item.label in fitting)) for words, fitting in mentions]
    return hops if any(hop.objects for hop in hops) else []


def _named_labels(question: AskedQuestion, column: str) -> list[str]:
    if column not in question.record:
        raise ValueError(f"{question.place}: has no column {column!r} for --objects-column")
    value = as_python(question.record[column])
    if is_empty(value):
        return []
    parts = value if isinstance(value, list) else str(value).replace(";", ",").split(",")
    return [str(part).strip() for part in parts if not is_empty(part)]


def _report(
    table: AskedTable,
    found: Sequence[tuple[AskedQuestion, list[HopObjects]]],
    objects: ObjectsOfPicture,
    count: int,
    notes: Sequence[str],
) -> MapReport:
    report = MapReport(table.path, len(table.questions), count, len(found), notes=list(notes))
    report.partial = sum(not all(hop.objects for hop in hops) for _, hops in found)
    serving: set[int] = set()
    for _, hops in found:
        report.words.update(dict.fromkeys(hop.words for hop in hops if hop.words and hop.objects).keys())
        serving.update(id(item) for hop in hops for item in hop.objects)
    shown = {question.image_key for question in table.questions}
    report.idle.update(
        item.label for key in shown & objects.keys() for item in objects[key] if id(item) not in serving
    )
    return report


def _read_source(
    source: str,
    annotations: str | Path | None,
    classes: str | Path | None,
    column: str,
    tables: Sequence[AskedTable],
) -> Export:
    if source == "columns":
        return read_box_column((question for table in tables for question in table.questions), column)
    if source == "objects":
        path = Path(annotations) if annotations is not None else tables[0].path.with_name(OBJECTS_FILE)
        return Export(
            [_as_annotation(item, f"{path} object {n}") for n, item in enumerate(read_objects(path), start=1)]
        )
    if annotations is None:
        raise ValueError(f"--from {source} needs --annotations, the file or folder of the export")
    path = Path(annotations)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder of annotations")
    if path.suffix.lower() == ".zip":
        raise ValueError(f"{path}: is a ZIP archive; unpack it and pass what is inside")
    if source == "masks":
        return read_masks(path, None if classes is None else Path(classes))
    return READERS[source](path)


def _as_annotation(item: MarkedObject, place: str) -> Annotation:
    return Annotation(
        place,
        item.image,
        item.label,
        fixed(item.region),
        upright=True,
        annotator=item.annotator,
        question_id=item.question_id,
        hop=item.hop,
    )


def _nothing_matched(tables: Sequence[AskedTable], objects: ObjectsOfPicture) -> str:
    labels = sorted({item.label for found in objects.values() for item in found if item.label})
    question = next(question for table in tables for question in table.questions if question.image_key in objects)
    return (
        f"no question names a label of an object in its picture. The labels are {', '.join(labels[:20])}; a question "
        f"is {question.text!r:.200}. Name labels in the words of your questions with --label-words"
    )
