"""`qca add-relevance`: relevance maps beside a table, from annotations."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import say
from .options import Data, DataOptions, parse_mapping
from .preflight import check_data

Source = Literal["coco", "voc", "yolo", "label_studio", "cvat", "masks", "csv", "columns", "objects", "detector"]


def add_relevance(
    data: Data,
    source: Annotated[Source, typer.Option("--from", help="What the annotations are; see docs/maps.md.")],
    annotations: Annotated[Path | None, typer.Option(help="File or folder of the annotations.")] = None,
    data_options: DataOptions = "{}",
    split: Annotated[
        list[str], typer.Option(help="Which tables get maps; repeat it for several. A missing one is left out.")
    ] = ["train", "validation"],  # noqa: B006 - typer copies it
    hops: Annotated[int, typer.Option(help="Number of maps of a question, at most.")] = 2,
    label_words: Annotated[
        str, typer.Option(help="Words for a label, as YAML: `{couch: [couch, sofa], picture: []}`; [] leaves it out.")
    ] = "{}",
    objects_column: Annotated[
        str | None, typer.Option(help="Column with the labels of each question, in the order of the hops.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="masks: names of the class numbers. Without it, a mask is of one question.")
    ] = None,
    column: Annotated[str, typer.Option(help="columns: the column of the boxes.")] = "boxes",
    orientation: Annotated[
        Literal["upright", "stored"] | None,
        typer.Option(help="Whether coordinates are of photos that EXIF turned, or as stored; by default found out."),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="detector: folder or Hub id of a model of zero-shot object detection.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="detector: lowest score of a detection.")] = 0.2,
    save_objects: Annotated[bool, typer.Option(help="Add the objects to objects.jsonl beside the table.")] = False,
    replace: Annotated[bool, typer.Option(help="Replace map files that exist.")] = False,
):
    """Write relevance maps beside a table, from boxes, polygons and masks that somebody marked.

    An object serves every question about its picture that names its label. The order in which a question names
    objects is the order of the hops.
    """
    check_data(str(data), data_options)
    words = parse_mapping(label_words, "--label-words")
    for label, names in words.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"--label-words: {label} needs a list of words, got {names!r}")
    from modeling_qca.training.supervision.add_relevance import MapOptions
    from modeling_qca.training.supervision.add_relevance import add_relevance as run

    reports = run(
        data,
        source,
        annotations,
        options=MapOptions(hops=hops, label_words=words, objects_column=objects_column, replace=replace),
        data_options=parse_mapping(data_options, "--data-options"),
        splits=split,
        classes=classes,
        column=column,
        orientation=orientation,
        detector=detector,
        threshold=threshold,
        save_objects=save_objects,
    )
    for report in reports:
        say(f"{report.table}:")
        for line in report.lines():
            say(f"  {line}")
        if report.mapped:
            say(f"  maps: {report.map_file}")
            say(f"  twenty of them as pictures: {report.page}")
