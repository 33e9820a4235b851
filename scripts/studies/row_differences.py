r"""Differences between rows of results tables on the same questions, with standard errors.

    python scripts/studies/row_differences.py "step by step - image mean" ["ROW - ROW" ...] --results RESULTS ... \
        [--image-table images.csv --group-by sequence] --output docs/results/facades_differences.json

A RESULTS is the folder that `qca results` filled for a table. A ROW is the name of a row of one of these tables; all
seeds that both rows finished are read. The sampling unit is the image (see `results_summary.paired_gain`). With an
image table, a second table takes the group of images.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_qca.training.experiments.results_summary import QUESTION_COLUMNS, paired_gain
from modeling_qca.training.experiments.results_table import ResultsRow
from modeling_qca.training.files.run_files import QUESTIONS, RESULTS, write_json
from modeling_qca.training.supervision.image_table import ImageTable


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="pair")
    parser.add_argument("--results", type=Path, nargs="+", required=True)
    parser.add_argument("--image-table", type=Path)
    parser.add_argument("--group-by", help="a column of the image table")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if (arguments.image_table is None) != (arguments.group_by is None):
        parser.error("--image-table and --group-by belong together: give both, or neither")
    try:
        pairs = {pair: _read_pair(arguments.results, pair) for pair in arguments.pairs}
        tables = [_table("SE by image", pairs)]
        if arguments.image_table is not None:
            by_group = _by_group(pairs, ImageTable(arguments.image_table), arguments.group_by)
            tables.append(_table(f"SE by {arguments.group_by}", by_group))
    except ValueError as error:
        parser.error(str(error))
    write_json(arguments.output, {"tables": tables})


def _by_group(pairs: dict[str, Any], table: ImageTable, column: str) -> dict[str, Any]:
    """The pairs with the group of each image in the place of the image."""
    if column not in table.columns:
        raise ValueError(f"{table.path}: no column {column!r}, only {', '.join(table.columns)}")

    def grouped(run: pd.DataFrame) -> pd.DataFrame:
        return run.assign(image_id=[table.row(image_id)[column] for image_id in run["image_id"]])

    return {pair: [tuple(map(grouped, seed)) for seed in seeds] for pair, seeds in pairs.items()}


def _read_pair(results: list[Path], pair: str) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The answered questions of both rows, for each seed that both finished."""
    names = pair.split(" - ")
    if len(names) != 2:
        raise ValueError(f"{pair!r} is no pair of rows; write `ROW - ROW`")
    ours, theirs = (_read_row(results, name) for name in names)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"{pair}: no seed is finished in both rows")
    return [(ours[seed], theirs[seed]) for seed in seeds]


def _read_row(results: list[Path], name: str) -> dict[str, pd.DataFrame]:
    """Seed -> the answered questions."""
    folder = ResultsRow(name, {}).folder
    finished = [file.parent for table in results for file in table.glob(f"{folder}/*/{RESULTS}")]
    tables = {str(run.parent.parent) for run in finished}
    if len(tables) != 1:
        places = ", ".join(map(str, results))
        raise ValueError(f"{places}: {len(tables)} of these folders have a finished row {name!r}; one must have it")
    columns = [*QUESTION_COLUMNS, "question_type"]
    return {run.name: pd.read_parquet(run / QUESTIONS, columns=columns) for run in finished}


def _table(title: str, pairs: dict[str, list[Any]]) -> dict[str, Any]:
    """The difference of each pair (first minus second) for all questions and each type."""
    kinds = sorted({kind for seeds in pairs.values() for run, _ in seeds for kind in run["question_type"]})
    rows = [[pair, *(_difference(seeds, kind) for kind in ("all", *kinds))] for pair, seeds in pairs.items()]
    return {"columns": [f"difference ({title})", "all", *kinds], "rows": rows}


def _difference(seeds: list[Any], kind: str) -> str:
    chosen = [[_of_kind(run, kind) for run in pair] for pair in seeds]
    gain = paired_gain([ours for ours, _ in chosen], [theirs for _, theirs in chosen])
    return f"{gain['mean']:+.3f} (SE {gain['standard_error']:.3f})"


def _of_kind(run: pd.DataFrame, kind: str) -> dict[str, list]:
    return (run if kind == "all" else run[run["question_type"] == kind]).to_dict("list")


if __name__ == "__main__":
    main()
