"""What the commands print. Text of the user is printed as it is: brackets are no markup, `:x:` is no emoji."""

import os
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

FIRST_PROCESS = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` starts
ERROR_LENGTH = 600  # characters of a RuntimeError that are shown

console = Console(quiet=not FIRST_PROCESS, markup=False, emoji=False, highlight=False)


def say(text: object) -> None:
    """Print one line; a terminal wraps it, a file or pipe gets it whole."""
    console.print(str(text), soft_wrap=True)


def say_table(rows: list[list[str]], columns: list[str], title: str | None = None) -> None:
    """Print a table whose first column is text and whose other columns are numbers."""
    table = Table(title=title, title_justify="left", box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def report_error(error: Exception) -> None:
    """Print `error` on stderr. A RuntimeError of a library is shortened to one line."""
    message = str(error)
    if isinstance(error, RuntimeError):
        message = " ".join(message.split())
        message = message if len(message) <= ERROR_LENGTH else f"{message[:ERROR_LENGTH]}..."
        message += " (set QCA_DEBUG=1 to see the traceback)"
    line = Text.assemble(("error:", "bold red"), " ", message)
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


def print_results(results: dict[str, Any]) -> None:
    """Print accuracy beside its baselines with a row for each question type, other metrics, and attention quality."""
    from modeling_qca.training.files.run_files import ATTENTION_SOURCES, format_value

    by_type = {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}
    accuracies = {**results["baselines"], "this model": results["metrics"] | by_type}
    rows = []
    for kind in ("accuracy", *sorted(by_type)):
        values = (measured.get(kind) for measured in accuracies.values())
        rows.append(["all" if kind == "accuracy" else kind, *("" if v is None else f"{v:.3f}" for v in values)])
    say_table(rows, ["", *(name.replace("_", " ") for name in accuracies)], "Accuracy")
    for name, value in results["metrics"].items():
        if name != "accuracy":
            say(f"{name.replace('_', ' ')}: {format_value(value)}")
    if results["attention"]:
        rows = [
            [measure, *(format_value(values[source]) if source in values else "" for source in ATTENTION_SOURCES)]
            for measure, values in results["attention"].items()
        ]
        say_table(rows, ["", *(source.replace("_", " ") for source in ATTENTION_SOURCES)], "Attention of the last hop")
    print_confidence(results)


def print_confidence(results: dict[str, Any]) -> None:
    """Print the sections `calibration` and `selective` of an evaluation."""
    if "calibration" in results:
        calibration = results["calibration"]
        error = interval(calibration["ece"], calibration["ece_interval"])
        say(f"expected calibration error: {error} at temperature {calibration['temperature']:.2f}")
    if "selective" in results:
        for level in results["selective"]["at"]:
            say(f"accuracy at {level['coverage']:.0%} coverage: {level['accuracy']:.3f}")
        if (chosen := results["selective"].get("chosen")) is not None:
            accuracy = "–" if chosen["accuracy"] is None else f"{chosen['accuracy']:.3f}"
            say(f"threshold {chosen['threshold']:.3f}: {chosen['coverage']:.1%} answered, accuracy {accuracy}")


def interval(value: float, bounds: list[float]) -> str:
    """`0.120 [0.100, 0.140]`."""
    return f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"
