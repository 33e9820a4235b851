"""Commands to prepare data: `qca vocab`, `qca make-questions`, `qca make-views`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import console, say, say_table
from .options import Data, DataOptions, parse_mapping
from .preflight import check_data


def vocab(
    data: Data,
    config: Annotated[Path, typer.Argument(help="Folder whose config.json gets the answers.")],
    minimum_count: Annotated[int | None, typer.Option(help="Keep answers of at least this many questions.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many answers.")] = None,
    data_options: DataOptions = "{}",
    rule: Annotated[
        Literal["consensus", "set"],
        typer.Option(help="consensus: several people answered; set: all answers of a row belong together."),
    ] = "consensus",
):
    """Build the answer vocabulary, store it in a config, and report its coverage of train and validation."""
    check_data(data, data_options)
    from modeling_qca.training.data.vocabulary import store_vocabulary

    options = parse_mapping(data_options, "--data-options")
    reach = store_vocabulary(data, config, minimum_count, top_k, options, rule)
    rows = [
        [split, str(values["rows"]), f"{values['coverage']:.3f}", f"{values['oracle_ceiling']:.3f}"]
        for split, values in reach.items()
    ]
    say_table(rows, ["split", "rows", "coverage", "oracle ceiling"])


def make_questions(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[Path, typer.Argument(help="Folder of class label PNGs with the names of the images.")],
    classes: Annotated[Path, typer.Argument(help="Class names: text, JSON {number: name} or COCO-panoptic JSON.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    questions_per_kind: Annotated[
        int, typer.Option(help="Maximum number of questions of a kind and answer about an image.")
    ] = 16,
    like: Annotated[
        Path | None, typer.Option(help="CSV file; only questions that occur in it are asked, about other images.")
    ] = None,
    group_by: Annotated[str, typer.Option(help="Column or expression that groups images in the balance check.")] = (
        "image_id"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the choice of questions.")] = 0,
):
    """Turn segmented images into balanced spatial questions with a relevance map for each hop."""
    for path in (images, labels, classes):
        check_data(str(path))
    from modeling_qca.training.supervision.segmentation_questions import make_questions as run

    summary = run(
        images,
        labels,
        classes,
        output,
        questions_per_kind=questions_per_kind,
        like=like,
        group_by=group_by,
        seed=seed,
    )
    console.print_json(data=summary)


def make_views(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[Path, typer.Argument(help="Folder of label PNGs with the names of the images.")],
    output: Annotated[Path, typer.Argument(help="Folder to make, with images/ and labels/.")],
    count: Annotated[int, typer.Option(help="Number of views of each image, besides the image itself.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the views.")] = 0,
):
    """Crop, mirror and recolor segmented images together with their label maps."""
    for path in (images, labels):
        check_data(str(path))
    from modeling_qca.training.supervision.views import make_views as run

    say(f"{run(images, labels, output, count, seed)} images: {output}")
