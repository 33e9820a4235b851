"""Tables of documents, rendered from the committed results files: `python -m render_documents README.md`.

A table stands between `<!-- results: docs/results/NAME.json -->` and `<!-- end -->`; `NAME.json, in short` leaves out
what few look for in a table of rows or a benchmark. With `--check` nothing is written and a table that differs from
its file is an error.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from modeling_qca.hub_card.card import read_results
from modeling_qca.training.benchmark.report import markdown_table, render_report, render_short_report
from modeling_qca.training.experiments.results_report import rows_table, short_rows_table
from modeling_qca.training.files.run_files import ATTENTION_SOURCES, format_value

BLOCK = re.compile(r"(<!-- results: (?P<path>\S+?)(?P<short>, in short)? -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
ATTENTION_ROWS = ("pointing", "energy", "spearman")


def render(text: str, folder: Path) -> str:
    """`text` with every table rendered anew; the files' paths are relative to `folder`.

    Raises:
        ValueError: where a results file is missing or not one.
    """

    def table(block: re.Match[str]) -> str:
        path = folder / block["path"]
        if not path.exists():
            raise ValueError(f"{path}: a document names it, but there is no such results file")
        content = json.loads(path.read_text())
        if "rows" in content:
            rendered = short_rows_table(content) if block["short"] else rows_table(content)
        elif "tables" in content:
            rendered = "\n\n".join(
                "\n".join(markdown_table(part["columns"], part["rows"])) for part in content["tables"]
            )
        elif "training_speed" in content:
            rendered = speed_table(content)
        elif "cases" in content:
            rendered = (render_short_report if block["short"] else render_report)(content).rstrip()
        else:
            rendered = results_table(read_results(path))
        return f"{block[1]}\n{rendered}\n\n{block['end']}"

    return BLOCK.sub(table, text)


def results_table(results: dict[str, Any]) -> str:
    """Accuracy by question type beside the baselines, and attention beside its controls, as Markdown."""
    types = list(results["per_question_type"])
    measured = {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}
    accuracies = {**results["baselines"], "**this model**": results["metrics"] | measured}
    rows = []
    for name, values in accuracies.items():
        cells = (values.get(column) for column in ("accuracy", *types))
        rows.append([name.replace("_", " "), *("" if cell is None else format_value(cell) for cell in cells)])
    lines = markdown_table(["accuracy", "all", *types], rows)
    if results["attention"]:
        sources = [source for source in ATTENTION_SOURCES if source in results["attention"]["pointing"]]
        looked = [
            [measure, *(format_value(results["attention"][measure][source]) for source in sources)]
            for measure in ATTENTION_ROWS
        ]
        lines += ["", *markdown_table(["attention", *(source.replace("_", " ") for source in sources)], looked)]
    data = results["data"]
    lines += [
        "",
        f"{data['rows']:,} questions about {data['images']:,} images; seed {', '.join(map(str, results['seeds']))}.",
    ]
    return "\n".join(lines)


def speed_table(results: dict[str, Any]) -> str:
    """What `qca bench-training` measured as Markdown: a row for each way to train, the faster of two first."""
    rows = []
    for comparison in results["training_speed"].values():
        names = [name for name, way in comparison.items() if isinstance(way, dict) and "step_s" in way]
        for name in names:
            way = comparison[name]
            step, times = (
                f"{value['median']:.{digits}f} ({value['quartile_1']:.{digits}f} to {value['quartile_3']:.{digits}f})"
                for value, digits in ((way["step_s"], 2), (comparison["speedup"], 1))
            )
            counts = [str(way["questions_a_batch"]), f"{way['images_a_batch']:.0f}"]
            rows.append([name, *counts, step, f"{way['epoch_s']:.0f}", times if name == names[0] else "1"])
    header = ["", "questions a batch", "images a batch", "s a step", "s an epoch", "times as fast"]
    same, settings, data = results["training_speed"]["cached_features"], results["settings"], results["data"]
    precision = "bfloat16" if settings["bf16"] else "float32"
    difference = f"{same['largest_relative_difference_of_losses']:.0e}"
    accuracy = " and ".join(format_value(value) for value in same["accuracy"].values())
    lines = [
        *markdown_table(header, rows),
        "",
        f"{data['rows']:,} questions about {data['images']:,} images; {results['device']}, {precision}, threads: "
        f"{settings['threads']}. Medians and quartiles of steps; epochs are extrapolated. With and without the cache "
        f"the losses of {same['cached']['steps']} steps differ by {difference} at most, and the accuracies after them "
        f"are {accuracy}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true", help="fail where a file is not up to date")
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
