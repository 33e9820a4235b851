"""`qca push`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table


def push(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint or of a LoRA adapter.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Show what would go up; contact nobody.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name of this version, such as v1.")] = None,
    license: Annotated[str, typer.Option(help="Identifier of the Hub.")] = "apache-2.0",
    language: Annotated[str, typer.Option(help="Of the questions, an ISO 639 code.")] = "en",
    base_model: Annotated[list[str] | None, typer.Option("--base_model", help="Hub id; may be repeated.")] = None,
) -> None:
    """Publish a checkpoint on the Hub: weights, code, processor, card and results, in one commit."""
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
    )
    table = Table(box=None)
    table.add_column("file")
    table.add_column("size", justify="right")
    for name, size in publication.files.items():
        table.add_row(name, decimal(size))
    table.add_row(f"{len(publication.files)} files", decimal(sum(publication.files.values())), style="bold")
    console = Console()
    console.print(table)
    console.print(publication.url or f"Nothing was uploaded: this is what {repo_id} would hold.", highlight=False)
