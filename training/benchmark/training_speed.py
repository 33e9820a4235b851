"""`qca bench-training`: the time that cached image features and questions grouped by image save in an epoch.

The compared ways take a few steps in turn, so that a machine that slows down slows both. Results are medians and
quartiles over steps; reading and collating the batch is included. An epoch is the median times its number of steps.
"""

import dataclasses
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.progress import Progress
from torch.utils.data import DataLoader
from transformers import set_seed

from ..data.collator import QuestionCollator, tokenize_questions
from ..data.rows import data_name
from ..data.sampler import ImageGroupedSampler
from ..data.text_features import TextFeatureCache
from ..evaluation.accuracy import answer_accuracy
from ..evaluation.device import synchronize
from ..evaluation.predictions import predict
from ..evaluation.provenance import provenance
from ..files.run_files import write_json
from ..fitting.model_factory import build_model, training_answers
from ..fitting.parameter_groups import freeze
from ..fitting.recipe import Recipe
from ..fitting.splits import load_splits
from ..fitting.trainer import QCATrainer
from ..fitting.training_run import cache_features

PASSES = 5  # over the batches; the first warms up and is not timed
FROZEN_BATCHES, TRAINED_BATCHES = 3, 2
TRAINED_BATCH_SIZE, QUESTIONS_PER_IMAGE = 32, 8
VALIDATION_ROWS = 256


def measure_training(recipe: Recipe, output: Path) -> dict[str, Any]:
    """
    Time training steps in two comparisons: as `recipe` says, with and without cached features of the frozen encoder;
    and with both encoders trained, in batches of `TRAINED_BATCH_SIZE` questions, with and without grouping by image.

    Args:
        recipe: freezes `vision`; names its data and encoders.
        output: JSON file to write.

    Returns:
        The content of `output`. `cached_features` also compares the results of both ways: the largest relative
        difference of their losses, and their accuracies on the same validation questions.

    Raises:
        ValueError: the recipe trains the vision encoder, or streams.
    """
    if "vision" not in recipe.freeze or recipe.streaming:
        raise ValueError(
            "bench-training measures cached image features: use a recipe that has `vision` in `freeze` and does not "
            "stream"
        )
    train_rows, validation_rows = load_splits(recipe)
    arguments = {**recipe.arguments, "per_device_train_batch_size": TRAINED_BATCH_SIZE}
    trained = dataclasses.replace(recipe, freeze=[], cache_image_features=False, arguments=arguments)
    with Progress(transient=True) as progress:
        frozen = {
            name: _Way(dataclasses.replace(recipe, cache_image_features=cached), train_rows, FROZEN_BATCHES)
            for name, cached in (("cached", True), ("uncached", False))
        }
        cached_features = _compare(frozen, progress) | _differences(frozen, validation_rows)
        grouped = {
            name: _Way(dataclasses.replace(trained, questions_per_image=number), train_rows, TRAINED_BATCHES)
            for name, number in (("grouped", QUESTIONS_PER_IMAGE), ("ungrouped", 1))
        }
        grouped_questions = _compare(grouped, progress)
    settings = recipe.training_arguments()
    name = data_name(recipe.data, {"format": recipe.format, **recipe.data_options})
    results = {
        "training_speed": {"cached_features": cached_features, "grouped_questions": grouped_questions},
        "settings": {"threads": torch.get_num_threads(), "bf16": settings.bf16},
        **provenance(train_rows, name, "train", settings.device),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, results)
    return results


class _Way:
    """A model that trains on the first batches of an epoch, several times."""

    def __init__(self, recipe: Recipe, rows: datasets.Dataset, batches: int):
        self.recipe, self.rows = recipe, len(rows)
        arguments = recipe.training_arguments(eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
        set_seed(arguments.seed)
        self.model: Any
        self.model, processor = build_model(recipe, training_answers(recipe, rows))
        freeze(self.model, recipe.freeze)
        self.batch_size = arguments.per_device_train_batch_size
        order = ImageGroupedSampler(rows["image_id"], recipe.questions_per_image, arguments.seed)
        used = rows.select(list(itertools.islice(order, self.batch_size * batches)))
        features = None
        if recipe.cache_image_features:
            features = cache_features(self.model.to(arguments.device), processor, [used], arguments.bf16)
        rule = (recipe.answer_rule, recipe.normalize_answers)
        self.fresh = QuestionCollator(processor, self.model.config, recipe.attention_supervision, None, *rule, True)
        if "text" in recipe.freeze:
            tokens = tokenize_questions(processor, used["question"][:], used["question_id"][:])
            self.model.to(arguments.device)
            self.fresh.text_features = TextFeatureCache(
                self.model, [tokens], torch.bfloat16 if arguments.bf16 else None
            )
        collator = dataclasses.replace(self.fresh, image_features=features)
        self.loader = DataLoader(used, self.batch_size, collate_fn=collator)
        self.trainer = QCATrainer(self.model, arguments, data_collator=self.fresh, train_dataset=used)
        if "text" in recipe.freeze:
            tokens = tokenize_questions(processor, used["question"][:], used["question_id"][:])
            collator.text_features = TextFeatureCache(self.model, [tokens], torch.bfloat16 if arguments.bf16 else None)
        self.wrapped, self.optimizer = self.trainer.accelerator.prepare(self.model, self.trainer.create_optimizer())
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.images: list[int] = []

    def take_steps(self) -> float:
        """One step on each batch; returns the seconds they took."""
        device = self.trainer.args.device
        batches = iter(self.loader)
        for _ in range(len(self.loader)):
            torch.manual_seed(len(self.seconds))  # the same dropout in both ways
            synchronize(device)
            start = time.perf_counter()
            batch = {name: _on(device, value) for name, value in next(batches).items()}
            loss = self.trainer.compute_loss(self.wrapped.train(), batch)
            self.trainer.accelerator.backward(loss)
            self.trainer.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.trainer.args.max_grad_norm)
            self.optimizer.step()
            self.wrapped.zero_grad()
            synchronize(device)
            self.seconds.append(time.perf_counter() - start)
            self.losses.append(loss.item())
            shown = batch.get("image_index")  # without it, each question has an image of its own
            self.images.append(len(batch["labels"]) if shown is None else len(torch.unique(shown)))
        return sum(self.seconds[-len(self.loader) :])

    def summary(self) -> dict[str, Any]:
        timed = self.seconds[len(self.loader) :]
        quartiles = statistics.quantiles(timed, n=4, method="inclusive")
        steps = -(-self.rows // self.batch_size)
        return {
            "questions_a_batch": self.batch_size,
            "images_a_batch": statistics.mean(self.images),
            "steps": len(self.seconds),
            "timed_steps": len(timed),
            "step_s": {"median": quartiles[1], "quartile_1": quartiles[0], "quartile_3": quartiles[2]},
            "steps_an_epoch": steps,
            "epoch_s": quartiles[1] * steps,  # extrapolated
        }


def _compare(ways: dict[str, _Way], progress: Progress) -> dict[str, Any]:
    """The times of two ways, the faster one first, and the speedup."""
    bar = progress.add_task(" and ".join(ways), total=PASSES)
    seconds = []  # of each pass
    for _ in range(PASSES):
        seconds.append([way.take_steps() for way in ways.values()])
        progress.advance(bar)
    quartiles = statistics.quantiles([slow / fast for fast, slow in seconds[1:]], n=4, method="inclusive")
    speedup = {"median": quartiles[1], "quartile_1": quartiles[0], "quartile_3": quartiles[2]}
    return {"speedup": speedup} | {name: way.summary() for name, way in ways.items()}


def _differences(ways: dict[str, _Way], rows: datasets.Dataset) -> dict[str, Any]:
    """How much the losses and answers of two ways differ that should learn the same."""
    rows = rows.select(range(min(VALIDATION_ROWS, len(rows))))
    losses = np.array([way.losses for way in ways.values()])
    answers = [predict(way.model, rows, way.fresh)["answer"] for way in ways.values()]
    recipe = next(iter(ways.values())).recipe
    scores = [answer_accuracy(given, rows, recipe.answer_rule, recipe.normalize_answers) for given in answers]
    return {
        "largest_relative_difference_of_losses": float((np.abs(losses[0] - losses[1]) / losses[1]).max()),
        "validation_questions": len(rows),
        "same_answers": float(np.mean([one == other for one, other in zip(*answers, strict=True)])),
        "accuracy": {name: float(score.mean()) for name, score in zip(ways, scores, strict=True)},
    }


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
