"""The command to mark and correct data: `qca annotate`."""

import getpass
from pathlib import Path
from typing import Annotated

import typer
import yaml

from .console import say
from .options import Data, DataOptions, parse_mapping
from .preflight import check_checkpoint, check_data


def annotate(
    data: Data,
    checkpoint: Annotated[
        str | None, typer.Option(help="A folder or a Hub id; the questions it is least sure of come first.")
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(help="Your name; by default your login. Several annotators may share a folder.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the marked data; by default DATA_annotated.")
    ] = None,
    data_options: DataOptions = "{}",
    port: Annotated[int, typer.Option(help="Port of the page on this machine.")] = 7860,
):
    """Open a page to mark where to look and to correct answers. Needs the extras `app` and `maps`.

    Each save writes a table with its relevance maps to the output folder. The same command goes on where it stopped.
    """
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    from modeling_qca.hub_card.annotation import annotation_folder, annotation_page, launch_annotation
    from modeling_qca.training.fitting.continued_recipe import keep_options, known_options

    folder = output_dir or annotation_folder(data)
    given = parse_mapping(data_options, "--data-options")
    options = known_options(checkpoint, folder, data, given)
    check_data(data, yaml.safe_dump(options))
    page = annotation_page(data, options, checkpoint, annotator or getpass.getuser(), folder)
    if checkpoint is None:  # `write_continued_recipe` keeps those of a checkpoint
        keep_options(folder, data, options)
    say(f"Marked data: {folder}")
    say(f"Train with it: {page.command}")
    launch_annotation(page.build(), server_port=port)
