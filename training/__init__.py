"""Training, from data to a measured checkpoint. The names below are what a Python user needs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.collator import QuestionCollator
    from .data.rows import load_rows
    from .data.vocabulary import build_vocabulary
    from .evaluation.evaluation import evaluate_checkpoint as evaluate
    from .fitting.adapters import lora_config
    from .fitting.recipe import load_recipe
    from .fitting.trainer import QCATrainer
    from .fitting.training_run import train
    from .prediction.predictor import Predictor

# Imported on first use: a part such as `files` or a metric does not need the trainer.
_PLACES = {
    "Predictor": ("prediction.predictor", "Predictor"),
    "QCATrainer": ("fitting.trainer", "QCATrainer"),
    "QuestionCollator": ("data.collator", "QuestionCollator"),
    "build_vocabulary": ("data.vocabulary", "build_vocabulary"),
    "evaluate": ("evaluation.evaluation", "evaluate_checkpoint"),
    "load_recipe": ("fitting.recipe", "load_recipe"),
    "load_rows": ("data.rows", "load_rows"),
    "lora_config": ("fitting.adapters", "lora_config"),
    "train": ("fitting.training_run", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(f".{module}", __name__), attribute)


__all__ = [
    "Predictor",
    "QCATrainer",
    "QuestionCollator",
    "build_vocabulary",
    "evaluate",
    "load_recipe",
    "load_rows",
    "lora_config",
    "train",
]
