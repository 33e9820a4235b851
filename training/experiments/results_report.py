"""What [`training.results.summarize`] says, as Markdown."""

from typing import Any

from ..benchmark.report import markdown_table
from ..evaluation.faithfulness import CURVES
from ..files.run_files import format_value

ROW_MEASURES = ("pointing", "energy", "iou", "spearman")


def rows_table(results: dict[str, Any]) -> str:
    """Answers and cost, where they looked, and whether the answers hang on it."""
    rows = results["rows"]
    titles, accuracies = _accuracies(rows)
    header = ["row", "seeds", *titles, "shuffled questions", "trained parameters", "training s", "ms a question"]
    answers = []
    for row, cells in zip(rows, accuracies, strict=True):
        seeds, cost = len(row["seeds"]), row["cost"]
        cells += [
            _cell(row.get("shuffled_questions"), seeds),
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
            looked.append([row["name"], *(_cell(value, seeds) for value in measured)])
    measures = [title for name in ROW_MEASURES for title in (name, f"{name}, shuffled")]
    lines = [*markdown_table(header, answers), "", *markdown_table(["where it looked", *measures], looked)]
    if looked:
        attention = next(row["attention"] for row in rows if row["attention"])
        controls = [
            f"{name} {format_value(attention[name]['center']['mean'])} and "
            f"{format_value(attention[name]['uniform']['mean'])}"
            for name in ROW_MEASURES
        ]
        lines += ["", f"A map that always looks at the center, and a uniform one: {', '.join(controls)}."]
        if (maps := next((row["attention"]["maps"] for row in rows if "maps" in row["attention"]), None)) is not None:
            counts = {source: f"{count['mean']:,.0f}" for source, count in maps.items()}
            shuffled = counts.get("shuffled_question", "none")
            mean = " (mean of the splits)" if "splits" in results else ""
            lines[-1] += (
                f" All of these are of the {counts['model']} questions with a map{mean}; shuffled, of {shuffled}."
            )
    return "\n".join([*lines, *_faithfulness_table(rows), "", _rows_note(results)])


def short_rows_table(results: dict[str, Any]) -> str:
    """The same rows: accuracy by question type, and whether the maps point at what the question is about."""
    rows = results["rows"]
    titles, accuracies = _accuracies(rows)
    cells = []
    for row, measured in zip(rows, accuracies, strict=True):
        pointing = row["attention"].get("pointing", {})
        looked = [_cell(pointing.get(source), len(row["seeds"])) for source in ("model", "shuffled_question")]
        cells.append([row["name"], *measured, *looked])
    header = ["row", *titles, "pointing", "pointing, shuffled question"]
    return "\n".join([*markdown_table(header, cells), "", _rows_note(results)])


def _accuracies(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The columns that say how right the answers are, and each row's cells of them."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["accuracy"]))
    further = list(dict.fromkeys(name for row in rows for name in row.get("metrics", {})))
    gains = ["gain over question only"] if any("gain" in row for row in rows) else []
    cells = []
    for row in rows:
        measured = [row["accuracy"].get(kind) for kind in kinds]
        measured += [row.get("metrics", {}).get(name) for name in further]
        cells.append([*(_cell(value, len(row["seeds"])) for value in measured), *(_gain(row) for _ in gains)])
    return [title.replace("_", " ") for title in (*kinds, *further, *gains)], cells


def _faithfulness_table(rows: list[dict[str, Any]]) -> list[str]:
    """What the answer's probability does when patches are taken away, or put back, the most relevant first."""
    measured = [row for row in rows if "faithfulness" in row]
    if not measured:
        return []
    sources = list(dict.fromkeys(source for row in measured for source in row["faithfulness"]))
    header = [f"{curve} AUC, {source.replace('_', ' ')}" for curve in CURVES for source in sources]
    cells = [
        [
            row["name"],
            *(
                _cell(row["faithfulness"].get(source, {}).get(curve), len(row["seeds"]))
                for curve in CURVES
                for source in sources
            ),
        ]
        for row in measured
    ]
    questions = measured[0]["faithfulness_questions"]
    note = f"Areas of {questions} questions of each seed; lower is better for deletion, higher for insertion."
    return ["", *markdown_table(["does the answer hang on it", *header], cells), "", note]


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


def _gain(row: dict[str, Any]) -> str:
    gain = row.get("gain")
    return "" if gain is None else f"{gain['mean']:+.3f} (SE {gain['standard_error']:.3f})"


def _cell(value: dict[str, float] | None, seeds: int) -> str:
    if value is None:
        return ""
    return format_value(value if seeds > 1 else value["mean"])
