"""`qca`, with the commands that make cards, and those that share what the others made."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from qca_cli.application import PASS_ON, app, console, main, split_overrides, stopped_on_request
from qca_cli.push import push
from rich.filesize import decimal

app.command()(push)


@app.command(context_settings=PASS_ON)
def results(
    context: typer.Context,
    table: Annotated[Path, typer.Argument(help="A file of rows, such as configuration/recipes/results/rooms.yaml.")],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output_dir",
            "--output-dir",
            help="Gets results.json, .md and .png, and a folder with a card for each row.",
        ),
    ] = Path("runs/results"),
    seeds: Annotated[str | None, typer.Option(help="Only these of the table's seeds, as in `0,2`.")] = None,
):
    """Train every row of TABLE.yaml from every seed; `--key value` replaces a key of all rows. Resumes. Needs the
    `figures` extra."""
    from modeling_qca.hub_card.row_card import write_row_cards
    from modeling_qca.training.experiments.results_table import load_table, run_table

    paths, overrides = split_overrides(context.args)
    if paths:
        raise ValueError(f"{paths[0]}: one table at a time")
    described = load_table(table, overrides)
    folder = output_dir / described.name
    with stopped_on_request():
        chosen = None if seeds is None else _seeds(seeds)
        run_table(described, folder, chosen, lambda summary: write_row_cards(described, summary, folder))
    console.print(f"Results: {folder}", highlight=False)


@app.command("app")
def launch(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    port: Annotated[int, typer.Option(help="Of the page, on this machine.")] = 7860,
):
    """Open the demo page: an image, questions, answers, and where the model looked (needs the `app` extra)."""
    from modeling_qca.hub_card.space.app import launch_app

    launch_app(checkpoint, server_port=port)


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to make.")],
    format: Annotated[Literal["onnx", "torch"], typer.Option(help="torch is a `torch.export` program.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Encoders in 8 bits, heads in float (ONNX).")] = False,
):
    """Write a program that answers without this code (ONNX needs the `export` extra)."""
    from modeling_qca.hub_card.export import export_checkpoint

    exported = export_checkpoint(checkpoint, output_dir, format, int8)
    for name, size in exported.files.items():
        console.print(f"{name}  {decimal(size)}", highlight=False)
    for name, difference in exported.differences.items():
        console.print(f"{name}: within {difference:.1e} of the checkpoint's", highlight=False)
    console.print(f"Exported: {output_dir}", highlight=False)


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds: numbers with commas between them, as in `0,2`, not {text!r}") from error


__all__ = ["main"]
