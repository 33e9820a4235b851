"""`qca demo`: scenes are generated, a model is trained on them from scratch, and its relevance maps are drawn."""

from pathlib import Path
from typing import Any

import numpy as np

from modeling_qca.overlay_qca import strip

from ..evaluation.checkpoint import load_pipeline
from ..files.markdown import markdown_table
from ..files.run_files import format_value
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
        The results of `training_run.train`.
    """
    data, checkpoint = output_dir / "scenes", output_dir / "checkpoint"
    write_scenes(data, {"train": TRAIN_SCENES, "validation": VALIDATION_SCENES}, seed)
    recipe = load_recipe(RECIPE, {"data": str(data), "output_dir": str(checkpoint), "seed": str(seed)})
    results = train(recipe)
    pictures = draw_examples(output_dir, checkpoint, recipe)
    (output_dir / "report.md").write_text(_report(results, pictures))
    return results


def draw_examples(output_dir: Path, checkpoint: Path, recipe: Recipe) -> list[Path]:
    """Draw a few validation scenes, each beside the relevance maps of two questions about different regions."""
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
        found: Any = pipeline.look(files[image_id], list(pairs[image_id]))
        explanations = [explanation.fit(PICTURE_SIDE) for explanation in found]
        pictures.append(output_dir / f"look-{image_id}.png")
        strip([explanations[0].image, *(each.overlay() for each in explanations)]).save(pictures[-1])
    return pictures


def _report(results: dict[str, Any], pictures: list[Path]) -> str:
    data, seconds = results["data"], results["cost"]["training_seconds"]
    answered = {**results["baselines"], "this_model": results["metrics"]}
    parts = [
        "# Demo",
        f"{data['rows']} questions about {data['images']} validation scenes; trained in {seconds:.0f} s.",
        _table("accuracy", {name: values["accuracy"] for name, values in answered.items()}),
        _table("pointing accuracy", results["attention"]["pointing"]),
        "\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _table(title: str, values: dict[str, float]) -> str:
    rows = [[name.replace("_", " "), format_value(value)] for name, value in values.items()]
    return markdown_table(["", title], rows)
