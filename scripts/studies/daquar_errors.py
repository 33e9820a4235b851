r"""Analyze errors on DAQUAR: accuracy by the training frequency of the right answer and by the kind of question, and
the distance of wrong numbers.

    python scripts/studies/daquar_errors.py DAQUAR RESULTS ROW [ROW ...] \
        --output docs/results/daquar_random_errors.json

RESULTS is the output folder of `qca results`. A ROW is the name of a row of its table; every finished seed is read.
Counts of questions are means over the runs.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.experiments.results_table import ResultsRow
from modeling_qca.training.files.run_files import QUESTIONS, write_json

INFINITY = float("inf")
TRAINED_ON = (-1, 0, 9, 29, 99, INFINITY)  # edges of groups
OFF_BY = (-1, 0, 1, 2, INFINITY)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("daquar")
    parser.add_argument("results", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    columns = ["question_id", "answers"]
    truth = load_rows(arguments.daquar, split="train", format="daquar").select_columns(columns).to_pandas()
    right = truth.set_index("question_id")["answers"].map(lambda answers: [answer["answer"] for answer in answers])
    try:
        finished = [
            (row, run) for row in arguments.rows for run in ResultsRow(row, {}).finished_runs(arguments.results)
        ]
    except ValueError as error:
        parser.error(str(error))
    answered = pd.concat([_read(run, right).assign(row=row) for row, run in finished], ignore_index=True)
    kinds = answered["question"].map(_kind)
    number = answered["right"].str.join(" ")
    numbers = answered[kinds.eq("how many") & answered["answer"].str.isdigit() & number.str.isdigit()]
    off_by = (numbers["answer"].astype(int) - number[numbers.index].astype(int)).abs()
    tables = [
        _accuracies(
            "questions trained on with the right answer", pd.cut(answered["trained_on"], TRAINED_ON), answered
        ),
        _accuracies("what is asked", kinds, answered),
        _shares("how many, where a number is the answer: share that is off by", pd.cut(off_by, OFF_BY), numbers),
    ]
    write_json(arguments.output, {"tables": tables})


def _read(run: Path, right: pd.Series) -> pd.DataFrame:
    """The answered questions of a run, their right answers, and how often the most frequent one was trained on."""
    answered = pd.read_parquet(run / QUESTIONS).assign(seed=run.name)
    trained_on = Counter(right.drop(answered["question_id"]).explode())
    answered["right"] = answered["question_id"].map(right)
    answered["trained_on"] = [max(trained_on[answer] for answer in answers) for answers in answered["right"]]
    return answered


def _kind(question: str) -> str:
    if "how many" in question:
        return "how many"
    return "color" if "color" in question or "colour" in question else "what, which or where"


def _accuracies(title: str, groups: pd.Series, answered: pd.DataFrame) -> dict[str, Any]:
    """The accuracy of each row in each group."""
    rows = list(answered["row"].unique())
    runs = len(answered[["row", "seed"]].drop_duplicates())
    table = []
    for name, group in answered.groupby(groups, observed=True):
        scores = group.groupby("row")["score"].mean()
        count = f"{len(group) / runs:,.0f}"
        table.append([_label(name), *(f"{scores[row]:.3f}" for row in rows), count])
    return {"columns": [title, *rows, "questions"], "rows": table}


def _shares(title: str, groups: pd.Series, answered: pd.DataFrame) -> dict[str, Any]:
    """The share of each row's questions in each group."""
    rows = list(answered["row"].unique())
    shares = groups.groupby(answered["row"]).value_counts(normalize=True)
    table = [[_label(name), *(f"{shares.get((row, name), 0):.3f}" for row in rows)] for name in groups.cat.categories]
    return {"columns": [title, *rows], "rows": table}


def _label(group: str | pd.Interval) -> str:
    """The name of a group; an interval is named by its first and last whole number."""
    if isinstance(group, str):
        return group
    lowest = int(group.left) + 1
    if group.right == INFINITY:
        return f"{lowest} or more"
    return str(lowest) if lowest == group.right else f"{lowest} to {int(group.right)}"


if __name__ == "__main__":
    main()
