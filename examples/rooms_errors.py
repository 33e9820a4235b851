"""What the errors on rooms have in common: accuracy by size, distance and class of what the questions ask about.

    python examples/rooms_errors.py ROOMS RUN [RUN ...] --output docs/results/rooms_errors.json

ROOMS is the folder with `train.csv` and `labels/`; a RUN is the folder of one seed of `qca results` or of
`qca train`, with its `questions.parquet`.
"""

import argparse
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from modeling_qca.training.results_file import write_json

CLASSES = [
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
]
QUESTIONS = {
    "exists": r"is there an? (\w+) in the (\w+) half of the picture",
    "side": r"is the (\w+) to the left of the (\w+)",
    "bigger": r"which is bigger the (\w+) or the (\w+)",
}
PARTS = [  # kind, what is measured, edges of its groups
    ("exists", "share of the half, where there is one", (0, 0.08, 0.12, 0.2, 0.4, 1)),
    ("side", "distance of the centres, of the width", (0, 0.15, 0.2, 0.3, 1)),
    ("bigger", "ratio of the areas", (1, 1.8, 2.5, 4, 1000)),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    truth = pd.read_csv(arguments.rooms / "train.csv").rename(columns={"answer": "truth"})
    answered = pd.concat(pd.read_parquet(run / "questions.parquet") for run in arguments.runs)
    rows = answered.merge(truth, on=["image_id", "question"], validate="many_to_one")
    rows["right"] = rows["answer"] == rows["truth"]
    labels = cache(lambda image: np.array(Image.open(arguments.rooms / "labels" / f"{image}.png")))
    tables = []
    for kind, measure, edges in PARTS:
        asked = rows[rows["kind"] == kind]
        values = [_measure(labels(row.image_id), kind, row.question, row.truth) for row in asked.itertuples()]
        groups = asked.groupby(pd.cut(pd.Series(values, asked.index), edges), observed=True)
        names = {group: f"{group.left:g} to {group.right:g}" for group in groups.groups}
        tables.append(_table(f"{kind}: {measure}", groups["right"], names, len(arguments.runs)))
    where = rows[rows["kind"] == "where"].groupby("truth")
    tables.append(_table("where: the right answer", where["right"], {}, len(arguments.runs)))
    write_json(arguments.output, {"tables": tables})


def _measure(labels: np.ndarray, kind: str, question: str, truth: str) -> float | None:
    """What `PARTS` says of a question, from the label map [height, width] of its picture."""
    first, second = re.fullmatch(QUESTIONS[kind], question).groups()
    mask = labels == CLASSES.index(first) + 1
    if kind == "exists":
        rows, columns = np.indices(labels.shape) / np.array(labels.shape)[:, None, None]
        half = {"left": columns < 0.5, "right": columns >= 0.5, "top": rows < 0.5, "bottom": rows >= 0.5}[second]
        return mask[half].mean() if truth == "yes" else None
    other = labels == CLASSES.index(second) + 1
    if kind == "side":
        return abs(np.nonzero(mask)[1].mean() - np.nonzero(other)[1].mean()) / labels.shape[1]
    return max(mask.sum(), other.sum()) / max(min(mask.sum(), other.sum()), 1)


def _table(title: str, right, names: dict, runs: int) -> dict:
    lines = [[names.get(name, str(name)), f"{group.mean():.3f}", f"{len(group) // runs:,}"] for name, group in right]
    return {"columns": [title, "accuracy", "questions"], "rows": lines}


if __name__ == "__main__":
    main()
