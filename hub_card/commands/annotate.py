"""The command to mark and correct data: `qca annotate`."""

import getpass
from pathlib import Path
from typing import Annotated

import typer

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
    check_data(data, data_options)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    from modeling_qca.hub_card.annotation import annotation_folder, annotation_page, launch_annotation

    folder = output_dir or annotation_folder(data)
    options = parse_mapping(data_options, "--data-options")
    page = annotation_page(data, options, checkpoint, annotator or getpass.getuser(), folder)
    say(f"Marked data: {folder}")
    say(f"Train with it: {page.command}")
    launch_annotation(page.build(), server_port=port)
