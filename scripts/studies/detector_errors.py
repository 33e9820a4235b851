"""Measure what errors of a detector cost: train on maps that are shifted, missing, or have a false box beside.

    python scripts/studies/detector_errors.py RECIPE.yaml RUNS --output docs/results/detector_errors.json \\
        [--seeds 0 1 2] [--conditions NAME ...] [--key value ...]

RECIPE.yaml trains on a table with true relevance maps; `--key value` replaces a key of it. Only the maps of training
rows get errors, so that pointing accuracy is measured on true ones. An object has the same error in all questions
about its picture. The same command goes on where it stopped.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from qca_cli.options import split_overrides
from scipy import ndimage

from modeling_qca.training.files.markdown import mean_cell
from modeling_qca.training.files.run_files import write_json
from modeling_qca.training.fitting.recipe import Recipe, load_recipe
from modeling_qca.training.fitting.splits import Splits, read_splits
from modeling_qca.training.fitting.training_run import TrainingRun

FALSE_SIDE = (0.1, 0.5)  # sides of a false box, as shares of those of the picture


class Errors(NamedTuple):
    """Standard deviation of a shift, as a share of the picture's sides; shares of maps missed and with a false box."""

    shift: float = 0.0
    missed: float = 0.0
    false: float = 0.0


CONDITIONS = {
    "true maps": Errors(),
    "shifted by 5 %": Errors(shift=0.05),
    "shifted by 10 %": Errors(shift=0.1),
    "shifted by 20 %": Errors(shift=0.2),
    "25 % missed": Errors(missed=0.25),
    "50 % missed": Errors(missed=0.5),
    "25 % with a false box": Errors(false=0.25),
    "50 % with a false box": Errors(false=0.5),
    "shifted by 10 %, 25 % missed, 25 % with a false box": Errors(0.1, 0.25, 0.25),
    "no maps": Errors(missed=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    arguments, rest = parser.parse_known_args()
    recipe = load_recipe(arguments.recipe, split_overrides(rest)[1])
    runs = json.loads(arguments.output.read_text())["runs"] if arguments.output.exists() else {}
    splits = read_splits(recipe)
    if not any(splits.validation["relevance"]):
        raise SystemExit(f"{recipe.data}: no validation row has a relevance map, so pointing cannot be measured")
    for seed in arguments.seeds:
        for name in arguments.conditions:
            measured = runs.setdefault(name, {})
            if str(seed) not in measured:
                folder = arguments.runs / name
                measured[str(seed)] = train_with_errors(recipe, splits, CONDITIONS[name], seed, folder)
                write_json(arguments.output, {"runs": runs, "tables": [table(runs)]})


def train_with_errors(recipe: Recipe, splits: Splits, errors: Errors, seed: int, folder: Path) -> dict[str, float]:
    """Accuracy, pointing accuracy, the same of shuffled questions, and the share of training rows with maps."""
    run = {"output_dir": str(folder / f"seed{seed}"), "seed": seed}
    recipe = dataclasses.replace(recipe, arguments={**recipe.arguments, **run}, baselines=[])
    features = splits.train.features
    train = splits.train.map(lambda row: {"relevance": with_errors(row, errors, seed)}, features=features)
    results = TrainingRun(recipe, dataclasses.replace(splits, train=train)).train()
    return {
        "accuracy": results["metrics"]["accuracy"],
        "pointing": results["attention"]["pointing"]["model"],
        "pointing_shuffled": results["attention"]["pointing"]["shuffled_question"],
        "with_maps": sum(map(bool, train["relevance"])) / len(train),
    }


def with_errors(row: Mapping[str, Any], errors: Errors, seed: int) -> NDArray[np.float32] | None:
    """The maps [T, rows, columns] of a row as a detector with errors would give them; None without any target."""
    if not row["relevance"]:
        return None
    maps = [_with_error(np.asarray(one, np.float32), row["image_id"], errors, seed) for one in row["relevance"]]
    return np.stack(maps) if any(one.any() for one in maps) else None


def _with_error(relevance: NDArray[np.float32], image_id: str, errors: Errors, seed: int) -> NDArray[np.float32]:
    key = blake2b(f"{seed} {image_id}".encode() + relevance.tobytes(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(key))
    missed, false = generator.random(2) < (errors.missed, errors.false)
    offset = generator.normal(size=2) * errors.shift * relevance.shape
    start, side = generator.random(2), generator.uniform(*FALSE_SIDE, size=2)
    if missed:
        return np.zeros_like(relevance)
    moved = ndimage.shift(relevance, offset, order=1, prefilter=False)
    moved = moved if moved.any() else relevance  # never wholly outside
    if false:
        first = start * (1 - side)
        edges = zip(first, first + side, relevance.shape, strict=True)
        across = [_covered(begin * cells, end * cells, cells) for begin, end, cells in edges]
        moved = np.maximum(moved, np.outer(*across) * relevance.max())
    return moved.astype(np.float32)


def _covered(begin: float, end: float, cells: int) -> NDArray[np.float64]:
    """[cells]: the share of each cell of a side that an interval covers, in cells."""
    places = np.arange(cells)
    return (np.minimum(places + 1, end) - np.maximum(places, begin)).clip(0, 1)


def table(runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Means and standard deviations over the seeds."""
    measures = ("with_maps", "accuracy", "pointing", "pointing_shuffled")
    rows = []
    for name, by_seed in runs.items():
        values = [[measured[measure] for measured in by_seed.values()] for measure in measures]
        rows.append([name, str(len(by_seed)), *map(mean_cell, values)])
    titles = ["rows with maps", "accuracy", "pointing", "pointing, shuffled"]
    return {"columns": ["maps of the training rows", "seeds", *titles], "rows": rows}


if __name__ == "__main__":
    main()
