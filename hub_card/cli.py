"""`qca`, with the commands that share what the others made."""

from typing import Annotated

import typer

from modeling_qca.training.cli import app, main

from .command import push

app.command()(push)


@app.command("app")
def launch(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    port: Annotated[int, typer.Option(help="Of the page, on this machine.")] = 7860,
):
    """Open the demo page: an image, questions, answers, and where the model looked (needs the `app` extra)."""
    from .space.app import launch_app

    launch_app(checkpoint, server_port=port)


__all__ = ["main"]
