"""Train the model's zoom on drawn scenes with small objects, beside the whole picture at several sizes.

    PYTHONPATH=scripts python -m zoom.trained SCENES DEMO RUNS --output docs/results/zoom_trained.json

SCENES is a folder to draw to. DEMO is the checkpoint of `qca demo`, from which every row goes on. RUNS gets the runs.
Rows of results that are in the output file already stay, and are not trained again.

The controls choose windows by chance or from the center outwards, in training and in validation.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.evaluation.checkpoint import load_checkpoint, load_processor
from modeling_qca.training.evaluation.device import device_name
from modeling_qca.training.evaluation.predictions import forward_batches
from modeling_qca.training.evaluation.provenance import command_line
from modeling_qca.training.files.run_files import write_json
from modeling_qca.training.fitting.model_factory import CONFIGURATION
from modeling_qca.training.fitting.recipe import Recipe, load_recipe
from modeling_qca.training.fitting.splits import load_splits
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import SIZES, SMALL_GRID, write_small_scenes
from modeling_qca.zoom_qca import Windows

RECIPE = CONFIGURATION / "recipes" / "zoom.yaml"
SCENES = {"train": 1500, "validation": 250}
Choice = Callable[[Windows, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def by_chance(windows: Windows, relevance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows at random, as [`Windows.choose`] gives them."""
    places = torch.rand(len(relevance), len(windows.inside)).argsort(dim=1)[:, :count]
    return places, torch.ones(places.shape)


def from_the_center(windows: Windows, relevance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows nearest to the center, as [`Windows.choose`] gives them."""
    middles = (windows.boxes[:, :2] + windows.boxes[:, 2:]) / 2
    nearest = (middles - 0.5).norm(dim=1).argsort(stable=True)[:count].expand(len(relevance), -1)
    return nearest, torch.ones(nearest.shape)


class Row(NamedTuple):
    """
    Args:
        side: of the pictures in pixels.
        zoom: keys of the config.
        choose: windows, in place of the question.
    """

    side: int
    zoom: Mapping[str, int] = {"zoom_factor": 1}
    choose: Choice | None = None


ROWS = {
    "whole picture, 160 px": Row(160),
    "whole picture, 256 px": Row(256),
    "whole picture, 512 px": Row(512),
    "1 window": Row(1024, {}),
    "1 window, by chance": Row(1024, {}, by_chance),
    "1 window, center": Row(1024, {}, from_the_center),
    "2 windows": Row(1024, {"zoom_regions": 2}),
    "2 windows, by chance": Row(1024, {"zoom_regions": 2}, by_chance),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scenes", "demo", "runs"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if not (arguments.scenes / "validation.csv").exists():
        write_small_scenes(arguments.scenes, SCENES, seed=0)
    for seed in arguments.seeds:
        for name in arguments.rows:
            if str(seed) in read_runs(arguments.output).get(name, {}):
                continue
            folder = arguments.runs / name.replace(",", "") / f"seed{seed}"
            measured = measure(ROWS[name], arguments.scenes, arguments.demo, folder, seed)
            print(name, seed, json.dumps(measured), flush=True)
            runs = read_runs(arguments.output)  # anew: another process may write other rows
            runs.setdefault(name, {})[str(seed)] = measured
            origin = {"device": device_name(torch.device("cpu")), "command": command_line()}
            write_json(arguments.output, {"runs": runs, **origin, "tables": [table(runs)]})


def read_runs(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Row -> seed -> what was measured."""
    return json.loads(file.read_text())["runs"] if file.exists() else {}


def measure(row: Row, scenes: Path, demo: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Accuracy, also by the size of the object, pointing accuracy, choice accuracy and cost of one run."""
    keys = {"data": scenes, "model": demo, "output_dir": folder, "seed": seed, "baselines": []}
    keys |= {"image_size": [row.side, row.side], **row.zoom}
    recipe = load_recipe(RECIPE, {name: str(value) for name, value in keys.items()})
    with chosen_by(row.choose):
        results = train(recipe)
        measured = {
            "accuracy": results["metrics"]["accuracy"],
            **{kind: results["per_question_type"][kind]["accuracy"] for kind in SIZES},
            "pointing": results["attention"]["pointing"]["model"],
        }
        return measured | looked(recipe, folder)


@contextmanager
def chosen_by(choose: Choice | None) -> Iterator[None]:
    """The model chooses windows by `choose` while this lasts."""
    by_question = Windows.choose
    Windows.choose = choose or by_question  # type: ignore[method-assign]
    try:
        yield
    finally:
        Windows.choose = by_question  # type: ignore[method-assign]


def looked(recipe: Recipe, folder: Path) -> dict[str, float]:
    """How often the windows show the object, patches a question and GFLOP of one question about one picture."""
    model, processor = load_checkpoint(str(folder)), load_processor(str(folder))
    model.eval()
    rows = load_splits(recipe)[1]
    collator = QuestionCollator(processor, model.config, recipe.attention_supervision)
    one = {name: value for name, value in collator([rows[0]]).items() if name not in ("labels", "target_relevance")}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        outputs = model(**one)
    cost = {"gflop": counter.get_total_flops() / 1e9, "patches": float(outputs.relevance.shape[-1])}
    if outputs.zoom_boxes is None:
        return cost
    cost["patches"] *= (1 + model.config.zoom_regions) / model.config.zoom_factor**2
    with torch.inference_mode():
        batches = [each.zoom_boxes.numpy() for each in forward_batches(model, rows, collator, 128)]
    place = np.stack([np.argwhere(np.asarray(target[-1]) > 0)[0] for target in rows["relevance"]])
    x, y = (place[:, ::-1].T + 0.5) / SMALL_GRID
    left, top, right, bottom = np.moveaxis(np.concatenate(batches), -1, 0)  # [B, K] each
    shown = (left < x[:, None]) & (x[:, None] < right) & (top < y[:, None]) & (y[:, None] < bottom)
    return cost | {"choice": float(shown.any(axis=1).mean())}


def table(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Means and standard deviations over the seeds."""
    columns = ["row", "seeds", "accuracy", *SIZES, "pointing", "object in a window", "patches", "GFLOP"]
    names = ("accuracy", *SIZES, "pointing", "choice")
    rows = []
    for name in (name for name in ROWS if name in runs):
        of = list(runs[name].values())
        measured = [_mean([run[key] for run in of if key in run]) for key in names]
        rows.append([name, str(len(of)), *measured, f"{of[0]['patches']:.0f}", f"{of[0]['gflop']:.2f}"])
    return {"columns": columns, "rows": rows}


def _mean(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
