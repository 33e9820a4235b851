"""`qca`: its commands in groups, and how an error ends."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .add_relevance import add_relevance
from .annotate import annotate
from .console import FIRST_PROCESS, report_error
from .explain import explain
from .measure import bench, bench_training, calibrate, compare, evaluate, faithfulness, results
from .options import Command, RecipeCommand, hyphenate
from .predict import predict
from .prepare_data import check, make_questions, make_views, vocab
from .serve import serve
from .share import export, push
from .train import train
from .try_model import ask, demo, launch

DEBUG = "QCA_DEBUG"
GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Try": {"demo": demo, "ask": ask, "app": launch},
    "Prepare data": {
        "check": check,
        "vocab": vocab,
        "add-relevance": add_relevance,
        "annotate": annotate,
        "make-questions": make_questions,
        "make-views": make_views,
    },
    "Train": {"train": train},
    "Predict": {"predict": predict},
    "Measure": {
        "evaluate": evaluate,
        "calibrate": calibrate,
        "compare": compare,
        "faithfulness": faithfulness,
        "results": results,
        "bench": bench,
        "bench-training": bench_training,
    },
    "Explain": {"explain": explain},
    "Share": {"push": push, "export": export, "serve": serve},
}
TAKES_RECIPE_KEYS = ("check", "train", "results", "bench-training")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": hyphenate},
)


@app.callback()
def qca(
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks of errors, as {DEBUG}=1 does.")] = False,
) -> None:
    """Query-conditioned visual attention: train a model, ask it about an image, and see where it looked."""
    if debug:
        os.environ[DEBUG] = "1"


for group, commands in GROUPS.items():
    for name, function in commands.items():
        kind = RecipeCommand if name in TAKES_RECIPE_KEYS else Command
        app.command(name, cls=kind, rich_help_panel=group)(function)


def main() -> None:
    """Run a command. An error that the user can mend ends in one line and a non-zero exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if FIRST_PROCESS else logging.ERROR)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0") or not _is_expected(error):
            raise
        report_error(error)
        sys.exit(1)


def _is_expected(error: Exception) -> bool:
    if isinstance(error, (ValueError, OSError, FloatingPointError, ImportError, RuntimeError)):
        return True
    from huggingface_hub.errors import StrictDataclassError  # a wrong field of a config

    return isinstance(error, StrictDataclassError)
