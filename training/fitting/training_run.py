"""From a recipe to a trained checkpoint with its results beside it."""

import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import save_model
from transformers import EvalPrediction, TrainerCallback, set_seed
from transformers.trainer_callback import ProgressCallback

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline

from ..confidence.abstention import Abstention, check_abstain_answer
from ..data.collator import QuestionCollator
from ..data.image_features import ImageFeatureCache, image_fingerprint
from ..data.images import image_key, read_image
from ..data.streams import repeat_and_shuffle
from ..data.text_features import TextFeatureCache
from ..data.vocabulary import vocabulary_reach
from ..evaluation.accuracy import majority_accuracy
from ..evaluation.answer_metrics import validate_metrics
from ..evaluation.evaluation import evaluate_model
from ..evaluation.evaluation_data import count_images
from ..evaluation.predictions import milliseconds_per_question
from ..evaluation.provenance import provenance
from ..files.run_files import OVERLAY, QUESTIONS, REFERENCE_WEIGHTS, RESULTS, write_json
from ..supervision.detection.word_maps import add_word_maps
from .adapters import adapt
from .callbacks import (
    EarlyStopping,
    LinearRelevanceWeight,
    PrintProgress,
    SaveOnInterrupt,
    TrainingClock,
    last_complete_checkpoint,
)
from .data_check import inspect_splits
from .map_log import MapLog, check_map_log, spread_rows
from .model_factory import build_model, training_answers
from .parameter_groups import freeze
from .recipe import Recipe
from .reference_model import reference_model
from .run_checks import (
    check_arguments,
    runnable_arguments,
    tokenize_splits,
    warn_of_missing_maps,
    warn_of_unknown_answers,
)
from .run_folder import (
    Baseline,
    check_finished_rows,
    claim_folder,
    describe,
    finished_results,
    images_trained_before,
    remember_run,
)
from .splits import Splits, measured_on, read_splits
from .trainer import QCATrainer, whole_weights

logger = logging.getLogger(__name__)

EXAMPLE_SIDE = 384  # pixels of the longer side
WITHOUT_HOPS = {"vision_conditioning_layers": None, "token_budget": None, "num_attention_layers": 0}


class TrainingStoppedError(Exception):
    """Training stopped on request, its progress saved."""


def train(
    recipe: Recipe, baseline: Baseline | None = None, show: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """
    Train and evaluate the model that `recipe` describes. The same call again continues a stopped run, and returns the
    results of a finished one.

    Args:
        baseline: train a baseline in the model's place: `blank_images` shows the same gray picture with every
            question; `reference_model` trains the reference model (no checkpoint, only `reference_model.safetensors`).
        show: is called with each of the last lines of `qca check` before training, except for a stream.

    Returns:
        The results. They are also in `results.json` in the recipe's `output_dir`, beside the checkpoint.

    Raises:
        ValueError: the recipe, its data and its model do not fit together, or the run in `output_dir` had other rows.
        FloatingPointError: the loss is not a number; the message has the step and the questions.
        TrainingStoppedError: after Ctrl-C, with the step that was saved.
    """
    if (finished := finished_results(recipe, baseline)) is not None:
        check_finished_rows(recipe, baseline)
        logger.warning("%s is finished already; remove it to train anew", recipe.output_dir)
        return finished
    validate_metrics(recipe.metrics)
    check_arguments(recipe.training_arguments())
    if recipe.log_maps:
        check_map_log(recipe.training_arguments())
    arguments, splits = runnable_arguments(recipe), read_splits(recipe)
    if before := images_trained_before(recipe):
        count_images(sorted(before), splits.validation, "trained")
    origin = provenance(splits.validation, **measured_on(recipe), device=arguments.device)
    if baseline == "blank_images":
        splits = splits.with_blank_images()
    run = TrainingRun(recipe, splits, baseline)
    if show is not None and arguments.should_save and not recipe.streaming:
        for line in inspect_splits(recipe, splits, run.answers).summary():
            show(line)
    results = run.train()
    results["baselines"] |= _baselines(recipe, splits)
    results |= origin
    results["data"]["vocabulary"] = run.vocabulary()
    results |= {"seeds": [arguments.seed], "recipe": describe(recipe), "baseline": baseline}
    if arguments.should_save:
        write_json(recipe.output_dir / RESULTS, results)
    return results


class TrainingRun:
    """One model of a recipe, from its rows to its checkpoint and results.

    Args:
        recipe: its `output_dir` gets the checkpoint.
        splits: the rows.
        baseline: see [`train`].
    """

    def __init__(self, recipe: Recipe, splits: Splits, baseline: Baseline | None = None):
        self.recipe, self.splits, self.baseline = recipe, splits, baseline
        self.arguments = runnable_arguments(recipe)
        self.answers = training_answers(recipe, splits.answered)
        check_abstain_answer(recipe.abstain_answer, self.answers)
        self.base_folder = recipe.output_dir / "base"  # the model before LoRA: the run's own weights have it merged

    def train(self) -> dict[str, Any]:
        """Prepare, build, fit, save and evaluate; returns the results, without those of other models."""
        self._prepare_folder()
        set_seed(self.arguments.seed)
        warn_of_unknown_answers(self.recipe, self.splits, self.answers)
        self._build()
        clock = self._fit()
        trained_parameters = sum(weight.numel() for weight in self.trained.parameters() if weight.requires_grad)
        self._save()
        results = self._evaluate()
        results["cost"] = {
            "trained_parameters": trained_parameters,
            "training_seconds": round(clock.seconds, 1),
            "milliseconds_per_question": round(
                milliseconds_per_question(self.model, self.splits.validation, self.collator), 1
            ),
        }
        return results

    def vocabulary(self) -> dict[str, Any]:
        """The number of classes, and the share of each split that they can answer."""
        rule, normalize = self.recipe.answer_rule, self.recipe.normalize_answers
        rows = {"train": self.splits.answered, "validation": self.splits.validation}
        reach = {name: vocabulary_reach(of["answers"], self.answers, rule, normalize) for name, of in rows.items()}
        return {"answers": len(self.answers), **reach}

    def _prepare_folder(self) -> None:
        warn_of_missing_maps(self.recipe, self.splits)
        claim_folder(self.recipe, self.arguments.should_save, self.baseline, self.answers, self.splits)
        if self.arguments.should_save:
            remember_run(self.recipe, self.splits, self.answers)

    def _build(self) -> None:
        recipe, arguments = self.recipe, self.arguments
        self.model: Any
        self.model, self.processor = build_model(recipe, self.answers)
        tokens = tokenize_splits(self.processor, self.splits)
        whole_epochs = arguments.max_steps <= 0 and arguments.num_train_epochs >= 1
        cached = whole_epochs and "text" in recipe.freeze and self.baseline != "reference_model"
        self.asked = tokens if cached else []  # questions that are certain to come
        freeze(self.model, recipe.freeze)
        features = None
        if recipe.cache_image_features:
            splits: list[Any] = [self.splits.train, self.splits.validation]
            features = cache_features(self.model.to(arguments.device), self.processor, splits, half=arguments.bf16)
            if recipe.object_words:
                self.splits = dataclasses.replace(self.splits, train=self._with_word_maps(features))
        supervision, rule = recipe.attention_supervision, (recipe.answer_rule, recipe.normalize_answers)
        self.collator = QuestionCollator(
            self.processor, self.model.config, supervision, features, *rule, with_question_ids=True
        )
        if recipe.lora_rank is not None and arguments.should_save:
            save_checkpoint(self.model, self.processor, self.base_folder)
        self.trained: Any = adapt(self.model, recipe.lora_rank)
        freeze(self.trained, recipe.freeze)  # also the adapters, and the modules that PEFT unfroze
        if self.baseline == "reference_model":
            self.trained = reference_model(self.model)

    def _with_word_maps(self, features: ImageFeatureCache) -> datasets.Dataset:
        assert isinstance(self.splits.train, datasets.Dataset)  # a stream has no cached features
        hops = self.model.config.num_attention_layers
        return add_word_maps(self.splits.train, self.recipe.object_words, features.read, features.grid, hops)

    def _fit(self) -> TrainingClock:
        interrupt, clock = SaveOnInterrupt(), TrainingClock()
        trainer = self._trainer([interrupt, clock])
        if self.asked and not trainer.is_fsdp_enabled:  # under FSDP, every process must run the same modules
            autocast = torch.bfloat16 if self.arguments.bf16 else torch.float16 if self.arguments.fp16 else None
            self.collator.text_features = TextFeatureCache(self.model, self.asked, autocast)
        with interrupt:
            trainer.train(resume_from_checkpoint=last_complete_checkpoint(self.arguments.output_dir))
        if interrupt.interrupted:
            raise TrainingStoppedError(
                f"stopped at step {trainer.state.global_step}; the same command goes on from there"
            )
        if trainer.is_fsdp_enabled:
            self._gather()
        self.wait_for_everyone = trainer.accelerator.wait_for_everyone
        return clock

    def _trainer(self, callbacks: list[TrainerCallback]) -> QCATrainer:
        recipe, arguments, rows = self.recipe, self.arguments, self.splits.train
        if recipe.early_stopping_patience is not None:
            callbacks.append(EarlyStopping(recipe.early_stopping_patience))
        if recipe.relevance_loss_schedule == "linear":
            callbacks.append(LinearRelevanceWeight(self.model.config.relevance_loss_weight))
        trainer = QCATrainer(
            self.trained,
            arguments,
            data_collator=self.collator,
            train_dataset=repeat_and_shuffle(rows, arguments.seed) if recipe.streaming else rows,
            eval_dataset=self.splits.validation,
            processing_class=self.processor,
            compute_metrics=batch_accuracy,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
            callbacks=callbacks,
            questions_per_image=recipe.questions_per_image,
            learning_rates=recipe.learning_rates,
            ema_decay=recipe.ema_decay,
        )
        if recipe.log_maps and self.baseline is None:
            trainer.add_callback(MapLog(trainer, self.processor, spread_rows(self.splits.validation, recipe.log_maps)))
        if not (sys.stderr.isatty() or arguments.disable_tqdm):  # a bar would fill a log file
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(PrintProgress())
        return trainer

    def _gather(self) -> None:
        """Put the weights that FSDP sharded into a whole model on every process."""
        weights = whole_weights(self.trained)
        self.model = QCAForVisualQuestionAnswering(self.model.config)
        self.trained = adapt(self.model.to(self.arguments.device), self.recipe.lora_rank)
        self.trained.load_state_dict(weights)

    def _save(self) -> None:
        folder, should_save = self.recipe.output_dir, self.arguments.should_save
        if self.recipe.lora_rank is not None:
            if should_save:
                self.trained.active_peft_config.base_model_name_or_path = str(self.base_folder)
                self.trained.save_pretrained(folder / "adapter")
            self.model = self.trained.merge_and_unload()
        if self.baseline == "reference_model":
            self.model = self.trained
            if should_save:
                save_model(self.trained, str(folder / REFERENCE_WEIGHTS))
        elif should_save:
            save_checkpoint(self.model, self.processor, folder)
        self.wait_for_everyone()  # the next stage reads these files

    def _evaluate(self) -> dict[str, Any]:
        arguments, rows, folder = self.arguments, self.splits.validation, self.recipe.output_dir
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=arguments.bf16):
            results, details = evaluate_model(
                self.model,
                rows,
                self.collator,
                arguments.seed,
                self.recipe.metrics,
                arguments.per_device_eval_batch_size,
                Abstention(abstain_answer=self.recipe.abstain_answer),
            )
        if arguments.should_save:
            details.to_parquet(folder / QUESTIONS)
            if results["attention"] and self.baseline != "reference_model":
                _, _, best = max(zip(details["score"], details["confidence"], range(len(details)), strict=True))
                _draw_example(self.model, self.processor, rows[best], folder / OVERLAY)
        return results


def _baselines(recipe: Recipe, splits: Splits) -> dict[str, dict[str, float]]:
    """The accuracies of the majority answer, and of the recipe's `baselines`."""
    majority = majority_accuracy(splits.answered, splits.validation, recipe.answer_rule, recipe.normalize_answers)
    results = {"majority": {"accuracy": majority}}
    for name in recipe.baselines:
        if name != "image_mean" or not is_image_mean(recipe):
            results[name] = _train_baseline(name, recipe, splits)
    return results


def _train_baseline(name: str, recipe: Recipe, splits: Splits) -> dict[str, float]:
    """Accuracies of the same recipe without hops; `question_only` also sees blank images."""
    variant = dataclasses.replace(
        recipe,
        attention_supervision="none",
        object_words=[],
        log_maps=0,
        config={**recipe.config, **WITHOUT_HOPS, "zoom_regions": 0},
        arguments={**recipe.arguments, "output_dir": str(recipe.output_dir / "baselines" / name)},
    )
    results = TrainingRun(variant, splits.with_blank_images() if name == "question_only" else splits).train()
    return results["metrics"] | {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}


def is_image_mean(recipe: Recipe) -> bool:
    """Whether the recipe's model is its own `image_mean` baseline: it has no hops, conditioning or token budget."""
    # A checkpoint may have conditioning or a budget that the recipe does not name.
    unsaid = {} if recipe.model else {"vision_conditioning_layers": None, "token_budget": None}
    return {**unsaid, **recipe.config}.items() >= WITHOUT_HOPS.items()


def cache_features(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, splits: list[datasets.Dataset], half: bool
) -> ImageFeatureCache:
    """The frozen vision encoder's features of every image of `splits`, stored in the cache folder of `datasets`.

    Raises:
        ValueError: two splits use an image id for two images.
    """
    rows: dict[str, Any] = {}
    for split in splits:
        for image_id, index in {image_id: index for index, image_id in enumerate(split["image_id"])}.items():
            row = split[index]
            known = rows.setdefault(image_id, row)
            here, there = image_key(row["image"]), image_key(known["image"])
            if here != there and image_fingerprint(image_id, row) != image_fingerprint(image_id, known):
                raise ValueError(
                    f"image_id {image_id!r} is of image {there} in the training rows, but of {here} in those of "
                    "validation; give every image an id of its own, or train without `cache_image_features`"
                )
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "qca_image_features"
    return ImageFeatureCache(folder, model, processor, rows, half)


def save_checkpoint(model: QCAForVisualQuestionAnswering, processor: QCAProcessor, folder: Path) -> None:
    """Save weights, config, processor and the code that loads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def batch_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The mean score of the chosen answers; labels are answer indices or a score for each answer."""
    best, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if labels.ndim == 1:
        return {"accuracy": float((best == labels).mean())}
    return {"accuracy": float(np.take_along_axis(labels, best[:, None], axis=1).mean())}


def _draw_example(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, row: dict[str, Any], file: Path
) -> None:
    pipeline = QCAVisualQuestionAnsweringPipeline(model=model, processor=processor)
    looks: Any = pipeline.look(read_image(row), row["question"], top_k=1)
    looks.fit(EXAMPLE_SIDE).overlay().save(file)
