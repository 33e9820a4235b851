"""Markdown tables of a summary, see `results_summary.summarize`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..evaluation.faithfulness import CURVES
from ..files.markdown import markdown_table, select_cells
from ..files.run_files import format_value

ROW_MEASURES = ("pointing", "energy", "iou", "spearman")
REMOVED_MARK = " †"
Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]  # its title, and the cell of a row


def rows_table(results: dict[str, Any]) -> str:
    """Accuracy and cost, relevance maps, and faithfulness: a table each, with notes."""
    rows = results["rows"]
    parts = [_table("row", rows, [("seeds", lambda row: str(len(row["seeds"]))), *_accuracies(rows), *_COSTS])]
    if with_maps := [row for row in rows if row["attention"]]:
        parts += [_table("relevance maps", with_maps, _attention()), _controls_note(with_maps, "splits" in results)]
    if measured := [row for row in rows if "faithfulness" in row]:
        parts.append(_table("faithfulness (deletion and insertion)", measured, _faithfulness(measured)))
        parts.append(
            f"Areas of {measured[0]['faithfulness_questions']} questions of each seed; lower is better for deletion, "
            "higher for insertion."
        )
    return "\n\n".join([*parts, _rows_note(results)])


def short_rows_table(results: dict[str, Any], names: Sequence[str] = (), columns: Sequence[str] = ()) -> str:
    """Accuracy by question type and pointing accuracy, of the rows and columns that are named, or of all."""
    rows = results["rows"]
    shown = [
        *_accuracies(rows),
        ("pointing", _measured("pointing", "model")),
        ("pointing, shuffled question", _measured("pointing", "shuffled_question")),
    ]
    return "\n\n".join([_table("row", rows, shown, names, columns), _rows_note(results, names)])


def data_sets_table(data_sets: Mapping[str, tuple[dict[str, Any], str]]) -> str:
    """A row for each data set: accuracy without images, of mean-pooled patches and of a named row with hops.

    Args:
        data_sets: the summary of a data set and the name of its row with hops, by what stands in the first column.
    """
    shown: list[tuple[str, str, Callable[[Row], str]]] = [
        ("question only", "question only", _accuracy),
        ("image mean", "image mean", _accuracy),
        ("with hops", "", _accuracy),
        ("pointing", "", _measured("pointing", "model")),
        ("pointing, shuffled question", "", _measured("pointing", "shuffled_question")),
    ]
    table = []
    for name, (results, hops) in data_sets.items():
        rows = {row["name"]: row for row in results["rows"]}
        if missing := [row for row in ("question only", "image mean", hops) if row not in rows]:
            raise ValueError(f"there is no row {', '.join(map(repr, missing))}; rows: {', '.join(rows)}")
        cells = (cell(rows[row or hops]) for _, row, cell in shown)
        table.append([name, hops, str(len(rows[hops]["seeds"])), format_value(results["majority"]), *cells])
    return markdown_table(
        ["data", "row with hops", "seeds", "majority answer", *(title for title, *_ in shown)], table
    )


def _table(
    corner: str, rows: list[Row], columns: list[Column], names: Sequence[str] = (), titles: Sequence[str] = ()
) -> str:
    header = [corner, *(title for title, _ in columns)]
    cells = [[row["name"], *(cell(row) for _, cell in columns)] for row in rows]
    header, cells = select_cells(header, cells, names, titles)
    removed = {row["name"] for row in rows if "measured_with" in row}
    return markdown_table(header, [[name + REMOVED_MARK * (name in removed), *rest] for name, *rest in cells])


def _accuracies(rows: list[Row]) -> list[Column]:
    """All questions, each question type, further metrics, and the gain over the row without images."""
    kinds = dict.fromkeys(kind for row in rows for kind in row["accuracy"])
    further = dict.fromkeys(name for row in rows for name in row.get("metrics", {}))
    columns: list[Column] = [
        *((kind, lambda row, kind=kind: _spread(row["accuracy"].get(kind), row)) for kind in kinds),
        *((name, lambda row, name=name: _spread(row.get("metrics", {}).get(name), row)) for name in further),
    ]
    if any("gain" in row for row in rows):
        columns.append(("gain over question only", _gain))
    return [(title.replace("_", " "), cell) for title, cell in columns]


def _accuracy(row: Row) -> str:
    return _spread(row["accuracy"]["all"], row)


_COSTS: list[Column] = [
    ("shuffled questions", lambda row: _spread(row.get("shuffled_questions"), row)),
    ("trained parameters", lambda row: f"{row['cost']['trained_parameters'] / 1e6:.2f} M"),
    ("training s", lambda row: f"{row['cost']['training_seconds']:.0f}"),
    ("ms a question", lambda row: f"{row['cost']['milliseconds_per_question']:.0f}"),
]


def _attention() -> list[Column]:
    sources = {"": "model", ", shuffled": "shuffled_question"}
    return [
        (measure + ending, _measured(measure, source))
        for measure in ROW_MEASURES
        for ending, source in sources.items()
    ]


def _measured(measure: str, source: str) -> Callable[[Row], str]:
    return lambda row: _spread(row["attention"].get(measure, {}).get(source), row)


def _faithfulness(rows: list[Row]) -> list[Column]:
    sources = dict.fromkeys(source for row in rows for source in row["faithfulness"])
    return [
        (f"{curve} AUC, {source.replace('_', ' ')}", _area(source, curve)) for curve in CURVES for source in sources
    ]


def _area(source: str, curve: str) -> Callable[[Row], str]:
    return lambda row: _spread(row["faithfulness"].get(source, {}).get(curve), row)


def _controls_note(rows: list[Row], several_splits: bool) -> str:
    attention = rows[0]["attention"]
    controls = [
        f"{name} {format_value(attention[name]['center']['mean'])} and "
        f"{format_value(attention[name]['uniform']['mean'])}"
        for name in ROW_MEASURES
    ]
    note = f"A map that always looks at the center, and a uniform one: {', '.join(controls)}."
    maps = next((row["attention"]["maps"] for row in rows if "maps" in row["attention"]), None)
    if maps is None:
        return note
    counts = {source: f"{count['mean']:,.0f}" for source, count in maps.items()}
    mean = " (mean of the splits)" if several_splits else ""
    shuffled = counts.get("shuffled_question", "none")
    return f"{note} All of these are of the {counts['model']} questions with a map{mean}; shuffled, of {shuffled}."


def _rows_note(results: dict[str, Any], names: Sequence[str] = ()) -> str:
    rows = [row for row in results["rows"] if not names or row["name"] in names]
    data, seeds = results["data"], {len(row["seeds"]) for row in rows}
    splits = f", in {results['splits']} development splits, one a seed" if "splits" in results else ""
    note = (
        f"{data['rows']:,} questions about {data['images']:,} images{splits}; the majority answer is right for "
        f"{format_value(results['majority'])}; "
        + ("one seed" if seeds == {1} else f"mean and standard deviation over {_range(seeds)} seeds")
        + (f"; trained and measured on {results['device']}." if "device" in results else ".")
    )
    reach = data.get("vocabulary", {}).get("validation", {"coverage": 1})
    if reach["coverage"] < 1:
        note += (
            f" {1 - reach['coverage']:.1%} of the questions have no answer in the vocabulary, so no model can exceed "
            f"{format_value(reach['oracle_ceiling'])}."
        )
    if versions := sorted({row["measured_with"] for row in rows if "measured_with" in row}):
        note += f"{REMOVED_MARK} Measured with release {', '.join(versions)}, which had this variant."
    return note


def _range(numbers: set[int]) -> str:
    return " to ".join(str(number) for number in sorted({min(numbers), max(numbers)}))


def _gain(row: Row) -> str:
    gain = row.get("gain")
    return "" if gain is None else f"{gain['mean']:+.3f} (SE {gain['standard_error']:.3f})"


def _spread(value: dict[str, float] | None, row: Row) -> str:
    """One seed has no spread."""
    if value is None:
        return ""
    return format_value(value if len(row["seeds"]) > 1 else value["mean"])
