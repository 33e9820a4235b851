"""`qca`: the command line. Each command is a few lines around a function of its own file."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Query-conditioned visual attention: train, ask, and see where it looked.",
)
console = Console()
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def main() -> None:
    """Run a command; what a user can mend ends in one line and a non-zero exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, markup=True, soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the data, the checkpoint and the pictures go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Decides the scenes and the training.")] = 0,
):
    """Generate scenes, train qca-tiny on them from scratch, and show where it looks. About two minutes."""
    from .demo import run_demo

    results = run_demo(output_dir, seed)
    print_results(results)
    console.print(f"Checkpoint, pictures and report.md: {output_dir}", highlight=False)


@app.command(context_settings=PASS_ON)
def train(
    context: typer.Context,
    recipes: Annotated[list[Path], typer.Argument(help="A recipe, or several stages one after the other.")],
):
    """Train what RECIPE.yaml describes; `--key value` replaces single keys. The same command resumes a stopped run."""
    from .recipe import load_recipe
    from .train import TrainingStoppedError
    from .train import train as run

    paths, overrides = _overrides([*map(str, recipes), *context.args])
    previous: Path | None = None
    for path in paths:
        values = dict(overrides)
        if previous is not None:
            values["model"] = str(previous)
        recipe = load_recipe(path, values)
        try:
            results = run(recipe)
        except TrainingStoppedError as stopped:
            console.print(str(stopped))
            raise typer.Exit(130) from None
        previous = recipe.output_dir
    print_results(results)
    console.print(f"Checkpoint and results.json: {recipe.output_dir}", highlight=False)


@app.command()
def ask(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    image: Annotated[str, typer.Argument(help="A file or a URL.")],
    questions: Annotated[list[str], typer.Argument(help="One question or several; the image is encoded once.")],
    top_k: Annotated[int, typer.Option(help="Answers to show.")] = 3,
    overlay: Annotated[
        Path | None, typer.Option(help="Picture of where it looked; numbered where there are several questions.")
    ] = None,
):
    """Answer questions about an image."""
    from .ask import answer_questions

    for result in answer_questions(checkpoint, image, questions, top_k, overlay):
        table = Table(title=result.question, title_justify="left", box=None)
        table.add_column("answer")
        table.add_column("probability", justify="right")
        for answer in result.answers:
            table.add_row(answer["answer"], f"{answer['score']:.3f}")
        console.print(table)
        if result.overlay is not None:
            console.print(f"looked: {result.overlay}", highlight=False)


def print_results(results: dict[str, Any]) -> None:
    """Accuracy beside its baselines, by question type, and attention beside its controls."""
    baselines = results["baselines"]
    accuracy = Table(title="Accuracy", title_justify="left", box=None)
    kinds = sorted(results["per_question_type"])
    for column in ("", "all", *kinds):
        accuracy.add_column(column, justify="right" if column else "left")
    measured = {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}
    for name, values in {**baselines, "this model": results["metrics"] | measured}.items():
        cells = [values["accuracy"], *(values.get(kind) for kind in kinds)]
        accuracy.add_row(name.replace("_", " "), *("" if cell is None else f"{cell:.3f}" for cell in cells))
    if "accuracy_shuffled_questions" in results["metrics"]:
        accuracy.add_row("shuffled questions", f"{results['metrics']['accuracy_shuffled_questions']:.3f}")
    console.print(accuracy)
    if results["attention"]:
        attention = Table(title="Attention of the last hop", title_justify="left", box=None)
        columns = ("model", "centre", "uniform", "shuffled_question")
        for column in ("", *columns):
            attention.add_column(column.replace("_", " "), justify="right" if column else "left")
        for measure, values in results["attention"].items():
            attention.add_row(measure, *(f"{values[column]:.3f}" for column in columns))
        console.print(attention)


def _overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split `a.yaml b.yaml --key value --other=value` into paths and overrides."""
    paths, overrides = [], {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            paths.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        value = value if equals else next(rest, "")
        if not value:
            raise ValueError(f"{argument}: a value is missing")
        overrides[key] = value
    return paths, overrides
