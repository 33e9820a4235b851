"""Tables of documents, rendered from the committed results files: `python -m modeling_qca.hub_card.readme README.md`.

A table stands between `<!-- results: docs/results/NAME.json -->` and `<!-- end -->`. With `--check` nothing is written
and a table that differs from its file is an error.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from .card import format_value, read_results

BLOCK = re.compile(r"(<!-- results: (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ATTENTION_ROWS = ("pointing", "energy", "spearman")
ROW_MEASURES = ("pointing", "energy", "iou", "spearman")


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
        rendered = rows_table(content) if "rows" in content else results_table(read_results(path))
        return f"{block[1]}\n{rendered}\n\n{block[3]}"

    return BLOCK.sub(table, text)


def results_table(results: dict[str, Any]) -> str:
    """Accuracy by question type beside the baselines, and attention beside its controls, as Markdown."""
    types = list(results["per_question_type"])
    measured = {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}
    accuracies = {**results["baselines"], "**this model**": results["metrics"] | measured}
    rows = [["accuracy", "all", *types], ["---"] * (len(types) + 2)]
    for name, values in accuracies.items():
        cells = (values.get(column) for column in ("accuracy", *types))
        rows.append([name.replace("_", " "), *("" if cell is None else format_value(cell) for cell in cells)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if results["attention"]:
        sources = ("model", "shuffled_question", "centre", "uniform")
        lines += [
            "",
            f"| attention | {' | '.join(source.replace('_', ' ') for source in sources)} |",
            "| --- " * 5 + "|",
        ]
        for measure in ATTENTION_ROWS:
            values = results["attention"][measure]
            lines.append(f"| {measure} | {' | '.join(format_value(values[source]) for source in sources)} |")
    data = results["data"]
    lines += [
        "",
        f"{data['rows']:,} questions about {data['images']:,} images; seed {', '.join(map(str, results['seeds']))}.",
    ]
    return "\n".join(lines)


def rows_table(results: dict[str, Any]) -> str:
    """The rows of `training.results.summarise` as Markdown: answers and cost, then where they looked."""
    rows = results["rows"]
    kinds = list(rows[0]["accuracy"])
    header = ["row", "seeds", *kinds, "shuffled questions", "trained parameters", "training s", "ms a question"]
    answers = []
    for row in rows:
        seeds, cost = len(row["seeds"]), row["cost"]
        measured = [row["accuracy"][kind] for kind in kinds] + [row.get("shuffled_questions")]
        cells = [_spread(value, seeds) for value in measured] + [
            f"{cost['trained_parameters'] / 1e6:.2f} M",
            f"{cost['training_seconds']:.0f}",
            f"{cost['milliseconds_per_question']:.0f}",
        ]
        answers.append([row["name"], str(seeds), *cells])
    looked = []
    for row in rows:
        if row["attention"]:
            seeds = len(row["seeds"])
            measured = [row["attention"][name][of] for name in ROW_MEASURES for of in ("model", "shuffled_question")]
            looked.append([row["name"], *(_spread(value, seeds) for value in measured)])
    measures = [title for name in ROW_MEASURES for title in (name, f"{name}, shuffled")]
    data = results["data"]
    lines = [*_table(header, answers), "", *_table(["where it looked", *measures], looked)]
    if looked:
        attention = next(row["attention"] for row in rows if row["attention"])
        controls = [
            f"{name} {format_value(attention[name]['centre']['mean'])} and "
            f"{format_value(attention[name]['uniform']['mean'])}"
            for name in ROW_MEASURES
        ]
        lines += ["", f"A map that always looks at the centre, and a uniform one: {', '.join(controls)}."]
    lines += [
        "",
        f"{data['rows']:,} questions about {data['images']:,} images; the majority answer is right for "
        f"{format_value(results['majority'])}; mean and standard deviation over seeds.",
    ]
    return "\n".join(lines)


def _spread(value: dict[str, float] | None, seeds: int) -> str:
    if value is None:
        return ""
    return format_value(value if seeds > 1 else value["mean"])


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


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
