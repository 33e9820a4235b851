"""The command to train: `qca train`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_results, say
from .options import split_overrides
from .preflight import check_recipes

if TYPE_CHECKING:
    from modeling_qca.training.fitting.recipe import Recipe


def train(
    context: typer.Context,
    recipes: Annotated[
        list[str], typer.Argument(help="A recipe, or several that are trained one after the other as stages.")
    ],
):
    """Train what RECIPE.yaml describes, after a short check of its data. The same command resumes a stopped run.

    `--key value` replaces a key of the recipe. The keys most used:

    --data, --data-options: the training data, and options of its format

    --model: a preset or a checkpoint; or --vision-encoder and --text-encoder

    --output-dir: folder of the run

    --attention-supervision: none, last_hop or every_hop

    --freeze: parameter groups that do not train, as a YAML list: vision, text, conditioning, hops, head

    --learning-rate, --num-train-epochs, --max-steps, --per-device-train-batch-size, --bf16, --seed

    --lora-rank: train adapters in the encoders

    All keys, with type, default and meaning: docs/recipes.md. They are the fields of a recipe, of the model's config
    and of transformers' TrainingArguments.
    """
    paths, overrides = split_overrides([*recipes, *context.args])
    if "output_dir" in overrides and len(paths) > 1:
        raise ValueError("--output-dir: each stage needs a folder of its own; set `output_dir` in the recipes")
    check_recipes(paths, overrides)
    from modeling_qca.training.fitting.training_run import train as run

    for recipe in _load_stages(paths, overrides):
        with stopped_on_request():
            results = run(recipe, show=say)
    print_results(results)
    say(f"Checkpoint and results.json: {recipe.output_dir}")


def _load_stages(paths: list[str], overrides: dict[str, str]) -> "list[Recipe]":
    """The recipes; each stage after the first starts from the checkpoint of the stage before."""
    from modeling_qca.training.fitting.recipe import load_recipe

    if not paths:
        raise ValueError("no recipe given; pass a file such as configuration/recipes/demo.yaml")
    stages: list[Recipe] = []
    for path in paths:
        values = dict(overrides)
        if stages:
            values |= {"model": str(stages[-1].output_dir), "vision_encoder": "null", "text_encoder": "null"}
        stages.append(load_recipe(path, values))
    return stages


@contextmanager
def stopped_on_request() -> Iterator[None]:
    """End the command with status 130 if training stops on request, and say which step was saved."""
    from modeling_qca.training.fitting.training_run import TrainingStoppedError

    try:
        yield
    except TrainingStoppedError as stopped:
        say(stopped)
        raise typer.Exit(130) from None
