r"""How far apart the two target regions of `side` questions are, and how much they overlap.

    python scripts/studies/target_overlap.py facades=FACADE_QUESTIONS rooms=ROOMS --output OUT.json

Each argument is a name and a folder that `qca make-questions` filled. Columns are of the picture, from 0 to 1. The
center of a region is the mean of its columns, its width their standard deviation. The overlap is the sum over columns
of the smaller of the two shares: 0 for regions side by side, 1 for equal columns. The numbers are medians.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling_qca.training.files.run_files import write_json

KIND = "side"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for argument in arguments.data:
        name, equals, folder = argument.partition("=")
        if not equals:
            parser.error(f"{argument!r} is no NAME=FOLDER")
        targets = side_targets(Path(folder))
        if not len(targets):
            parser.error(f"{folder}: no question of the kind {KIND!r} has a relevance map")
        medians = [np.median(values) for values in column_statistics(targets)]
        rows.append([name, f"{len(targets):,}", *(f"{value:.2f}" for value in medians)])
    columns = [f"`{KIND}` questions of", "questions", "distance of the centers", "width of a region", "overlap"]
    write_json(arguments.output, {"tables": [{"columns": columns, "rows": rows}]})


def side_targets(folder: Path) -> NDArray[np.float64]:
    """[questions, 2, rows, columns] of the `side` questions in `folder`."""
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    with np.load(folder / "train_relevance.npz") as maps:
        mask = maps["mask"]
        numbers = maps["row"] if "row" in maps else np.arange(len(mask))
    return mask[[kinds[number] == KIND for number in numbers]].astype(np.float64)


def column_statistics(targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """
    Args:
        targets: `[n, 2, rows, columns]`

    Returns:
        The distance of the centers, the mean width of the two regions, and their overlap, each `[n]`.
    """
    shares = targets.sum(axis=2) / targets.sum(axis=(2, 3))[..., None]  # [n, 2, columns]
    places = (np.arange(shares.shape[-1]) + 0.5) / shares.shape[-1]
    centers = shares @ places
    widths = np.sqrt((shares * (places - centers[..., None]) ** 2).sum(axis=-1))
    return np.abs(centers[:, 0] - centers[:, 1]), widths.mean(axis=1), shares.min(axis=1).sum(axis=-1)


if __name__ == "__main__":
    main()
