r"""Analyze errors on VQA-RAD: accuracy by the training frequency of the right answer, by what of a question was
trained on, and by what is asked.

    python scripts/studies/vqa_rad_errors.py VQA_RAD RESULTS ROW [ROW ...] --output docs/results/vqa_rad_errors.json

RESULTS is the output folder of `qca results`. A ROW is the name of a row of its table; every finished seed is read.
Counts of questions are means over the runs. A question counts in the last group of "what is trained on" that it fits:
its image, the question, another open question of its image with its answer, or the question about its image.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_qca.training.data.answers import answer_key
from modeling_qca.training.experiments.results_table import ResultsRow
from modeling_qca.training.files.run_files import QUESTIONS, write_json

FREQUENCIES = (-1, 0, 4, 19, float("inf"))
FREQUENCY_NAMES = ("0: outside the vocabulary", "1 to 4", "5 to 19", "20 or more")
FEWEST = 20  # questions of a kind, mean over the runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vqa_rad", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    asked = pd.read_csv(arguments.vqa_rad / "train.csv", dtype=str, keep_default_na=False)
    asked["right"] = asked["answer"].map(answer_key)
    asked["words"] = asked["question"].str.lower().str.split().str.join(" ").str.rstrip(" ?.")
    asked.index = pd.Index([f"train-{row}" for row in range(len(asked))])
    try:
        finished = [
            (row, run) for row in arguments.rows for run in ResultsRow(row, {}).finished_runs(arguments.results)
        ]
    except ValueError as error:
        parser.error(str(error))
    answered = pd.concat([_read(run, asked).assign(row=row) for row, run in finished], ignore_index=True)
    is_open = answered["answer_type"].eq("open")
    tables = [
        _accuracies("open questions: trained on with the right answer", "frequency", answered[is_open]),
        _accuracies("open questions: what is trained on", "repeated", answered[is_open]),
        _accuracies("closed questions: what is trained on", "repeated", answered[~is_open]),
        _accuracies("what is asked", "question_type", answered),
    ]
    write_json(arguments.output, {"tables": tables})


def _read(run: Path, asked: pd.DataFrame) -> pd.DataFrame:
    """The answered questions of a run, and what of them was trained on."""
    scores = pd.read_parquet(run / QUESTIONS, columns=["question_id", "score"]).set_index("question_id")["score"]
    answered, trained = asked.loc[scores.index].assign(score=scores, seed=run.name), asked.drop(scores.index)
    counts = answered["right"].map(trained["right"].value_counts()).fillna(0)
    answered["frequency"] = pd.cut(counts, FREQUENCIES, labels=FREQUENCY_NAMES)
    answered["repeated"] = "neither the question nor the image"
    answered.loc[answered["image"].isin(trained["image"]), "repeated"] = "the image"
    answered.loc[answered["words"].isin(trained["words"]), "repeated"] = "the question, about another image"
    same_answer = _found(answered, trained, ["image", "right"]) & answered["answer_type"].eq("open")
    answered.loc[same_answer, "repeated"] = "another question with the same answer, about the image"
    answered.loc[_found(answered, trained, ["image", "words"]), "repeated"] = "the question, about the image"
    return answered


def _found(answered: pd.DataFrame, trained: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Whether `trained` has a row with the same values in `columns`."""
    known = set(trained[columns].itertuples(index=False, name=None))
    same = [values in known for values in answered[columns].itertuples(index=False, name=None)]
    return pd.Series(same, index=answered.index)


def _accuracies(title: str, column: str, answered: pd.DataFrame) -> dict[str, Any]:
    """The accuracy of each row in each group; of the kinds of questions, those with at least `FEWEST`."""
    rows = list(answered["row"].unique())
    runs = len(answered[["row", "seed"]].drop_duplicates())
    table = []
    for name, group in answered.groupby(column, observed=True):
        scores, count = group.groupby("row")["score"].mean(), len(group) / runs
        if count >= FEWEST or column != "question_type":
            table.append([name, *(f"{scores[row]:.3f}" if row in scores else "" for row in rows), f"{count:,.0f}"])
    return {"columns": [title, *rows, "questions"], "rows": table}


if __name__ == "__main__":
    main()
