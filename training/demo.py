"""The whole job in minutes on a CPU: generated scenes, training from scratch, answers, and where the model looked."""

from pathlib import Path
from typing import Any

import numpy as np

from modeling_qca.overlay_qca import strip

from .ask import load_pipeline
from .building import CONFIGURATION
from .recipe import Recipe, load_recipe
from .scenes import write_scenes
from .train import load_splits, train

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
    """For a few held-out scenes, where the model looked for two questions, side by side."""
    rows = load_splits(recipe)[1]
    questions: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    for row in rows.select_columns(["image", "image_id", "question", "relevance"]):
        if np.any(row["relevance"][-1]):
            questions.setdefault(row["image_id"], []).append(row["question"])
            files[row["image_id"]] = row["image"]["path"]
    pipeline = load_pipeline(str(checkpoint))
    pictures: list[Path] = []
    for image_id in [image_id for image_id in questions if len(questions[image_id]) > 1][:PICTURES]:
        asked = questions[image_id]
        looks: Any = pipeline.look(files[image_id], [asked[0], asked[-1]])
        pictures.append(output_dir / f"look-{image_id}.png")
        strip([look.fit(PICTURE_SIDE).overlay() for look in looks]).save(pictures[-1])
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
