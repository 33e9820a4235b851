"""`qca`: the command line. Each command is a few lines around a function of its own file."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modeling_qca.training.data.answers import AnswerRule

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Query-conditioned visual attention: train, ask, and see where it looked.",
)
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"  # of those that `accelerate launch` starts
console = Console(quiet=not FIRST_PROCESS)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def main() -> None:
    """Run a command; what a user can mend ends in one line and a non-zero exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if FIRST_PROCESS else logging.ERROR)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ImportError, StrictDataclassError) as error:
        message = f"[bold red]error:[/] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, markup=True, soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the data, the checkpoint and the pictures go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Decides the scenes and the training.")] = 0,
):
    """Generate scenes, train qca-tiny on them from scratch, and show where it looks. About two minutes."""
    from modeling_qca.training.experiments.demo import run_demo

    with stopped_on_request():
        results = run_demo(output_dir, seed)
    print_results(results)
    console.print(f"Checkpoint, pictures and report.md: {output_dir}", highlight=False)


@app.command(context_settings=PASS_ON)
def train(
    context: typer.Context,
    recipes: Annotated[list[str], typer.Argument(help="A recipe, or several stages one after the other.")],
):
    """Train what RECIPE.yaml describes; `--key value` replaces single keys. The same command resumes a stopped run."""
    from modeling_qca.training.fitting.recipe import Recipe, load_recipe
    from modeling_qca.training.fitting.training_run import train as run

    paths, overrides = split_overrides([*recipes, *context.args])
    if "output_dir" in overrides and len(paths) > 1:
        raise ValueError("--output_dir: several stages need a folder each; set `output_dir` in their recipes")
    stages: list[Recipe] = []
    for path in paths:
        values = dict(overrides)
        if stages:
            values |= {"model": str(stages[-1].output_dir), "vision_encoder": "null", "text_encoder": "null"}
        stages.append(load_recipe(path, values))
    for recipe in stages:
        with stopped_on_request():
            results = run(recipe)
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
    from modeling_qca.training.evaluation.ask import answer_questions

    for question, answers, picture in answer_questions(checkpoint, image, questions, top_k, overlay):
        console.print(question, style="italic", highlight=False)
        table = Table(box=None)
        table.add_column("answer")
        table.add_column("probability", justify="right")
        for answer in answers:
            table.add_row(answer["answer"], f"{answer['score']:.3f}")
        console.print(table)
        if picture is not None:
            console.print(f"looked: {picture}", highlight=False)


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    data: Annotated[str, typer.Argument(help="A folder, a file or a Hub data set, as in a recipe.")],
    output_dir: Annotated[Path, typer.Option(help="Gets results.json and questions.parquet.")] = Path("runs/evaluate"),
    split: Annotated[str, typer.Option(help="Split of the data.")] = "validation",
    options: Annotated[str, typer.Option(help="Options of the data as YAML: `{format: vqa_v2, ...}`.")] = "{}",
    report: Annotated[Path | None, typer.Option(help="Write a page with examples here.")] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffled-question control.")] = 0,
    metrics: Annotated[
        list[str] | None, typer.Option(help="vqa_accuracy or wups, beside accuracy; repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 128,
):
    """Measure a checkpoint on a data set."""
    from modeling_qca.training.evaluation.evaluation import evaluate_checkpoint

    chosen = _mapping(options, "--options")
    results = evaluate_checkpoint(checkpoint, data, split, chosen, output_dir, seed, report, metrics or (), batch_size)
    print_results(results)
    console.print(f"results.json and questions.parquet: {output_dir}", highlight=False)


@app.command()
def explain(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    image: Annotated[str, typer.Argument(help="A file or a URL.")],
    questions: Annotated[list[str], typer.Argument(help="One question or several.")],
    output_dir: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("runs/explain"),
    method: Annotated[str, typer.Option(help="relevance, rollout or gradient.")] = "relevance",
):
    """Draw where a checkpoint looks, hop by hop."""
    from modeling_qca.training.evaluation.figures import explain_to_files

    for path in explain_to_files(checkpoint, image, questions, output_dir, method):
        console.print(str(path), highlight=False)


@app.command()
def faithfulness(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    data: Annotated[str, typer.Argument(help="A folder, a file or a Hub data set, as in a recipe.")],
    output_dir: Annotated[Path, typer.Option(help="Gets the numbers and the figure.")] = Path("runs/faithfulness"),
    split: Annotated[str, typer.Option(help="Split of the data.")] = "validation",
    options: Annotated[str, typer.Option(help="Options of the data as YAML.")] = "{}",
    method: Annotated[str, typer.Option(help="relevance, rollout or gradient.")] = "relevance",
    rows: Annotated[int, typer.Option(help="At most this many questions.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the random order patches are compared with.")] = 0,
):
    """Take patches away in order of relevance, and put them back: does the answer hang on them?"""
    from modeling_qca.training.data.rows import checked_options, load_rows
    from modeling_qca.training.evaluation import figures  # noqa: F401  what is missing for them is better said before the rows are read
    from modeling_qca.training.evaluation.checkpoint import load_pipeline
    from modeling_qca.training.evaluation.faithfulness import measure_faithfulness

    pipeline = load_pipeline(checkpoint)
    available = load_rows(data, split=split, **checked_options(_mapping(options, "--options")))
    results = measure_faithfulness(pipeline.model, pipeline.processor, available, output_dir, rows, method, seed=seed)
    for source, curves in results["auc"].items():
        console.print(source, curves, highlight=False)


@app.command()
def vocab(
    data: Annotated[str, typer.Argument(help="A folder, a file or a Hub data set, as in a recipe.")],
    config: Annotated[Path, typer.Argument(help="Folder whose config.json gets the answers.")],
    minimum_count: Annotated[int | None, typer.Option(help="Keep answers of at least this many questions.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many answers.")] = None,
    options: Annotated[str, typer.Option(help="Options of the data as YAML.")] = "{}",
    rule: Annotated[AnswerRule, typer.Option(help="set: several answers belong together.")] = "consensus",
):
    """Build the list of answers, store it in a config, and say how far it reaches on train and validation."""
    from modeling_qca.training.data.vocabulary import store_vocabulary

    reach = store_vocabulary(data, config, minimum_count, top_k, _mapping(options, "--options"), rule)
    table = Table(box=None)
    for column in ("split", "rows", "coverage", "oracle ceiling"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, values in reach.items():
        table.add_row(split, str(values["rows"]), f"{values['coverage']:.3f}", f"{values['oracle_ceiling']:.3f}")
    console.print(table)


@app.command()
def make_questions(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[Path, typer.Argument(help="Folder of class label PNGs of the same names.")],
    classes: Annotated[Path, typer.Argument(help="Class names: text, JSON {number: name} or COCO-panoptic JSON.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    questions_per_kind: Annotated[int, typer.Option(help="Of a kind and answer about an image, at most.")] = 16,
    like: Annotated[Path | None, typer.Option(help="CSV whose questions alone are asked, of other images.")] = None,
    group_by: Annotated[str, typer.Option(help="Keeps images together where balance is measured.")] = "image_id",
    seed: Annotated[int, typer.Option(help="Decides which questions are kept.")] = 0,
):
    """Turn segmented images into balanced spatial questions with step-by-step relevance maps."""
    from modeling_qca.training.supervision.segmentation_questions import make_questions as run

    summary = run(
        images,
        labels,
        classes,
        output,
        questions_per_kind=questions_per_kind,
        like=like,
        group_by=group_by,
        seed=seed,
    )
    console.print_json(data=summary)


@app.command()
def make_views(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[Path, typer.Argument(help="Folder of label PNGs of the same names.")],
    output: Annotated[Path, typer.Argument(help="Folder to make, with images/ and labels/.")],
    count: Annotated[int, typer.Option(help="Views of each picture, besides itself.")] = 8,
    seed: Annotated[int, typer.Option(help="Decides every view.")] = 0,
):
    """Crop, mirror and recolor segmented images, label maps alike: more pictures to make questions from."""
    from modeling_qca.training.supervision.views import make_views as run

    console.print(f"{run(images, labels, output, count, seed)} pictures: {output}", highlight=False)


@app.command()
def bench(
    output_dir: Annotated[Path, typer.Option(help="Gets the measurements, the table and the plot.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[bool, typer.Option(help="Small models, a minute or two: to see that it runs.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each thing is timed.")] = 11,
    checkpoint: Annotated[str | None, typer.Option(help="Trained: are its answers the same in bfloat16?")] = None,
    data: Annotated[str | None, typer.Option(help="Data to ask it about, as in a recipe.")] = None,
    options: Annotated[str, typer.Option(help="Options of the data as YAML.")] = "{}",
):
    """Measure speed and memory beside ViLT, BLIP and the source document's model, interleaved."""
    import datasets

    from modeling_qca.training.benchmark.speed import run_benchmark
    from modeling_qca.training.data.rows import checked_options, load_rows

    if (checkpoint is None) != (data is None):
        raise ValueError("--checkpoint and --data go together")
    trained = None
    if checkpoint is not None:
        rows = load_rows(data, split="validation", **checked_options(_mapping(options, "--options")))
        trained = checkpoint, rows.cast_column("image", datasets.Image(decode=False))
    run_benchmark(output_dir, quick=quick, rounds=rounds, trained=trained)
    console.print(f"Results: {output_dir}", highlight=False)


@app.command(context_settings=PASS_ON)
def bench_training(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe with frozen encoders, on the data to measure.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("runs/bench/training_speed.json"),
):
    """Measure what cached features and questions grouped by image save of an epoch; `--key value` as in `train`."""
    from modeling_qca.training.benchmark.training_speed import measure_training
    from modeling_qca.training.fitting.recipe import load_recipe

    paths, overrides = split_overrides(context.args)
    if paths:
        raise ValueError(f"{paths[0]}: one recipe at a time")
    results = measure_training(load_recipe(recipe, overrides), output)
    for name, measured in results["training_speed"].items():
        console.print(f"{name.replace('_', ' ')}: {measured['speedup']['median']:.1f} times faster", highlight=False)
    console.print(f"Results: {output}", highlight=False)


def print_results(results: dict[str, Any]) -> None:
    """Accuracy beside its baselines, a row for each question type; other metrics; attention beside its controls."""
    from modeling_qca.training.files.run_files import ATTENTION_SOURCES, format_value

    kinds = {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}
    answered = {**results["baselines"], "this model": results["metrics"] | kinds}
    accuracy = Table(title="Accuracy", title_justify="left", box=None)
    for column in ("", *answered):
        accuracy.add_column(column.replace("_", " "), justify="right" if column else "left")
    for kind in ("accuracy", *sorted(kinds)):
        cells = (values.get(kind) for values in answered.values())
        title = "all" if kind == "accuracy" else escape(kind)
        accuracy.add_row(title, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    console.print(accuracy)
    for name, value in results["metrics"].items():
        if name != "accuracy":
            console.print(f"{name.replace('_', ' ')}: {format_value(value)}", highlight=False)
    if results["attention"]:
        attention = Table(title="Attention of the last hop", title_justify="left", box=None)
        for column in ("", *ATTENTION_SOURCES):
            attention.add_column(column.replace("_", " "), justify="right" if column else "left")
        for measure, values in results["attention"].items():
            cells = (format_value(values[column]) if column in values else "" for column in ATTENTION_SOURCES)
            attention.add_row(measure, *cells)
        console.print(attention)


@contextmanager
def stopped_on_request() -> Iterator[None]:
    """Training that stops on request ends the command as Ctrl-C does, with the step it saved."""
    from modeling_qca.training.fitting.training_run import TrainingStoppedError

    try:
        yield
    except TrainingStoppedError as stopped:
        console.print(str(stopped))
        raise typer.Exit(130) from None


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
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


def _mapping(text: str, name: str) -> dict[str, Any]:
    from modeling_qca.training.files.safe_yaml import parse_yaml

    value = parse_yaml(text, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a YAML mapping such as {{format: vqa_v2}}, got {text!r}")
    return value
