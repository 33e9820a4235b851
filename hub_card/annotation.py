"""`qca annotate`: from a data set and a checkpoint to the page on which its questions are marked."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from modeling_qca.training.data.formats import checked_options
from modeling_qca.training.data.images import image_key
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.evaluation.confidence import question_confidence
from modeling_qca.training.fitting.continued_recipe import (
    HOPS,
    group_columns,
    held_out_rows,
    run_options,
    write_continued_recipe,
)
from modeling_qca.training.supervision.annotation_folder import AnnotationFolder
from modeling_qca.training.supervision.annotations.pictures import PictureNames
from modeling_qca.training.supervision.marked_objects import OBJECTS_FILE, MarkedObject, read_objects

from .annotation_page import SHORTCUTS, AnnotationPage
from .space.app import THEME, gr

logger = logging.getLogger(__name__)
RECIPE = "train.yaml"
CONFIDENCE = "confidence.json"


def annotation_page(
    data: str, options: Mapping[str, Any], checkpoint: str | None, annotator: str, folder: Path
) -> AnnotationPage:
    """
    Args:
        data, options: of `load_rows`; its train split is annotated. Without options they are those of the checkpoint,
            if it was trained on `data`.
        checkpoint: folder or Hub id; its least certain questions come first. Without one, the order is that of the
            data. Rows that the run holds out for validation come last.
        annotator: who works on the page.
        folder: see `supervision.annotation_folder`. It also gets `train.yaml`, the recipe that goes on from the
            checkpoint.

    Raises:
        ValueError: see `load_rows`, `AnnotationFolder` and `load_pipeline`.
    """
    if checkpoint is not None and not options:
        options = run_options(checkpoint, data)
    further = () if checkpoint is None else group_columns(checkpoint, folder, data)
    columns = {"further_columns": list(further)} if further else {}
    stored = datasets.Image(decode=False)
    rows = load_rows(data, split="train", **checked_options({**options, **columns})).cast_column("image", stored)
    ask: Any = None if checkpoint is None else load_pipeline(checkpoint)
    hops = HOPS if ask is None else ask.model.config.num_attention_layers or HOPS
    annotations = AnnotationFolder(folder, rows, hops, _given_objects(Path(data), rows))
    order = list(range(len(rows)))
    command = f"qca train RECIPE.yaml --data {folder} --attention-supervision every_hop"
    if checkpoint is not None:
        confidence = question_confidence(checkpoint, rows, folder / CONFIDENCE)
        held_out = held_out_rows(checkpoint, folder, data, rows)
        order.sort(key=lambda row: (row in held_out, confidence[row]))
        write_continued_recipe(folder / RECIPE, checkpoint, folder, data, options)
        command = f"qca train {folder / RECIPE}"
    return AnnotationPage(annotations, annotator, order, ask, command)


def launch_annotation(page: gr.Blocks, **options: Any) -> Any:
    """Serve `AnnotationPage.build()`. The `options` are those of `gradio.Blocks.launch`."""
    return page.launch(theme=THEME, head=SHORTCUTS, **options)


def annotation_folder(data: str) -> Path:
    """The folder of annotations beside the data; for a data set of the Hub in the current folder."""
    path = Path(data)
    if not path.exists():
        return Path("annotated") / path.name
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(f"{path.stem}_annotated")


def _given_objects(data: Path, rows: datasets.Dataset) -> Iterator[MarkedObject]:
    """The objects beside the table of `data`, by image id. A warning counts those of no picture of the table."""
    file = (data if data.is_dir() else data.parent) / OBJECTS_FILE
    if not file.exists():
        return
    keys = [image_key(image) for image in rows.select_columns(["image"])["image"]]
    image_ids = dict(zip(keys, rows["image_id"], strict=True))
    objects, unknown = list(read_objects(file)), 0
    keys_of = PictureNames(image_ids).find(dict.fromkeys(item.image for item in objects))
    for item in objects:
        if (key := keys_of.get(item.image)) is None:
            unknown += 1
        else:
            yield replace(item, image=image_ids[key])
    if unknown:
        logger.warning("%s: %d objects are of pictures that the table does not have", file, unknown)
