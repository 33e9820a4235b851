"""The whole job in minutes on a CPU: generated scenes, training from scratch, answers, and where the model looked."""

from pathlib import Path
from typing import Any

import numpy as np

from modeling_qca.overlay_qca import strip

from ..evaluation.checkpoint import load_pipeline
from ..fitting.model_factory import CONFIGURATION
from ..fitting.recipe import Recipe, load_recipe
from ..fitting.splits import load_splits
from ..fitting.training_run import train
from ..supervision.scenes import write_scenes

RECIPE = CONFIGURATION / "recipes" / "demo.yaml"
TRAIN_SCENES, VALIDATION_SCENES = 3000, 250
PICTURES = 4
PICTURE_SIDE = 320  # pixels


def run_demo(output_dir: Path, seed: int) -> dict[str, Any]:
    """
    Args:
        output_dir: gets `scenes/`, `checkpoint/`, the overlays and `report.md`.
        seed: of the scenes and of the training.

    Returns:
        The results of `train.train`.
    """
    data, checkpoint = output_dir / "scenes", output_dir / "checkpoint"
    write_scenes(data, {"train": TRAIN_SCENES, "validation": VALIDATION_SCENES}, seed)
    recipe = load_recipe(RECIPE, {"data": str(data), "output_dir": str(checkpoint), "seed": str(seed)})
    results = train(recipe)
    pictures = draw_examples(output_dir, checkpoint, recipe)
    (output_dir / "report.md").write_text(_report(results, pictures))
    return results


def draw_examples(output_dir: Path, checkpoint: Path, recipe: Recipe) -> list[Path]:
    """For a few held-out scenes: the scene, and where the model looked for two questions about different places."""
    pairs: dict[str, tuple[str, str]] = {}
    first: dict[str, tuple[str, list[Any]]] = {}
    files: dict[str, str] = {}
    for row in load_splits(recipe)[1].select_columns(["image", "image_id", "question", "relevance"]):
        image_id, target = row["image_id"], row["relevance"][-1]
        files[image_id] = row["image"]["path"]
        if not np.any(target) or image_id in pairs:
            continue
        question, other = first.setdefault(image_id, (row["question"], target))
        if not np.any(np.multiply(target, other)):
            pairs[image_id] = (question, row["question"])
    pipeline = load_pipeline(str(checkpoint))
    pictures: list[Path] = []
    for image_id in list(pairs)[:PICTURES]:
        looks: Any = [look.fit(PICTURE_SIDE) for look in pipeline.look(files[image_id], list(pairs[image_id]))]
        pictures.append(output_dir / f"look-{image_id}.png")
        strip([looks[0].image, *(look.overlay() for look in looks)]).save(pictures[-1])
    return pictures


def _report(results: dict[str, Any], pictures: list[Path]) -> str:
    accuracy, attention = results["metrics"]["accuracy"], results["attention"]["pointing"]
    baselines = results["baselines"]
    lines = [
        "# Demo",
        "",
        f"{results['data']['rows']} questions about {results['data']['images']} held-out scenes; trained in "
        f"{results['cost']['training_seconds']:.0f} s.",
        "",
        "| | accuracy |",
        "| --- | --- |",
        *(f"| {name.replace('_', ' ')} | {values['accuracy']:.3f} |" for name, values in baselines.items()),
        f"| this model | {accuracy:.3f} |",
        "",
        "| pointing game | |",
        "| --- | --- |",
        *(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in attention.items()),
        "",
        *(f"![{picture.stem}]({picture.name})" for picture in pictures),
    ]
    return "\n".join(lines) + "\n"
