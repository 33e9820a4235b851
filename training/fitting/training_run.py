"""From a recipe to a checkpoint with its results beside it."""

import dataclasses
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_model
from transformers import EvalPrediction, TrainerCallback, TrainingArguments, set_seed

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline

from ..data.answers import answer_scores
from ..data.collator import QuestionCollator, tokenize_questions
from ..data.formats import checked_options
from ..data.image_digests import image_digests
from ..data.image_features import ImageFeatureCache, image_fingerprint
from ..data.images import image_key, read_image
from ..data.rows import data_name, load_rows
from ..data.splits import group_key, parse_group_by, split_name
from ..data.streams import read_answers, repeat_and_shuffle
from ..data.text_features import cache_text_features
from ..data.vocabulary import vocabulary_reach
from ..evaluation.accuracy import best_single_answer, majority_accuracy
from ..evaluation.answer_metrics import validate_metrics
from ..evaluation.evaluation import evaluate_model
from ..evaluation.predictions import milliseconds_per_question
from ..evaluation.provenance import provenance
from ..files.run_files import DOCUMENT, FAITHFULNESS, OVERLAY, QUESTIONS, RECIPE, RESULTS, RUN, RUN_KEYS, write_json
from .callbacks import EarlyStopping, LinearRelevanceWeight, SaveOnInterrupt, TrainingClock, last_complete_checkpoint
from .model_factory import build_model, training_answers
from .parameter_groups import freeze
from .recipe import Recipe
from .reference_model import reference_model
from .trainer import QCATrainer, whole_weights

logger = logging.getLogger(__name__)

EXAMPLE_SIDE = 384  # pixels of the longer side
WITHOUT_HOPS = {"vision_conditioning_layers": None, "token_budget": None, "num_attention_layers": 0}
Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset
Baseline: TypeAlias = Literal["blank_images", "reference_model"]


class TrainingStoppedError(Exception):
    """Training stopped on request, its progress saved."""


def train(recipe: Recipe, baseline: Baseline | None = None) -> dict[str, Any]:
    """
    Train and evaluate what `recipe` describes; the same call again goes on where a stopped one was, and returns the
    results of a finished one.

    Args:
        baseline: train something that knows less instead, to compare with: `blank_images` shows every question the
            same gray picture, `reference_model` puts the reference model in the place of ours (no checkpoint, only
            `document.safetensors`).

    Returns:
        The results, which also stand in `results.json` in the recipe's `output_dir` beside the checkpoint.

    Raises:
        ValueError: where the recipe, its data and its model do not fit together.
        FloatingPointError: where the loss is not a number; the message has the step and the questions.
        TrainingStoppedError: after Ctrl-C, with the step it saved.
    """
    if (finished := finished_results(recipe, baseline)) is not None:
        logger.warning("%s is finished already; remove it to train anew", recipe.output_dir)
        return finished
    validate_metrics(recipe.metrics)
    train_rows, validation_rows = load_splits(recipe)
    data, options = recipe.data, {"format": recipe.format, **recipe.data_options}
    if recipe.validation_data is not None:
        data, options = recipe.validation_data, recipe.validation_options
    split = split_name("validation", {**_cut(recipe), **options})
    arguments = recipe.training_arguments()
    measured_on = provenance(validation_rows, data_name(data, options), split, arguments.device)
    if baseline == "blank_images":
        train_rows, validation_rows = _blank_images(train_rows), _blank_images(validation_rows)
    answered = read_answers(train_rows) if recipe.streaming else train_rows
    results = _train_one(recipe, train_rows, validation_rows, answered, baseline)
    rule, normalize = recipe.answer_rule, recipe.normalize_answers
    majority = majority_accuracy(answered, validation_rows, rule, normalize)
    results["baselines"]["majority"] = {"accuracy": majority}
    for name in recipe.baselines:
        if name != "image_mean" or not _is_image_mean(recipe):
            results["baselines"][name] = _baseline(name, recipe, train_rows, validation_rows, answered)
    vocabulary = results.pop("vocabulary")
    results |= measured_on
    results["data"]["vocabulary"] = vocabulary
    results |= {"seeds": [arguments.seed], "recipe": _described(recipe), "baseline": baseline}
    if arguments.should_save:
        write_json(recipe.output_dir / RESULTS, results)
    return results


def finished_results(recipe: Recipe, baseline: Baseline | None = None) -> dict[str, Any] | None:
    """What [`train`] left in the recipe's `output_dir`; None where that is unfinished, or of another recipe.

    Raises:
        ValueError: where the results there are of no training.
    """
    file = recipe.output_dir / RESULTS
    if not file.exists():
        return None
    results = json.loads(file.read_text())
    if "recipe" not in results:
        raise ValueError(f"{file} is of no training; give this recipe another `output_dir`")
    same = _completed(results["recipe"]) == _described(recipe) and results.get("baseline", baseline) == baseline
    return results if same else None


def load_splits(recipe: Recipe) -> tuple[Rows, datasets.Dataset]:
    """(train, validation) rows, their images not decoded; no group of rows is in both.

    Raises:
        ValueError: see `dataset.load_rows`; or where nothing is left to train on.
    """
    cut, options = _cut(recipe), checked_options(recipe.data_options)
    own: dict[str, Any] = {"format": recipe.format, "on_bad_image": recipe.on_bad_image, **options}
    if twice := sorted(cut.keys() & own.keys()):
        raise ValueError(f"`{twice[0]}` stands in the recipe and in its `data_options`; leave it out there")
    if recipe.validation_data is None:
        train_rows = load_rows(recipe.data, split="train", streaming=recipe.streaming, **cut, **own)
        validation_rows = load_rows(recipe.data, split="validation", **cut, **own)
    else:
        other = {"on_bad_image": recipe.on_bad_image, **checked_options(recipe.validation_options)}
        validation_rows = load_rows(recipe.validation_data, split="validation", **cut, **other)
        train_rows = load_rows(recipe.data, split="train", streaming=recipe.streaming, **own)
    if recipe.group_by is not None and (recipe.validation_data is not None or recipe.validation_ratio is None):
        train_rows = _outside_groups(train_rows, validation_rows, recipe.group_by)
    stored = datasets.Image(decode=False)
    by_image = validation_rows.sort("image_id")  # evaluation then encodes an image in one batch, not in every one
    return train_rows.cast_column("image", stored), by_image.cast_column("image", stored)


def _cut(recipe: Recipe) -> dict[str, Any]:
    """How validation rows are cut from those of training, where they are."""
    if recipe.validation_ratio is None:
        return {}
    return {"validation_ratio": recipe.validation_ratio, "group_by": recipe.group_by, "seed": recipe.data_seed}


def _outside_groups(train_rows: Rows, held_out: datasets.Dataset, group_by: str) -> Rows:
    column, divisor = parse_group_by(group_by)
    groups = {group_key(value, divisor) for value in held_out[column]}
    if isinstance(train_rows, datasets.IterableDataset):
        return train_rows.filter(lambda value: group_key(value, divisor) not in groups, input_columns=column)
    kept = [index for index, value in enumerate(train_rows[column]) if group_key(value, divisor) not in groups]
    if not kept:
        raise ValueError("every training row is of a group that validation holds out; nothing is left to train on")
    if left_out := len(train_rows) - len(kept):
        logger.warning(
            "%d of %d training rows are left out: validation has rows of the same `%s` (`group_by: null` keeps them)",
            *(left_out, len(train_rows), group_by),
        )
    return train_rows.select(kept)


def _train_one(
    recipe: Recipe,
    train_rows: Rows,
    validation_rows: datasets.Dataset,
    answered: datasets.Dataset,
    baseline: Baseline | None = None,
) -> dict[str, Any]:
    """`answered` are the training rows with their answers, which a stream is read through for once."""
    arguments, as_documented = recipe.training_arguments(), baseline == "reference_model"
    _warn_of_slow_bfloat16(arguments)
    _warn_of_no_maps(recipe, train_rows)
    answers = training_answers(recipe, answered)
    _claim_folder(recipe, arguments.should_save, {"baseline": baseline, "answers": answers})
    if arguments.should_save:
        write_json(recipe.output_dir / RUN, _run_memory(recipe, answers, train_rows, answered))
    set_seed(arguments.seed)
    for split, rows in (("train", answered), ("validation", validation_rows)):
        _warn_of_answers_outside(answers, rows, split, recipe)
    model: Any
    model, processor = build_model(recipe, answers)
    whole_epochs = arguments.max_steps <= 0 and arguments.num_train_epochs >= 1
    questions = []  # that a frozen encoder will be asked in any case
    for rows in (train_rows, validation_rows):
        if isinstance(rows, datasets.Dataset):  # what is too long is better said now than at the step that meets it
            for batch in rows.select_columns(["question", "question_id"]).iter(1000):
                tokens = tokenize_questions(processor, batch["question"], batch["question_id"])
                if rows is train_rows and whole_epochs and "text" in recipe.freeze:
                    questions.append(tokens)
    freeze(model, recipe.freeze)
    features = None
    if recipe.cache_image_features:
        splits = [train_rows, validation_rows]
        features = cache_features(model.to(arguments.device), processor, splits, half=arguments.bf16)
    collator = QuestionCollator(
        processor,
        model.config,
        recipe.attention_supervision,
        features,
        recipe.answer_rule,
        recipe.normalize_answers,
        with_question_ids=True,
    )
    base = recipe.output_dir / "base"  # what the adapter is of: the weights in the folder itself have it merged
    if recipe.lora_rank is not None and arguments.should_save:
        save_checkpoint(model, processor, base)
    trained = _adapted(model, recipe.lora_rank)
    freeze(trained, recipe.freeze)  # adapters too, and what PEFT has set free
    if as_documented:
        trained = reference_model(model)
    interrupt, clock = SaveOnInterrupt(), TrainingClock()
    callbacks: list[TrainerCallback] = [interrupt, clock]
    if recipe.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(recipe.early_stopping_patience))
    if recipe.relevance_loss_schedule == "linear":
        callbacks.append(LinearRelevanceWeight(model.config.relevance_loss_weight))
    trainer = QCATrainer(
        trained,
        arguments,
        data_collator=collator,
        train_dataset=repeat_and_shuffle(train_rows, arguments.seed) if recipe.streaming else train_rows,
        eval_dataset=validation_rows,
        processing_class=processor,
        compute_metrics=_accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
        callbacks=callbacks,
        questions_per_image=recipe.questions_per_image,
        learning_rates=recipe.learning_rates,
        ema_decay=recipe.ema_decay,
    )
    remember = "text" in recipe.freeze and not trainer.is_fsdp_enabled  # FSDP: processes must read equally often
    with interrupt, cache_text_features(model, remember, questions):
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(arguments.output_dir))
    if interrupt.interrupted:
        raise TrainingStoppedError(f"stopped at step {trainer.state.global_step}; the same command goes on from there")
    trained_parameters = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    if trainer.is_fsdp_enabled:
        weights = whole_weights(trained)
        model = QCAForVisualQuestionAnswering(model.config)
        trained = _adapted(model.to(arguments.device), recipe.lora_rank)
        trained.load_state_dict(weights)
    if recipe.lora_rank is not None:
        if arguments.should_save:
            trained.active_peft_config.base_model_name_or_path = str(base)
            trained.save_pretrained(recipe.output_dir / "adapter")
        model = trained.merge_and_unload()
    if as_documented:
        model = trained
        if arguments.should_save:
            save_model(trained, str(recipe.output_dir / DOCUMENT))
    elif arguments.should_save:
        save_checkpoint(model, processor, recipe.output_dir)
    trainer.accelerator.wait_for_everyone()  # the next stage reads what was saved
    with torch.autocast(model.device.type, torch.bfloat16, enabled=arguments.bf16):
        results, details = evaluate_model(
            model, validation_rows, collator, arguments.seed, recipe.metrics, arguments.per_device_eval_batch_size
        )
    if arguments.should_save:
        details.to_parquet(recipe.output_dir / QUESTIONS)
        if results["attention"] and not as_documented:
            _, _, best = max(zip(details["score"], details["confidence"], range(len(details)), strict=True))
            _draw_example(model, processor, validation_rows[best], recipe.output_dir / OVERLAY)
    results["vocabulary"] = {
        "answers": len(answers),
        "train": vocabulary_reach(answered["answers"], answers, recipe.answer_rule, recipe.normalize_answers),
        "validation": vocabulary_reach(
            validation_rows["answers"], answers, recipe.answer_rule, recipe.normalize_answers
        ),
    }
    results["cost"] = {
        "trained_parameters": trained_parameters,
        "training_seconds": round(clock.seconds, 1),
        "milliseconds_per_question": round(milliseconds_per_question(model, validation_rows, collator), 1),
    }
    return results


def _warn_of_slow_bfloat16(arguments: TrainingArguments) -> None:
    """A processor without arithmetic of its own for it computes bfloat16 number by number."""
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if arguments.bf16 and arguments.device.type == "cpu" and not native:
        logger.warning("this processor computes bfloat16 many times slower than float32: train with `--bf16 false`")


def _warn_of_no_maps(recipe: Recipe, rows: Rows) -> None:
    """Hops that nothing supervises learn little from few rows, and a recipe for maps is silent about their absence."""
    if recipe.attention_supervision != "none" and isinstance(rows, datasets.Dataset) and not any(rows["relevance"]):
        logger.warning(
            "`attention_supervision: %s`, but no training row has a relevance map, and hops that nothing supervises "
            "learn little: add maps, or train with `--attention_supervision none --num_attention_layers 0`",
            recipe.attention_supervision,
        )


def _claim_folder(recipe: Recipe, should_save: bool, further: dict[str, Any]) -> None:
    """Note in the run's folder which recipe it is of, and what `further` tells runs apart, so that no other goes on
    from its checkpoints, and remove what was measured of the model that the run replaces.

    Checkpoints without such a note, of an earlier release or moved here by hand, are taken to be this recipe's.

    Raises:
        ValueError: where there are checkpoints of another recipe.
    """
    note, described = recipe.output_dir / RECIPE, {**_described(recipe), **further}
    begun = {**further, **_completed(json.loads(note.read_text()))} if note.exists() else None
    checkpoint = last_complete_checkpoint(recipe.output_dir)
    if begun is None and checkpoint is not None:
        logger.warning("%s: nothing says which recipe it is of; going on from it", checkpoint)
    if begun not in (None, described) and checkpoint is not None:
        both = [{**of, **of.get("config", {}), **of.get("arguments", {})} for of in (begun, described)]
        names = (both[0].keys() | both[1].keys()) - {"config", "arguments"}
        different = sorted(name for name in names if both[0].get(name) != both[1].get(name))
        raise ValueError(
            f"{checkpoint} is of a run that differs in {', '.join(different)}: give this one another `output_dir`, or "
            "remove that folder to train anew"
        )
    if should_save:
        recipe.output_dir.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, QUESTIONS, OVERLAY, DOCUMENT, *FAITHFULNESS):
            (recipe.output_dir / name).unlink(missing_ok=True)
        if (recipe.output_dir / "adapter").exists():
            shutil.rmtree(recipe.output_dir / "adapter")
        write_json(note, described)


def _run_memory(recipe: Recipe, answers: list[str], train_rows: Rows, answered: datasets.Dataset) -> dict[str, Any]:
    """What `read_run` reads."""
    streamed = isinstance(train_rows, datasets.IterableDataset)
    images = None if streamed else sorted(image_digests(train_rows))
    own = {key: value for key, value in _described(recipe).items() if key in RUN_KEYS}
    majority = best_single_answer(answered, recipe.answer_rule, recipe.normalize_answers)
    known = {"split": "validation", "answers": answers, "majority_answer": majority, "training_images": images}
    return own | known


def _described(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _completed(description: dict[str, Any]) -> dict[str, Any]:
    """A stored description of a recipe; keys that it lacks, of a later release, have their defaults."""
    return {**_described(Recipe(data="", model="")), **description}


def _adapted(model: QCAForVisualQuestionAnswering, lora_rank: int | None) -> Any:
    if lora_rank is None:
        return model
    from peft import get_peft_model

    from .adapters import lora_config

    return get_peft_model(model, lora_config(model, r=lora_rank))


def _warn_of_answers_outside(answers: list[str], rows: datasets.Dataset, split: str, recipe: Recipe) -> None:
    """Say which questions no class can answer: they teach nothing and score nothing."""
    known = frozenset(answers)
    outside = [
        (question, [answer["answer"] for answer in given])
        for question, given in zip(rows["question_id"], rows["answers"], strict=True)
        if known.isdisjoint(answer_scores(given, recipe.answer_rule, recipe.normalize_answers))
    ]
    if outside:
        logger.warning(
            "%s: %d of %d questions have no answer in the vocabulary of %d, the first is %s (%s); see `vocabulary` "
            "and `normalize_answers`",
            *(split, len(outside), len(rows), len(answers), outside[0][0], ", ".join(outside[0][1])),
        )


def _baseline(
    name: str, recipe: Recipe, train_rows: Rows, validation_rows: datasets.Dataset, answered: datasets.Dataset
) -> dict[str, float]:
    """Accuracies of the same recipe without hops; `question_only` also sees a blank image every time."""
    if name == "question_only":
        train_rows, validation_rows = _blank_images(train_rows), _blank_images(validation_rows)
    variant = dataclasses.replace(
        recipe,
        attention_supervision="none",
        config={**recipe.config, **WITHOUT_HOPS},
        arguments={**recipe.arguments, "output_dir": str(recipe.output_dir / "baselines" / name)},
    )
    results = _train_one(variant, train_rows, validation_rows, answered)
    return results["metrics"] | {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}


def _is_image_mean(recipe: Recipe) -> bool:
    """Whether the model is its own baseline. What a recipe does not say of a checkpoint may be in that."""
    unsaid = {} if recipe.model else {"vision_conditioning_layers": None, "token_budget": None}
    return {**unsaid, **recipe.config}.items() >= WITHOUT_HOPS.items()


def cache_features(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, splits: list[datasets.Dataset], half: bool
) -> ImageFeatureCache:
    """The frozen vision encoder's features of every image of `splits`, kept beside the cache of `datasets`.

    Raises:
        ValueError: where two splits use an image id for two images.
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
    """Weights, config, processor and the code that loads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _draw_example(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, row: dict[str, Any], file: Path
) -> None:
    pipeline = QCAVisualQuestionAnsweringPipeline(model=model, processor=processor)
    looks: Any = pipeline.look(read_image(row), row["question"], top_k=1)
    looks.fit(EXAMPLE_SIDE).overlay().save(file)


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    best, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if labels.ndim == 1:
        return {"accuracy": float((best == labels).mean())}
    return {"accuracy": float(np.take_along_axis(labels, best[:, None], axis=1).mean())}


def _blank_images(rows: Rows) -> Rows:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, "PNG")
    blank = {"path": None, "bytes": buffer.getvalue()}
    if isinstance(rows, datasets.IterableDataset):
        return rows.map(lambda row: {"image": blank, "image_id": "blank"}, features=rows.features)
    count = len(rows)
    rows = rows.remove_columns(["image", "image_id"]).add_column("image_id", ["blank"] * count)
    return rows.add_column("image", [blank] * count).cast_column("image", datasets.Image(decode=False))
