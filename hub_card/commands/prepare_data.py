"""Commands to prepare data: `qca check`, `qca vocab`, `qca make-questions`, `qca make-views`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import console, say, say_table
from .options import Data, DataOptions, one_recipe, parse_mapping
from .preflight import check_data, check_data_keys, check_recipes

RECIPE_SUFFIXES = (".yaml", ".yml")


def check(
    context: typer.Context,
    data: Annotated[
        list[str], typer.Argument(help="A folder, a file or a Hub data set as in a recipe; or a recipe (.yaml).")
    ],
):
    """Report what is in a data set and what is wrong with it. Exit status 1 if there is a problem.

    A problem makes training fail or its results wrong, such as an image that cannot be read, or one that is in both
    train and validation.

    `--key value` sets a key of a recipe:

    --data-options, --format, --on-bad-image: how the data is read

    --validation-ratio, --group-by, --data-seed, --validation-data: which rows are validation rows

    --vocabulary, --answer-rule, --normalize-answers: which answers the model knows, and how they score

    --model, or --vision-encoder and --text-encoder; --image-size, --per-device-train-batch-size: for the estimate
    """
    path, overrides = one_recipe([*data, *context.args])
    is_recipe = Path(path).suffix in RECIPE_SUFFIXES
    if is_recipe:
        check_recipes([path], overrides)
    else:
        check_data_keys(path, overrides)
    from modeling_qca.training.fitting.data_check import check_recipe, data_recipe, estimate_lines
    from modeling_qca.training.fitting.recipe import load_recipe

    recipe = load_recipe(path, overrides) if is_recipe else data_recipe(path, overrides)
    report, splits = check_recipe(recipe)
    say_table(report.table(), ["", "train", "validation"])
    try:
        lines = estimate_lines(recipe, splits)
    except OSError as error:
        lines = [f"No estimate, the model is not available: {error}"]
    for line in (*lines, *(f"Note: {note}" for note in report.notes()), *report.summary()):
        say(line)
    if report.problems():
        raise typer.Exit(1)


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
    image_table: Annotated[
        Path | None, typer.Option(help="Table with a row for each image; its questions get the other columns.")
    ] = None,
    group_by: Annotated[
        str, typer.Option(help="Images that stay together in the balance check: `image_id // 12`, or a column.")
    ] = "image_id",
    seed: Annotated[int, typer.Option(help="Seed of the choice of questions.")] = 0,
):
    """Turn segmented images into balanced spatial questions with a relevance map for each hop."""
    for path in (images, labels, classes, *([image_table] if image_table else [])):
        check_data(str(path))
    from modeling_qca.training.supervision.segmentation_questions import make_questions as run

    summary = run(
        images,
        labels,
        classes,
        output,
        questions_per_kind=questions_per_kind,
        like=like,
        image_table=image_table,
        group_by=group_by,
        seed=seed,
    )
    console.print_json(data=summary)


def make_views(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[Path, typer.Argument(help="Folder of label PNGs with the names of the images.")],
    output: Annotated[Path, typer.Argument(help="Folder to make, with images/ and labels/.")],
    count: Annotated[int, typer.Option(help="Number of views of each image, besides the image itself.")] = 8,
    image_table: Annotated[
        Path | None, typer.Option(help="Table with a row for each image; images.csv then has a row for each view.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the views.")] = 0,
):
    """Crop, mirror and recolor segmented images together with their label maps."""
    for path in (images, labels, *([image_table] if image_table else [])):
        check_data(str(path))
    from modeling_qca.training.supervision.views import make_views as run

    say(f"{run(images, labels, output, count, seed, image_table)} images: {output}")
