"""Tables of documents, rendered from the committed results files: `python -m modeling_qca.hub_card.readme README.md`.

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

from modeling_qca.training.benchmark_report import markdown_table, render_report, render_short_report
from modeling_qca.training.faithfulness import CURVES
from modeling_qca.training.results_file import ATTENTION_SOURCES, format_value

from .card import read_results

BLOCK = re.compile(r"(<!-- results: (?P<path>\S+?)(?P<short>, in short)? -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
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


def rows_table(results: dict[str, Any]) -> str:
    """The rows of `training.results.summarise` as Markdown: answers and cost, then where they looked."""
    rows = results["rows"]
    titles, accuracies = _accuracies(rows)
    header = ["row", "seeds", *titles, "shuffled questions", "trained parameters", "training s", "ms a question"]
    answers = []
    for row, cells in zip(rows, accuracies, strict=True):
        seeds, cost = len(row["seeds"]), row["cost"]
        cells += [
            _spread(row.get("shuffled_questions"), seeds),
            f"{cost['trained_parameters'] / 1e6:.2f} M",
            f"{cost['training_seconds']:.0f}",
            f"{cost['milliseconds_per_question']:.0f}",
        ]
        answers.append([row["name"], str(seeds), *cells])
    looked = []
    for row in rows:
        if row["attention"]:
            seeds = len(row["seeds"])
            measured = [
                row["attention"][name].get(of) for name in ROW_MEASURES for of in ("model", "shuffled_question")
            ]
            looked.append([row["name"], *(_spread(value, seeds) for value in measured)])
    measures = [title for name in ROW_MEASURES for title in (name, f"{name}, shuffled")]
    lines = [*markdown_table(header, answers), "", *markdown_table(["where it looked", *measures], looked)]
    if looked:
        attention = next(row["attention"] for row in rows if row["attention"])
        controls = [
            f"{name} {format_value(attention[name]['centre']['mean'])} and "
            f"{format_value(attention[name]['uniform']['mean'])}"
            for name in ROW_MEASURES
        ]
        lines += ["", f"A map that always looks at the centre, and a uniform one: {', '.join(controls)}."]
        if (maps := next((row["attention"]["maps"] for row in rows if "maps" in row["attention"]), None)) is not None:
            counts = {source: f"{count['mean']:,.0f}" for source, count in maps.items()}
            shuffled = counts.get("shuffled_question", "none")
            each = " in each split" if "splits" in results else ""
            lines[-1] += (
                f" All of these are of the {counts['model']} questions{each} with a map; shuffled, of {shuffled}."
            )
    return "\n".join([*lines, *_faithfulness_table(rows), "", _rows_note(results)])


def _accuracies(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The columns that say how right the answers are, and each row's cells of them."""
    kinds, further = list(rows[0]["accuracy"]), list(rows[0].get("metrics", {}))
    gains = ["gain over question only"] if any("gain" in row for row in rows) else []
    cells = []
    for row in rows:
        measured = [row["accuracy"][kind] for kind in kinds] + [row["metrics"][name] for name in further]
        cells.append([*(_spread(value, len(row["seeds"])) for value in measured), *(_gain(row) for _ in gains)])
    return [title.replace("_", " ") for title in (*kinds, *further, *gains)], cells


def _faithfulness_table(rows: list[dict[str, Any]]) -> list[str]:
    """What the answer's probability does when patches are taken away, or put back, the most relevant first."""
    measured = [row for row in rows if "faithfulness" in row]
    if not measured:
        return []
    sources = list(measured[0]["faithfulness"])
    header = [f"{curve} AUC, {source.replace('_', ' ')}" for curve in CURVES for source in sources]
    cells = [
        [
            row["name"],
            *(
                _spread(row["faithfulness"][source][curve], len(row["seeds"]))
                for curve in CURVES
                for source in sources
            ),
        ]
        for row in measured
    ]
    questions = measured[0]["faithfulness_questions"]
    note = f"Areas of {questions} questions of each seed; lower is better for deletion, higher for insertion."
    return ["", *markdown_table(["does the answer hang on it", *header], cells), "", note]


def short_rows_table(results: dict[str, Any]) -> str:
    """The same rows: accuracy by question type, and whether the maps point at what the question is about."""
    rows = results["rows"]
    titles, accuracies = _accuracies(rows)
    cells = []
    for row, measured in zip(rows, accuracies, strict=True):
        pointing = row["attention"].get("pointing", {})
        looked = [_spread(pointing.get(source), len(row["seeds"])) for source in ("model", "shuffled_question")]
        cells.append([row["name"], *measured, *looked])
    header = ["row", *titles, "pointing", "pointing, shuffled question"]
    return "\n".join([*markdown_table(header, cells), "", _rows_note(results)])


def _rows_note(results: dict[str, Any]) -> str:
    data, seeds = results["data"], {len(row["seeds"]) for row in results["rows"]}
    splits = f", in {results['splits']} development splits, one a seed" if "splits" in results else ""
    return (
        f"{data['rows']:,} questions about {data['images']:,} images{splits}; the majority answer is right for "
        f"{format_value(results['majority'])}; "
        + ("one seed" if seeds == {1} else f"mean and standard deviation over {_range(seeds)} seeds")
        + (f"; trained and measured on {results['device']}." if "device" in results else ".")
    )


def _range(numbers: set[int]) -> str:
    return " to ".join(str(number) for number in sorted({min(numbers), max(numbers)}))


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


def _gain(row: dict[str, Any]) -> str:
    gain = row.get("gain")
    return "" if gain is None else f"{gain['mean']:+.3f} (SE {gain['standard_error']:.3f})"


def _spread(value: dict[str, float] | None, seeds: int) -> str:
    if value is None:
        return ""
    return format_value(value if seeds > 1 else value["mean"])


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
