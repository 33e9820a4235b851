"""The command to see where a model looked: `qca explain`."""

from pathlib import Path
from typing import Annotated

import typer

from .console import say
from .options import Checkpoint, Image, Method
from .preflight import check_checkpoint, check_image, check_questions


def explain(
    checkpoint: Checkpoint,
    image: Image,
    questions: Annotated[list[str], typer.Argument(help="One or several questions, each in quotes.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/explain"),
    method: Method = "relevance",
):
    """Draw the relevance map of every hop. Needs the `figures` extra."""
    check_checkpoint(checkpoint)
    check_image(image)
    check_questions(questions)
    from modeling_qca.training.evaluation.figures import explain_to_files

    for path in explain_to_files(checkpoint, image, questions, output_dir, method):
        say(path)
