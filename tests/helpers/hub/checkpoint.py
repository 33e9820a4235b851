"""A tiny checkpoint as training leaves it: model, processor, results.json and overlay.png."""

import copy
import json
from pathlib import Path
from typing import Any

from helpers.tiny import save_tiny_model, tiny_image
from modeling_qca import QCAForVisualQuestionAnswering

_RESULTS: dict[str, Any] = {
    "metrics": {"accuracy": {"mean": 0.7281, "std": 0.0123, "seeds": 3}, "wups_0.9": 0.7344},
    "baselines": {
        "majority": {"accuracy": 0.2105},
        "question_only": {"accuracy": 0.4085, "wups_0.9": 0.4, "where": 0.1309},
    },
    "attention": {
        "pointing_game": {"model": 0.8174, "center": 0.3127, "uniform": 0.2531, "shuffled_question": 0.3082},
        "energy": {"model": 0.6412, "uniform": 0.2531},
    },
    "per_question_type": {"where": {"accuracy": 0.5731, "rows": 310}, "side|which": {"accuracy": 0.7772, "rows": 924}},
    "data": {"name": "Rooms", "split": "dev", "rows": 1234, "images": 85, "fingerprint": "c0ffee12"},
    "seeds": [7, 8, 9],
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "command": "qca train recipes/rooms.yaml",
    "cost": {"milliseconds_per_question": 3.217, "trained_parameters": 71845, "device": "CPU, 2 threads"},
    "recipe": {"learning_rate": 2e-5, "num_train_epochs": 40},
}


def example_results(**changed: Any) -> dict[str, Any]:
    """Results in the form of `modeling_qca.hub_card.card`, with invented numbers."""
    return copy.deepcopy(_RESULTS) | changed


def save_checkpoint(folder: Path, results: dict[str, Any] | None = None) -> QCAForVisualQuestionAnswering:
    model = save_tiny_model(folder)
    (folder / "results.json").write_text(json.dumps(results or example_results()))
    tiny_image(seed=3).save(folder / "overlay.png")
    return model
