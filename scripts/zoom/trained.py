"""Train the model's zoom on drawn scenes with small objects, beside the whole picture at several sizes.

    PYTHONPATH=scripts python -m zoom.trained WORK --output docs/results/zoom_trained.json \\
        --vision-encoder facebook/dinov2-small --text-encoder sentence-transformers/all-MiniLM-L6-v2

WORK gets scenes and runs. Both encoders stay frozen. Rows of results that are in the output file already stay, and are
not trained again.

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
from modeling_qca.training.files.markdown import mean_cell
from modeling_qca.training.files.run_files import write_json
from modeling_qca.training.fitting.model_factory import CONFIGURATION
from modeling_qca.training.fitting.parameter_groups import freeze
from modeling_qca.training.fitting.recipe import Recipe, load_recipe
from modeling_qca.training.fitting.splits import load_splits
from modeling_qca.training.fitting.training_run import cache_features, train
from modeling_qca.training.inspection.question_only import question_only_accuracy
from modeling_qca.training.supervision.scenes import SIZES, SMALL_MAP, write_small_scenes
from modeling_qca.zoom_qca import Windows

RECIPE = CONFIGURATION / "recipes" / "zoom.yaml"
SCENES = {"train": 180, "validation": 40}
Choice = Callable[[Windows, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def by_chance(windows: Windows, relevance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows at random, as [`Windows.choose`] gives them."""
    places = torch.rand(len(relevance), len(windows.inside), device=relevance.device).argsort(dim=1)[:, :count]
    return places, torch.ones_like(places, dtype=relevance.dtype)


def from_the_center(windows: Windows, relevance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows nearest to the center, as [`Windows.choose`] gives them."""
    middles = (windows.boxes[:, :2] + windows.boxes[:, 2:]) / 2
    nearest = (middles - 0.5).norm(dim=1).argsort(stable=True)[:count].expand(len(relevance), -1)
    return nearest, torch.ones_like(nearest, dtype=relevance.dtype)


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
    "whole picture, 224 px": Row(224),
    "whole picture, 448 px": Row(448),
    "1 window": Row(896, {}),
    "1 window, by chance": Row(896, {}, by_chance),
    "1 window, center": Row(896, {}, from_the_center),
    "2 windows": Row(896, {"zoom_regions": 2}),
    "2 windows, by chance": Row(896, {"zoom_regions": 2}, by_chance),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--vision-encoder", required=True)
    parser.add_argument("--text-encoder", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    scenes = arguments.work / "scenes"
    if not (scenes / "validation.csv").exists():
        write_small_scenes(scenes, SCENES, seed=0)
    keys = {"data": scenes, "vision_encoder": arguments.vision_encoder, "text_encoder": arguments.text_encoder}
    for seed in arguments.seeds:
        for name in arguments.rows:
            if str(seed) in read_runs(arguments.output).get(name, {}):
                continue
            folder = arguments.work / "runs" / name.replace(",", "") / f"seed{seed}"
            measured = measure(ROWS[name], keys | {"output_dir": folder, "seed": seed})
            print(name, seed, json.dumps(measured), flush=True)
            runs = read_runs(arguments.output)  # anew: another process may write other rows
            runs.setdefault(name, {})[str(seed)] = measured
            origin = {"device": device_name(torch.device("cpu")), "command": command_line()}
            write_json(arguments.output, {"runs": runs, **origin, "tables": [table(runs)]})


def read_runs(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Row -> seed -> what was measured."""
    return json.loads(file.read_text())["runs"] if file.exists() else {}


def measure(row: Row, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy, also by the size of the object, pointing accuracy, choice accuracy and cost of one run."""
    changed = {
        "baselines": [],
        "eval_strategy": "no",
        "save_strategy": "no",
        "image_size": [row.side, row.side],
        **row.zoom,
    }
    recipe = load_recipe(RECIPE, {name: str(value) for name, value in {**keys, **changed}.items()})
    with chosen_by(row.choose):
        results = train(recipe)
        measured = {
            "accuracy": results["metrics"]["accuracy"],
            **{kind: results["per_question_type"][kind]["accuracy"] for kind in SIZES},
            "majority": results["baselines"]["majority"]["accuracy"],
            "question alone": question_only_accuracy(
                *load_splits(recipe), recipe.answer_rule, recipe.normalize_answers
            ),
            "shuffled questions": results["baselines"]["shuffled_questions"]["accuracy"],
            "pointing": results["attention"]["pointing"]["model"],
            "pointing, shuffled question": results["attention"]["pointing"]["shuffled_question"],
        }
        return measured | looked(recipe)


@contextmanager
def chosen_by(choose: Choice | None) -> Iterator[None]:
    """The model chooses windows by `choose` while this lasts."""
    by_question = Windows.choose
    Windows.choose = choose or by_question  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Windows.choose = by_question  # type: ignore[method-assign]


def looked(recipe: Recipe) -> dict[str, float]:
    """How often the windows show the object, patches a question and GFLOP of one question about one picture."""
    model, processor = load_checkpoint(str(recipe.output_dir)), load_processor(str(recipe.output_dir))
    model.eval()
    rows = load_splits(recipe)[1]
    collator = QuestionCollator(processor, model.config)
    one = {name: value for name, value in collator([rows[0]]).items() if name != "labels"}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        outputs = model(**one)
    cost = {"gflop": counter.get_total_flops() / 1e9, "patches": float(outputs.relevance.shape[-1])}
    if outputs.zoom_boxes is None:
        return cost
    cost["patches"] *= (1 + model.config.zoom_regions) / model.config.zoom_factor**2
    freeze(model, recipe.freeze)
    collator.image_features = cache_features(model, processor, load_splits(recipe), half=False)
    with torch.inference_mode():
        batches = [each.zoom_boxes.numpy() for each in forward_batches(model, rows, collator, 128)]
    targets = np.array([target[-1] for target in rows["relevance"]])
    place = np.stack(np.unravel_index(targets.reshape(len(targets), -1).argmax(axis=1), targets.shape[1:]))
    y, x = (place + 0.5) / SMALL_MAP
    left, top, right, bottom = np.moveaxis(np.concatenate(batches), -1, 0)  # [B, K] each
    shown = (left < x[:, None]) & (x[:, None] < right) & (top < y[:, None]) & (y[:, None] < bottom)
    return cost | {"choice": float(shown.any(axis=1).mean())}


def table(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Means and standard deviations over the seeds."""
    columns = ["row", "seeds", "accuracy", "shuffled question", *SIZES, "pointing", "shuffled question"]
    columns += ["object in a window", "patches", "GFLOP"]
    names = ("accuracy", "shuffled questions", *SIZES, "pointing", "pointing, shuffled question", "choice")
    rows = []
    for name in ("majority", "question alone"):
        rows.append(
            [
                name,
                "",
                mean_cell([run[name] for of in runs.values() for run in of.values()][:1]),
                *[""] * (len(columns) - 3),
            ]
        )
    for name in (name for name in ROWS if name in runs):
        of = list(runs[name].values())
        measured = [mean_cell([run[key] for run in of if key in run]) for key in names]
        rows.append([name, str(len(of)), *measured, f"{of[0]['patches']:.0f}", f"{of[0]['gflop']:.2f}"])
    return {"columns": columns, "rows": rows}


if __name__ == "__main__":
    main()
