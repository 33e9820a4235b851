"""Analyze errors on rooms: accuracy by the size, distance and class of the objects in the question.

    python scripts/rooms_errors.py ROOMS CLASSES RUN [RUN ...] --output docs/results/rooms_errors.json

ROOMS is the folder with `train.csv` and `labels/`. CLASSES is the file of class names that `qca make-questions` takes.
A RUN is the folder of one seed of `qca results` or of `qca train`, with its `questions.parquet`.
"""

import argparse
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modeling_qca.training.files.run_files import QUESTIONS, write_json
from modeling_qca.training.supervision.image_questions import center_of_mass, half_region
from modeling_qca.training.supervision.label_maps import read_label_maps

PATTERNS = {
    "exists": r"is there an? (.+) in the (\w+) half of the picture",
    "side": r"is the (.+) to the left of the (.+)",
    "bigger": r"which is bigger the (.+) or the (.+)",
}
PARTS = [  # kind, what is measured, edges of its groups
    ("exists", "share of the half, where there is one", (0, 0.08, 0.12, 0.2, 0.4, 1)),
    ("side", "distance of the centers, of the width", (0, 0.15, 0.2, 0.3, 1)),
    ("bigger", "ratio of the areas", (1, 1.8, 2.5, 4, 1000)),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", type=Path)
    parser.add_argument("classes", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    truth = pd.read_csv(arguments.rooms / "train.csv").rename(columns={"answer": "truth"})
    answered = pd.concat(pd.read_parquet(run / QUESTIONS) for run in arguments.runs)
    rows = answered.merge(truth, on=["image_id", "question"], validate="many_to_one")
    rows["right"] = rows["answer"] == rows["truth"]
    maps = read_label_maps(arguments.rooms / "labels", arguments.classes)
    read, labels_of = cache(maps.read), {name: label for label, name in maps.names.items()}
    tables = []
    for kind, measure, edges in PARTS:
        asked = rows[rows["kind"] == kind]
        if kind == "exists":
            asked = asked[asked["truth"] == "yes"]
        values = [_measure(read(row.image_id), labels_of, kind, row.question) for row in asked.itertuples()]
        groups = asked.groupby(pd.cut(pd.Series(values, asked.index), edges), observed=True)["right"]
        named = [(f"{group.left:g} to {group.right:g}", right) for group, right in groups]
        tables.append(_table(f"{kind}: {measure}", named, len(arguments.runs)))
    where = rows[rows["kind"] == "where"].groupby("truth")["right"]
    tables.append(_table("where: the right answer", where, len(arguments.runs)))
    write_json(arguments.output, {"tables": tables})


def _measure(labels: NDArray[np.int64], labels_of: Mapping[str, int], kind: str, question: str) -> float:
    """The measure of `PARTS` for a question, from the label map [height, width] of its image."""
    match = re.fullmatch(PATTERNS[kind], question)
    assert match is not None, question
    first, second = match.groups()
    mask = labels == labels_of[first]
    if kind == "exists":
        return mask[half_region(second, labels.shape)].mean()
    other = labels == labels_of[second]
    if kind == "side":
        return abs(center_of_mass(mask)[1] - center_of_mass(other)[1])
    areas = sorted((mask.sum(), other.sum()))
    return areas[1] / areas[0]


def _table(title: str, groups: Any, runs: int) -> dict[str, Any]:
    rows = [[name, f"{right.mean():.3f}", f"{len(right) // runs:,}"] for name, right in groups]
    return {"columns": [title, "accuracy", "questions"], "rows": rows}


if __name__ == "__main__":
    main()
