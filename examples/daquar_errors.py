"""What the errors on DAQUAR have in common: accuracy by how often the right answer was trained on and by what is
asked, and how far off the wrong numbers are.

    python examples/daquar_errors.py DAQUAR RESULTS ROW [ROW ...] --output docs/results/daquar_random_errors.json

RESULTS is the folder that `qca results` filled, a ROW a row of its table by name; all finished seeds of it are read.
"""

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd

from modeling_qca.training.dataset import load_rows
from modeling_qca.training.results import ResultsRow
from modeling_qca.training.results_file import QUESTIONS, write_json

TRAINED_ON = (-1, 0, 9, 29, 99, 100_000)  # edges
FAR_OFF = (-1, 0, 1, 2, 100_000)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("daquar")
    parser.add_argument("results", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    columns = ["question_id", "answers"]
    truth = (
        load_rows(arguments.daquar, split="train", format="daquar")
        .select_columns(columns)
        .to_pandas()
        .set_index("question_id")
    )
    right = truth["answers"].map(lambda answers: [answer["answer"] for answer in answers])
    answered = pd.concat(_runs(arguments.results / ResultsRow(row, {}).folder, row, right) for row in arguments.rows)
    answered = answered.reset_index(drop=True)
    kinds = answered["question"].map(_kind)
    tables = [
        _table("questions trained on with the right answer", pd.cut(answered["trained_on"], TRAINED_ON), answered),
        _table("what is asked", kinds, answered),
    ]
    number = answered["right"].str.join(" ")
    numbers = answered[kinds.eq("how many") & answered["answer"].str.isdigit() & number.str.isdigit()]
    off = (numbers["answer"].astype(int) - number[numbers.index].astype(int)).abs()
    tables.append(_table("how many: share that is off by", pd.cut(off, FAR_OFF), numbers, share=True))
    write_json(arguments.output, {"tables": tables})


def _runs(folder: Path, row: str, right: pd.Series) -> pd.DataFrame:
    """The answered questions of every seed, with their right answers and how often that run trained on the one of them
    it knows best."""
    runs = []
    for file in sorted(folder.glob(f"*/{QUESTIONS}")):
        run = pd.read_parquet(file).assign(row=row, seed=file.parent.name)
        trained_on = Counter(right.drop(run["question_id"]).explode())
        run["right"] = run["question_id"].map(right)
        run["trained_on"] = [max(trained_on[answer] for answer in answers) for answers in run["right"]]
        runs.append(run)
    return pd.concat(runs)


def _kind(question: str) -> str:
    if "how many" in question:
        return "how many"
    return "colour" if "color" in question or "colour" in question else "what, which or where"


def _table(title: str, groups: pd.Series, answered: pd.DataFrame, share: bool = False) -> dict:
    """Accuracy of each row in each group and the group's questions a seed; with `share`, what part of its questions is
    in the group."""
    rows = list(dict.fromkeys(answered["row"]))
    seeds = answered.groupby("row")["seed"].nunique()
    table = []
    for name, group in answered.groupby(groups, observed=True):
        questions = {row: group[group["row"] == row] for row in rows}
        if share:
            values = [len(questions[row]) / (answered["row"] == row).sum() for row in rows]
        else:
            values = [questions[row]["score"].mean() for row in rows]
        label = _label(name) if isinstance(name, pd.Interval) else name
        count = round(len(questions[rows[0]]) / seeds[rows[0]])
        table.append([label, *(f"{value:.3f}" for value in values), f"{count:,}"])
    return {"columns": [title, *rows, "questions"], "rows": table}


def _label(counts: pd.Interval) -> str:
    """Whole numbers above `left`, up to `right`."""
    lowest, highest = int(counts.left) + 1, int(counts.right)
    if lowest == highest:
        return str(lowest)
    return f"{lowest} or more" if highest >= 100_000 else f"{lowest} to {highest}"


if __name__ == "__main__":
    main()
