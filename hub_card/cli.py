"""`qca`, with the commands that share what the others made."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.filesize import decimal

from modeling_qca.training.cli import app, console, main

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


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to make.")],
    format: Annotated[Literal["onnx", "torch"], typer.Option(help="torch is a `torch.export` program.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Encoders in 8 bits, heads in float (ONNX).")] = False,
):
    """Write a program that answers without this code (ONNX needs the `export` extra)."""
    from .export import export_checkpoint

    exported = export_checkpoint(checkpoint, output_dir, format, int8)
    for name, size in exported.files.items():
        console.print(f"{name}  {decimal(size)}", highlight=False)
    for name, difference in exported.differences.items():
        console.print(f"{name}: within {difference:.1e} of the checkpoint's", highlight=False)
    console.print(f"Exported: {output_dir}", highlight=False)


__all__ = ["main"]
