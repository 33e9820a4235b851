"""Render the tables of documents from the committed results files: `python scripts/render_documents.py README.md`.

A table stands between `<!-- results: docs/results/NAME.json -->` and `<!-- end -->`. After the file's name may follow

    , in short                                  the main columns of a table of rows or of a benchmark
    , rows: A; B, columns: C; D                 these rows and columns of the short table, in this order

A file that lists `data_sets` gives a table with one row for each.

`rows` or `columns` may be left out. With `--check` nothing is written, and a table that differs from its file is an
error.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from modeling_qca.hub_card.results_file import read_results
from modeling_qca.training.benchmark.report import render_report, render_short_report
from modeling_qca.training.experiments.results_report import data_sets_table, rows_table, short_rows_table
from modeling_qca.training.files.markdown import markdown_table
from modeling_qca.training.files.run_files import ATTENTION_SOURCES, format_value

BLOCK = re.compile(
    r"(?P<start><!-- results: (?P<path>[^\s,]+)(?P<short>, in short)?(?:, rows: (?P<rows>.+?))?"
    r"(?:, columns: (?P<columns>.+?))? -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)
ATTENTION_ROWS = ("pointing", "energy", "spearman")


def render(text: str, folder: Path) -> str:
    """`text` with every table rendered anew; the files' paths are relative to `folder`.

    Raises:
        ValueError: a results file is missing or invalid, or has no such row or column.
    """

    def table(block: re.Match[str]) -> str:
        path = folder / block["path"]
        names, columns = (_names(block[part]) for part in ("rows", "columns"))
        short = bool(block["short"] or names or columns)
        try:
            rendered = _render_file(path, short, names, columns)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return f"{block['start']}\n{rendered}\n\n{block['end']}"

    return BLOCK.sub(table, text)


def _read(path: Path) -> Any:
    if not path.exists():
        raise ValueError(f"there is no results file {path.name}")
    return json.loads(path.read_text())


def _names(listed: str | None) -> list[str]:
    return [name.strip() for name in listed.split(";")] if listed else []


def _render_file(path: Path, short: bool, names: list[str], columns: list[str]) -> str:
    content = _read(path)
    if "rows" in content:
        return short_rows_table(content, names, columns) if short else rows_table(content)
    if "cases" in content:
        return (render_short_report(content, names, columns) if short else render_report(content)).rstrip()
    if "data_sets" in content:
        shown = {}
        for one in content["data_sets"]:
            files = [_read(path.with_name(name)) for name in one["results"]]
            rows = [row for file in files for row in file["rows"]]
            shown[one["name"]] = (files[0] | {"rows": rows}, one["row with hops"])
        return data_sets_table(shown)
    if short:
        raise ValueError("only a table of rows or a benchmark has a short form, `rows` and `columns`")
    if "tables" in content:
        return "\n\n".join(markdown_table(part["columns"], part["rows"]) for part in content["tables"])
    if "training_speed" in content:
        return speed_table(content)
    return results_table(read_results(path))


def results_table(results: dict[str, Any]) -> str:
    """Accuracy by question type beside the baselines, and relevance maps beside their controls."""
    types = list(results["per_question_type"])
    measured = {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}
    accuracies = {**results["baselines"], "**this model**": results["metrics"] | measured}
    rows = []
    for name, values in accuracies.items():
        cells = (values.get(column) for column in ("accuracy", *types))
        rows.append([name.replace("_", " "), *("" if cell is None else format_value(cell) for cell in cells)])
    parts = [markdown_table(["accuracy", "all", *types], rows)]
    if results["attention"]:
        sources = [source for source in ATTENTION_SOURCES if source in results["attention"]["pointing"]]
        maps = [
            [measure, *(format_value(results["attention"][measure][source]) for source in sources)]
            for measure in ATTENTION_ROWS
        ]
        parts.append(markdown_table(["attention", *(source.replace("_", " ") for source in sources)], maps))
    data, seeds = results["data"], ", ".join(map(str, results["seeds"]))
    parts.append(f"{data['rows']:,} questions about {data['images']:,} images; seed {seeds}.")
    return "\n\n".join(parts)


def speed_table(results: dict[str, Any]) -> str:
    """The results of `qca bench-training`: a row for each way to train, the faster of two first."""
    rows = []
    for comparison in results["training_speed"].values():
        names = [name for name, way in comparison.items() if isinstance(way, dict) and "step_s" in way]
        for name in names:
            way = comparison[name]
            step, times = _quartiles(way["step_s"], 2), _quartiles(comparison["speedup"], 1)
            counts = [str(way["questions_a_batch"]), f"{way['images_a_batch']:.0f}"]
            rows.append([name, *counts, step, f"{way['epoch_s']:.0f}", times if name == names[0] else "1"])
    header = ["", "questions a batch", "images a batch", "s a step", "s an epoch", "times as fast"]
    return f"{markdown_table(header, rows)}\n\n{_speed_note(results)}"


def _quartiles(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:.{digits}f} ({value['quartile_1']:.{digits}f} to {value['quartile_3']:.{digits}f})"


def _speed_note(results: dict[str, Any]) -> str:
    same, settings, data = results["training_speed"]["cached_features"], results["settings"], results["data"]
    precision = "bfloat16" if settings["bf16"] else "float32"
    difference = f"{same['largest_relative_difference_of_losses']:.0e}"
    accuracy = " and ".join(format_value(value) for value in same["accuracy"].values())
    return (
        f"{data['rows']:,} questions about {data['images']:,} images; {results['device']}, {precision}, threads: "
        f"{settings['threads']}. Medians and quartiles of steps; epochs are extrapolated. With and without the cache "
        f"the losses of {same['cached']['steps']} steps differ by {difference} at most, and the accuracies after them "
        f"are {accuracy}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true", help="fail if a table differs from its results file")
    arguments = parser.parse_args()
    for document in arguments.documents:
        text = document.read_text()
        rendered = render(text, Path.cwd())
        if arguments.check and rendered != text:
            sys.exit(f"{document}: its tables differ from the results files; run this without --check")
        if not arguments.check:
            document.write_text(rendered)


if __name__ == "__main__":
    main()
