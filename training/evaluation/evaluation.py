"""How well a model answers, and whether it looked where the question says; beside what knows less."""

import dataclasses
import hashlib
import json
import logging
import platform
import re
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import datasets
import evaluate
import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader
from transformers.utils import cached_file

from modeling_qca import QCAForVisualQuestionAnswering

from ..data.answers import AnswerRule, answer_scores
from ..data.collator import QuestionCollator
from ..data.rows import checked_options, data_name, load_rows, split_name
from ..files.run_files import QUESTIONS, RECIPE, RESULTS, write_json
from ..metrics.attention_quality.attention_quality import attention_quality, center_maps, shuffled_rows, uniform_maps
from .checkpoint import load_pipeline
from .device import device_name

logger = logging.getLogger(__name__)

ATTENTION_MEASURES = ("pointing", "energy", "iou", "spearman", "nss", "auc_judd", "cc", "kl", "sim")
METRICS = ("vqa_accuracy", "wups")
BATCH_SIZE = 128  # questions
PACKAGES = ("modeling-qca", "torch", "transformers", "datasets", "peft", "accelerate")


@torch.no_grad()
def predict(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    batch_size: int = BATCH_SIZE,
    description: str = "Answering",
) -> dict[str, list[Any]]:
    """
    Answer every row of `rows` (images not decoded), in order.

    Returns:
        Columns `answer`, `confidence` and `relevance`: `[T, rows, columns]` float32, the mean over heads.
    """
    was_training = model.training
    model.eval()
    columns: dict[str, list[Any]] = {"answer": [], "confidence": [], "relevance": []}
    several = model.config.problem_type == "multi_label_classification"
    loader = DataLoader(rows, batch_size, collate_fn=collator)
    for batch in track(loader, description, total=len(loader), transient=True):
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
            if name not in ("labels", "target_relevance", "question_ids")
        }
        outputs = model(**inputs)
        scores = outputs.logits.sigmoid() if several else outputs.logits.softmax(dim=-1)
        best = scores.max(dim=-1)
        columns["answer"] += [model.config.id2label[index] for index in best.indices.tolist()]
        columns["confidence"] += best.values.tolist()
        columns["relevance"] += list(outputs.relevance.mean(dim=2).unflatten(-1, outputs.grid).float().cpu().numpy())
    model.train(was_training)
    return columns


@torch.no_grad()
def milliseconds_per_question(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    batch_size: int = 8,
    rounds: int = 3,
) -> float:
    """Median time of the whole model on batches of questions about different images, spread over `rows`."""
    spread = range(0, len(rows), max(1, len(rows) // batch_size))[:batch_size]
    batch = dataclasses.replace(collator, features=None, attention_supervision="none", with_question_ids=False)(
        [rows[index] | {"image_id": str(index)} for index in spread]  # an image shared by several costs less
    )
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    was_training = model.training
    model.eval()
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        model(**inputs).logits.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    model.train(was_training)
    return 1000 * statistics.median(seconds[1:]) / len(spread)


def answer_accuracy(
    answers: Sequence[str], rows: datasets.Dataset, answer_rule: AnswerRule, normalize: bool
) -> np.ndarray:
    """Score in [0, 1] of each answer: agreement with the row's annotators, see `answers.answer_scores`."""
    return np.array(
        [
            answer_scores(expected, answer_rule, normalize).get(answer, 0.0)
            for answer, expected in zip(answers, rows["answers"], strict=True)
        ]
    )


def majority_accuracy(
    train: datasets.Dataset, rows: datasets.Dataset, answer_rule: AnswerRule, normalize: bool
) -> float:
    """Accuracy of the one answer that scores best on `train`."""
    totals: dict[str, float] = defaultdict(float)
    for answers in train["answers"]:
        for answer, score in answer_scores(answers, answer_rule, normalize).items():
            totals[answer] += score
    majority = max(totals, key=totals.__getitem__)
    return float(answer_accuracy([majority] * len(rows), rows, answer_rule, normalize).mean())


def by_type(values: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    """Mean of `values` for each question type that has a name."""
    groups: dict[str, list[float]] = defaultdict(list)
    for value, kind in zip(values, types, strict=True):
        if kind:
            groups[kind].append(float(value))
    return {kind: float(np.mean(group)) for kind, group in sorted(groups.items())}


def attention_table(
    maps: Sequence[np.ndarray], rows: datasets.Dataset, shuffled: Mapping[int, np.ndarray]
) -> dict[str, dict[str, float]]:
    """
    Quality of the last hop's maps on the rows that have a target, beside controls that know less.

    Args:
        maps: `[T, rows, columns]` of each row.
        shuffled: the same for another question about the same image, of the rows that have one.

    Returns:
        For each measure of `attention_quality` its mean under `model`, `center`, `uniform` and, where `shuffled` has
        any, `shuffled_question`; as `maps` how many each mean is of. Empty where no row has a target, or the
        model has no hop.
    """
    chosen = [index for index, target in enumerate(rows["relevance"]) if target is not None and np.any(target)]
    if not chosen or not len(maps[0]):
        return {}
    grid = maps[0].shape[1:]
    targets = np.stack([_resized(rows[index]["relevance"][-1], grid) for index in chosen])
    measured = {
        "model": np.stack([maps[index][-1] for index in chosen]),
        "center": center_maps(len(chosen), *grid),
        "uniform": uniform_maps(len(chosen), *grid),
    }
    scores = {name: attention_quality(values, targets) for name, values in measured.items()}
    asked = [place for place, index in enumerate(chosen) if index in shuffled]
    if asked:
        other = np.stack([shuffled[chosen[place]][-1] for place in asked])
        scores["shuffled_question"] = attention_quality(other, targets[asked])
    counts: dict[str, float] = {name: len(values[ATTENTION_MEASURES[0]]) for name, values in scores.items()}
    return {"maps": counts} | {
        measure: {name: float(values[measure].mean()) for name, values in scores.items()}
        for measure in ATTENTION_MEASURES
    }


def shuffle_questions(rows: datasets.Dataset, seed: int) -> tuple[datasets.Dataset, list[int]]:
    """Those of `rows` about whose image there is another question, each asked one of the others; and their indices."""
    targets, sources = shuffled_rows(rows["image_id"], seed)
    other = dict(zip(targets.tolist(), sources.tolist(), strict=True))
    indices, questions = sorted(other), rows["question"][:]
    shuffled = rows.select(indices).remove_columns("question")
    return shuffled.add_column("question", [questions[other[index]] for index in indices]), indices


def compute_metrics(names: Sequence[str], answers: Sequence[str], rows: datasets.Dataset) -> dict[str, Any]:
    """
    Args:
        names: of `METRICS`.
        answers: given to `rows`.

    Returns:
        `vqa_accuracy` of the official evaluation, and with `_yes/no`, `_number` and `_other` that of each answer type;
        `wups_0.9`, `wups_0.0` and, where only the whole set is right, `set_accuracy`; `first_answer_accuracy` and
        `first_answer_wups_0.9` as if the first answer of a set were the only one.

    Raises:
        ValueError: for a name that is none of them.
        ImportError: where WUPS lacks WordNet; the message says how to fetch it.
    """
    results: dict[str, Any] = {}
    for name in names:
        if name not in METRICS:
            raise ValueError(f"there is no metric {name!r}; the metrics are {', '.join(METRICS)}")
        metric = evaluate.load(str(Path(__file__).parents[1] / "metrics" / name))
        if name == "wups":
            predicted = [[answer] for answer in answers]
            sets = [[answer["answer"] for answer in given] for given in rows["answers"]]
            measured = metric.compute(predictions=predicted, references=sets)
            results["set_accuracy"] = measured["accuracy"]
            results |= {threshold: measured[threshold] for threshold in ("wups_0.9", "wups_0.0")}
            measured = metric.compute(predictions=predicted, references=[right[:1] for right in sets])
            results["first_answer_accuracy"] = measured["accuracy"]
            results["first_answer_wups_0.9"] = measured["wups_0.9"]
        else:
            measured = metric.compute(predictions=answers, references=rows["answers"])
            kinds = measured["per_answer_type"].items()
            results |= {name: measured["accuracy"], **{f"{name}_{kind}": accuracy for kind, accuracy in kinds}}
    return results


def validate_metrics(names: Sequence[str]) -> None:
    """What is missing for [`compute_metrics`] is better said before the long part than after it.

    Raises:
        ValueError, ImportError: as there.
    """
    compute_metrics(names, ["yes"], datasets.Dataset.from_dict({"answers": [[{"answer": "no", "count": 1}]]}))


def evaluate_model(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    seed: int = 0,
    metrics: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, Any], datasets.Dataset]:
    """
    Accuracy, attention quality and [`compute_metrics`] of `model` on `rows`.

    Returns:
        `metrics` (accuracy), `per_question_type`, `attention` (see [`attention_table`]; empty, with a warning, where
        the image processor crops), and the rows' ids, answers, confidences and scores as a data set.
    """
    rule, normalize = collator.answer_rule, collator.normalize_answers
    predicted = predict(model, rows, collator, batch_size)
    scores = answer_accuracy(predicted["answer"], rows, rule, normalize)
    results: dict[str, Any] = {
        "metrics": {"accuracy": float(scores.mean()), **compute_metrics(metrics, predicted["answer"], rows)},
        "per_question_type": {
            kind: {"accuracy": value} for kind, value in by_type(scores, rows["question_type"]).items()
        },
        "attention": {},
        "baselines": {},
    }
    if model.config.num_attention_layers:
        shuffled_maps: dict[int, np.ndarray] = {}
        shuffled, indices = shuffle_questions(rows, seed)
        if indices:
            answered = predict(model, shuffled, collator, batch_size, description="Shuffled questions")
            wrong_question = answer_accuracy(answered["answer"], shuffled, rule, normalize)
            results["baselines"]["shuffled_questions"] = {"accuracy": float(wrong_question.mean())}
            shuffled_maps = dict(zip(indices, answered["relevance"], strict=True))
        results["attention"] = attention_table(predicted["relevance"], rows, shuffled_maps)
        if results["attention"] and collator.processor.image_processor.do_center_crop:
            logger.warning(
                "attention is not measured: the image processor crops, so that its maps do not cover the whole "
                "picture as the targets do; set `do_center_crop=False`"
            )
            results["attention"] = {}
    details = rows.select_columns(["question_id", "image_id", "question", "question_type"])
    details = details.add_column("answer", predicted["answer"])
    details = details.add_column("confidence", predicted["confidence"])
    return results, details.add_column("score", scores.tolist())


def evaluate_checkpoint(
    checkpoint: str,
    data: str,
    split: str,
    options: Mapping[str, Any],
    output_dir: Path,
    seed: int,
    report: Path | None = None,
    metrics: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """
    Args:
        checkpoint: folder or Hub id.
        data, split, options: of `dataset.load_rows`; `answer_rule` and `normalize_answers` among the options are of
            `answers.answer_scores`, and those that the checkpoint was trained by where they are not given.
        output_dir: gets `results.json` and `questions.parquet`.
        seed: of the shuffled-question control.
        report: page to write, see `report.write_report`.
        metrics: see [`compute_metrics`].
        batch_size: questions answered at once; it changes no answer.

    Returns:
        The results. The majority baseline is the best single answer of this very split, a bound no constant passes.

    Raises:
        ValueError: for a metric or an `answer_rule` there is none of, or where no question of the split has an answer.
        ImportError: see [`compute_metrics`].
    """
    validate_metrics(metrics)
    options = dict(checked_options(options))
    pipeline = load_pipeline(checkpoint)
    rule, normalize = (options.pop(name, value) for name, value in _answer_options(checkpoint).items())
    if rule not in get_args(AnswerRule):
        raise ValueError(f"`answer_rule` is {rule!r}, not one of {', '.join(get_args(AnswerRule))}")
    if not isinstance(normalize, bool):
        raise ValueError(f"`normalize_answers` is {normalize!r}, neither true nor false")
    rows = load_rows(data, split=split, **options).cast_column("image", datasets.Image(decode=False)).sort("image_id")
    if not any(rows["answers"]):
        raise ValueError(f"{data}: no question of its {split} split has an answer to compare with")
    collator = QuestionCollator(
        pipeline.processor, pipeline.model.config, answer_rule=rule, normalize_answers=normalize
    )
    results, details = evaluate_model(pipeline.model, rows, collator, seed, metrics, batch_size)
    results["baselines"]["majority"] = {"accuracy": majority_accuracy(rows, rows, rule, normalize)}
    results["cost"] = {
        "milliseconds_per_question": round(milliseconds_per_question(pipeline.model, rows, collator), 1)
    }
    measured_on = provenance(rows, data_name(data, options), split_name(split, options), pipeline.device)
    results |= measured_on | {"seeds": [seed]}
    results["data"] |= {"answer_rule": rule, "normalize_answers": normalize}
    output_dir.mkdir(parents=True, exist_ok=True)
    details.to_parquet(output_dir / QUESTIONS)
    write_json(output_dir / RESULTS, results)
    if report is not None:
        from .report import write_report

        write_report(report, results, details, rows, pipeline)
    return results


def _answer_options(checkpoint: str) -> dict[str, Any]:
    """`answer_rule` and `normalize_answers` of the training, as its files beside the checkpoint say; or the defaults.

    Raises:
        ValueError: where such a file cannot be read.
    """
    options: dict[str, Any] = {"answer_rule": "consensus", "normalize_answers": True}
    for source in (RESULTS, RECIPE):  # of a run; of a baseline
        file = cached_file(checkpoint, source, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            try:
                content = json.loads(Path(file).read_text(encoding="utf-8"))
                recipe = content if source == RECIPE else content.get("recipe", {})
                return {name: recipe.get(name, value) for name, value in options.items()}
            except (ValueError, AttributeError, RecursionError) as error:
                raise ValueError(f"{file} is of no training: {error}") from error
    return options


def provenance(rows: datasets.Dataset, name: str, split: str, device: torch.device) -> dict[str, Any]:
    """What a reader needs to repeat a measurement: data with its fingerprint, versions, device, command."""
    digest = hashlib.sha256()
    for question_id, question, answers in zip(rows["question_id"], rows["question"], rows["answers"], strict=True):
        digest.update(repr((question_id, question, answers)).encode())
    return {
        "data": {
            "name": name,
            "split": split,
            "rows": len(rows),
            "images": len(set(rows["image_id"])),
            "fingerprint": digest.hexdigest()[:16],
        },
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "device": device_name(device),
        "command": command_line(),
    }


def command_line() -> str:
    """The command that is running."""
    return shlex.join([Path(sys.argv[0]).name, *map(_without_folder, sys.argv[1:])])


def _without_folder(argument: str) -> str:
    """`argument` without the folders of absolute paths: where they lie on this machine says nothing elsewhere."""
    return re.sub(r"(?<![^\s={:'\"])/(?:[^/\s]+/)*", "", argument)


def _resized(target: Any, grid: tuple[int, int]) -> np.ndarray:
    values = torch.as_tensor(np.asarray(target, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(values, size=tuple(grid), mode="area")[0, 0].numpy()
