"""The README's tables, rendered from the committed results files: `python -m modeling_qca.hub_card.readme README.md`.

A table stands between `<!-- results: docs/results/NAME.json -->` and `<!-- end -->`. With `--check` nothing is written
and a table that differs from its file is an error.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from .card import format_value, read_results

BLOCK = re.compile(r"(<!-- results: (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ATTENTION_ROWS = ("pointing", "energy", "spearman")


def render(text: str, folder: Path) -> str:
    """`text` with every table rendered anew; paths are relative to `folder`.

    Raises:
        ValueError: where a results file is missing or not one.
    """

    def table(block: re.Match[str]) -> str:
        path = folder / block["path"]
        if not path.exists():
            raise ValueError(f"{path}: the README names it, but there is no such results file")
        return f"{block[1]}\n{results_table(read_results(path))}\n\n{block[3]}"

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readme", type=Path)
    parser.add_argument("--check", action="store_true", help="fail where the file is not up to date")
    arguments = parser.parse_args()
    text = arguments.readme.read_text()
    rendered = render(text, arguments.readme.parent)
    if arguments.check and rendered != text:
        sys.exit(f"{arguments.readme}: its tables differ from the results files; run this without --check")
    if not arguments.check:
        arguments.readme.write_text(rendered)


if __name__ == "__main__":
    main()
