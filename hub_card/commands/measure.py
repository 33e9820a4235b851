"""Commands to measure, from `qca evaluate` to `qca bench-training`."""

from pathlib import Path
from typing import Annotated

import typer

from .confidence_tables import print_calibration, print_comparison
from .console import print_results, say
from .options import (
    BatchSize,
    Checkpoint,
    Coverage,
    Data,
    DataOptions,
    Method,
    Split,
    Threshold,
    one_recipe,
    parse_mapping,
)
from .preflight import check_abstention, check_checkpoint, check_data, check_recipes, check_table
from .train import stopped_on_request


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        str | None, typer.Argument(help="A folder, a file or a Hub data set; by default the run's own data and split.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json and questions.parquet.", show_default="runs/evaluate/CHECKPOINT"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data; of DATA, validation by default.")] = None,
    data_options: DataOptions = "{}",
    report: Annotated[Path | None, typer.Option(help="HTML page to write, with examples.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffled-question control.")] = 0,
    metrics: Annotated[
        list[str] | None, typer.Option(help="vqa_accuracy or wups, beside accuracy; may be repeated.")
    ] = None,
    batch_size: BatchSize = 128,
    threshold: Threshold = None,
    coverage: Coverage = None,
):
    """Measure a checkpoint on a data set."""
    check_checkpoint(checkpoint)
    check_abstention(threshold, coverage)
    if data is not None:
        check_data(data, data_options)
    folder = output_dir or Path("runs/evaluate") / _run_name(checkpoint)
    from modeling_qca.training.evaluation.evaluation import evaluate_checkpoint

    options = parse_mapping(data_options, "--data-options")
    results = evaluate_checkpoint(
        *(checkpoint, data, split, options, folder, seed, report, metrics or (), batch_size, threshold, coverage)
    )
    print_results(results)
    say(f"results.json and questions.parquet: {folder}")


def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a run or of another checkpoint.")],
    data: Annotated[
        str | None, typer.Argument(help="Held-out data; by default the run's own validation rows.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data; of DATA, validation by default.")] = None,
    data_options: DataOptions = "{}",
    seed: Annotated[int, typer.Option(help="Seed of the cut into rows to fit on and rows to measure on.")] = 0,
    batch_size: BatchSize = 128,
):
    """Make probabilities fit: a temperature from held-out rows, stored with the checkpoint.

    Also stores the thresholds that `--coverage` needs, and what unfamiliar questions are told by.
    """
    check_checkpoint(checkpoint)
    if data is not None:
        check_data(data, data_options)
    from modeling_qca.training.evaluation.calibrate import calibrate_checkpoint

    options = parse_mapping(data_options, "--data-options")
    print_calibration(calibrate_checkpoint(checkpoint, data, split, options, seed, batch_size))
    say(f"calibration.json and the temperature in config.json: {checkpoint}")


def compare(
    first: Annotated[str, typer.Argument(help="A folder or a Hub id.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    data: Annotated[
        str | None, typer.Argument(help="A folder, a file or a Hub data set; by default the runs' own data and split.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for comparison.json and changed.csv.")] = Path(
        "runs/compare"
    ),
    split: Annotated[str | None, typer.Option(help="Split of the data; of DATA, validation by default.")] = None,
    data_options: DataOptions = "{}",
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    batch_size: BatchSize = 128,
):
    """Compare two checkpoints on the same questions: the difference with its interval, and what changed."""
    for checkpoint in (first, second):
        check_checkpoint(checkpoint)
    if data is not None:
        check_data(data, data_options)
    from modeling_qca.training.evaluation.compare import compare_checkpoints

    options = parse_mapping(data_options, "--data-options")
    print_comparison(compare_checkpoints(first, second, data, split, options, output_dir, seed, batch_size))
    say(f"comparison.json and changed.csv: {output_dir}")


def faithfulness(
    checkpoint: Checkpoint,
    data: Data,
    output_dir: Annotated[Path, typer.Option(help="Folder for the numbers and the figure.")] = Path(
        "runs/faithfulness"
    ),
    split: Split = "validation",
    data_options: DataOptions = "{}",
    method: Method = "relevance",
    rows: Annotated[int, typer.Option(help="Maximum number of questions.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random order that patches are compared with.")] = 0,
):
    """Measure how the answer changes when relevant patches are deleted or inserted. Needs the `figures` extra."""
    check_checkpoint(checkpoint)
    check_data(data, data_options)
    from modeling_qca.training.data.formats import checked_options
    from modeling_qca.training.data.rows import load_rows
    from modeling_qca.training.evaluation import figures  # noqa: F401  fails early if matplotlib is missing
    from modeling_qca.training.evaluation.checkpoint import load_pipeline
    from modeling_qca.training.evaluation.faithfulness import measure_faithfulness

    pipeline = load_pipeline(checkpoint)
    options = checked_options(parse_mapping(data_options, "--data-options"))
    available = load_rows(data, split=split, **options)
    results = measure_faithfulness(pipeline.model, pipeline.processor, available, output_dir, rows, method, seed=seed)
    for source, curves in results["auc"].items():
        say(f"{source} {curves}")


def results(
    context: typer.Context,
    table: Annotated[
        list[str], typer.Argument(help="A file of rows, such as configuration/recipes/results/rooms.yaml.")
    ],
    output_dir: Annotated[
        Path, typer.Option(help="Folder for results.json, .md and .png, and a folder with a card for each row.")
    ] = Path("runs/results"),
    seeds: Annotated[str | None, typer.Option(help="Only these of the table's seeds, as in `0,2`.")] = None,
):
    """Train every row of TABLE.yaml from every seed. Resumes a stopped run. Needs the `figures` extra.

    `--key value` replaces a key of the recipe in all rows.
    """
    path, overrides = one_recipe([*table, *context.args])
    chosen = None if seeds is None else _parse_seeds(seeds)
    check_table(path, overrides)
    from modeling_qca.hub_card.row_card import write_row_cards
    from modeling_qca.training.experiments.results_run import run_table
    from modeling_qca.training.experiments.results_table import load_table

    described = load_table(path, overrides)
    folder = output_dir / described.name
    with stopped_on_request():
        run_table(described, folder, chosen, lambda summary: write_row_cards(described, summary, folder))
    say(f"Results: {folder}")


def bench(
    output_dir: Annotated[Path, typer.Option(help="Folder for the measurements, the table and the plot.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[bool, typer.Option(help="Small models; takes a minute or two.")] = False,
    rounds: Annotated[int, typer.Option(help="Number of times each measurement is repeated.")] = 11,
    checkpoint: Annotated[
        str | None, typer.Option(help="Trained checkpoint whose answers are compared in float32 and bfloat16.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data with the questions for --checkpoint, as in a recipe.")] = None,
    data_options: DataOptions = "{}",
    cases: Annotated[
        str | None, typer.Option(help="Cases to measure: one_pair,prediction. A wrong name lists all.")
    ] = None,
):
    """Measure speed and memory beside ViLT, BLIP, SmolVLM and the reference model. Needs the `figures` extra."""
    if (checkpoint is None) != (data is None):
        raise ValueError("--checkpoint and --data are given together, or neither")
    if checkpoint is not None:
        check_checkpoint(checkpoint)
        check_data(data, data_options)
    import datasets

    from modeling_qca.training.benchmark.speed import run_benchmark
    from modeling_qca.training.data.formats import checked_options
    from modeling_qca.training.data.rows import load_rows

    trained = None
    if checkpoint is not None:
        options = checked_options(parse_mapping(data_options, "--data-options"))
        rows = load_rows(data, split="validation", **options)
        trained = checkpoint, rows.cast_column("image", datasets.Image(decode=False))
    chosen = None if cases is None else [name.strip() for name in cases.split(",")]
    run_benchmark(output_dir, quick=quick, rounds=rounds, cases=chosen, trained=trained)
    say(f"Results: {output_dir}")


def bench_training(
    context: typer.Context,
    recipe: Annotated[list[str], typer.Argument(help="A recipe with frozen encoders, on the data to measure.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("runs/bench/training_speed.json"),
):
    """Measure how much cached features and grouped questions speed up training.

    `--key value` replaces a key of the recipe.
    """
    path, overrides = one_recipe([*recipe, *context.args])
    check_recipes([path], overrides)
    from modeling_qca.training.benchmark.training_speed import measure_training
    from modeling_qca.training.fitting.recipe import load_recipe

    measured = measure_training(load_recipe(path, overrides), output)
    for name, values in measured["training_speed"].items():
        say(f"{name.replace('_', ' ')}: {values['speedup']['median']:.1f} times faster")
    say(f"Results: {output}")


def _run_name(checkpoint: str) -> str:
    """`runs/demo/checkpoint` -> `demo-checkpoint`, `owner/name` -> `owner-name`."""
    parts = [part for part in Path(checkpoint).parts if part not in ("/", ".", "..")]
    return "-".join(parts[-2:] if parts[:-1] != ["runs"] else parts[-1:]) or "checkpoint"


def _parse_seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds takes numbers with commas between them, as in `0,2`, got {text!r}") from error
