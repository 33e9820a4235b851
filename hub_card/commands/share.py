"""Commands to share a model: `qca push`, `qca export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.filesize import decimal

from .console import say, say_table
from .options import Checkpoint, DataOptions, parse_mapping
from .preflight import check_checkpoint, check_data


def push(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint or of a LoRA adapter.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; contact nobody.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name of this version, such as v1.")] = None,
    license: Annotated[str, typer.Option(help="License identifier of the Hub.")] = "apache-2.0",
    language: Annotated[str, typer.Option(help="Language of the questions, an ISO 639 code.")] = "en",
    base_model: Annotated[list[str] | None, typer.Option(help="Hub id of a base model; may be repeated.")] = None,
    with_example_picture: Annotated[
        bool,
        typer.Option("--with-example-picture", help="Publish overlay.png: a photo of your data with its question."),
    ] = False,
) -> None:
    """Publish a checkpoint on the Hub: weights, code, processor, card and results, in one commit.

    Lists every file before anything is sent. Publishes pictures only on request.
    """
    check_checkpoint(checkpoint)
    from modeling_qca.hub_card.publish import push as publish

    publication = publish(
        checkpoint,
        repo_id,
        dry_run=dry_run,
        private=private,
        tag=tag,
        license=license,
        language=language,
        base_model=tuple(base_model or ()),
        with_example_picture=with_example_picture,
        before_upload=list_files,
    )
    if dry_run:
        list_files(publication.files)
    for name in publication.withheld:
        say(f"{name} is not published; `--with-example-picture` adds it.")
    say(publication.url or f"Nothing was uploaded. These are the files that {repo_id} would hold.")


def list_files(files: dict[str, int]) -> None:
    """Print the names and sizes of the files of a push."""
    rows = [[name, decimal(size)] for name, size in files.items()]
    say_table([*rows, [f"{len(files)} files", decimal(sum(files.values()))]], ["file", "size"])


def export(
    checkpoint: Checkpoint,
    output_dir: Annotated[Path, typer.Argument(help="Folder to make.")],
    format: Annotated[Literal["onnx", "torch"], typer.Option(help="torch is a `torch.export` program.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Encoders in 8 bits, heads in float (ONNX).")] = False,
    questions: Annotated[
        Path | None,
        typer.Option(help="Questions to build in, one a line or a table; images are then the only input."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data to count changed answers of --int8 on; by default the run's own.")
    ] = None,
    data_options: DataOptions = "{}",
):
    """Export a checkpoint to a program that runs without this package. ONNX needs the `export` extra."""
    check_checkpoint(checkpoint)
    if data is not None:
        if not int8:
            raise ValueError("--data is there to count the changed answers of --int8: add --int8, or leave --data out")
        check_data(data, data_options)
    from modeling_qca.hub_card.export import export_checkpoint
    from modeling_qca.training.evaluation.evaluation_data import evaluation_data
    from modeling_qca.training.prediction.sources import read_questions

    chosen = None
    if data is not None:
        chosen = evaluation_data(checkpoint, None, data, None, parse_mapping(data_options, "--data-options"))
    asked = None if questions is None else read_questions(questions)
    exported = export_checkpoint(checkpoint, output_dir, format, int8, asked, chosen)
    for name, size in exported.files.items():
        say(f"{name}  {decimal(size)}")
    for name, difference in exported.differences.items():
        say(f"{name}: within {difference:.1e} of the checkpoint's")
    if (changes := exported.changes) is not None:
        say(f"{changes.changed} of {changes.answers} answers differ from the checkpoint's ({changes.data})")
    elif int8:
        say("The answers were not compared, because the checkpoint remembers no data: pass --data")
    say(f"Exported: {output_dir}")
