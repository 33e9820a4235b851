"""`qca evaluate`: accuracy and relevance maps of a model on a data set, beside baselines and control maps."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import datasets
import numpy as np
from transformers.utils import cached_file

from modeling_qca import QCAForVisualQuestionAnswering

from ..data.answers import AnswerRule
from ..data.collator import QuestionCollator
from ..data.rows import checked_options, data_name, load_rows, split_name
from ..files.run_files import QUESTIONS, RECIPE, RESULTS, write_json
from .accuracy import answer_accuracy, by_type, majority_accuracy
from .answer_metrics import compute_metrics, validate_metrics
from .attention import attention_table, shuffle_questions
from .checkpoint import load_pipeline
from .predictions import BATCH_SIZE, milliseconds_per_question, predict
from .provenance import provenance

logger = logging.getLogger(__name__)


def evaluate_model(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    seed: int = 0,
    metrics: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, Any], datasets.Dataset]:
    """
    Accuracy, attention quality and further metrics of `model` on `rows`.

    Args:
        rows: images not decoded.
        collator: its `answer_rule` and `normalize_answers` score the answers.
        seed: of the shuffled-question control.
        metrics: see `answer_metrics.compute_metrics`.
        batch_size: questions answered at once.

    Returns:
        `metrics` (accuracy first), `per_question_type`, `attention` (see `attention.attention_table`) and `baselines`;
        and a data set of ids, question, answer, confidence, score and the expected answers of each row. `attention`
        is empty, with a warning, if the image processor crops.
    """
    rule, normalize = collator.answer_rule, collator.normalize_answers
    predicted = predict(model, rows, collator, batch_size)
    scores = answer_accuracy(predicted["answer"], rows, rule, normalize)
    attention: dict[str, dict[str, float]] = {}
    baselines: dict[str, dict[str, float]] = {}
    if model.config.num_attention_layers:
        attention, baselines = _relevance_maps(model, rows, collator, predicted["relevance"], seed, batch_size)
    results: dict[str, Any] = {
        "metrics": {"accuracy": float(scores.mean()), **compute_metrics(metrics, predicted["answer"], rows)},
        "per_question_type": {
            kind: {"accuracy": value} for kind, value in by_type(scores, rows["question_type"]).items()
        },
        "attention": attention,
        "baselines": baselines,
    }
    details = rows.select_columns(["question_id", "image_id", "question", "question_type"])
    details = details.add_column("answer", predicted["answer"])
    details = details.add_column("confidence", predicted["confidence"]).add_column("score", scores.tolist())
    return results, details.add_column("expected_answers", [_by_count(answers) for answers in rows["answers"]])


def _relevance_maps(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    maps: Sequence[np.ndarray],
    seed: int,
    batch_size: int,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The quality of the maps beside those of shuffled questions; and the accuracy of answers to those."""
    shuffled, indices = shuffle_questions(rows, seed)
    baselines: dict[str, dict[str, float]] = {}
    shuffled_maps: dict[int, np.ndarray] = {}
    if indices:
        answered = predict(model, shuffled, collator, batch_size, description="Shuffled questions")
        scores = answer_accuracy(answered["answer"], shuffled, collator.answer_rule, collator.normalize_answers)
        baselines["shuffled_questions"] = {"accuracy": float(scores.mean())}
        shuffled_maps = dict(zip(indices, answered["relevance"], strict=True))
    attention = attention_table(maps, rows, shuffled_maps)
    if attention and collator.processor.image_processor.do_center_crop:
        logger.warning(
            "attention is not measured: the image processor crops the picture, but target regions cover all of it; "
            "set `do_center_crop=False`"
        )
        attention = {}
    return attention, baselines


def _by_count(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    return [answer["answer"] for answer in sorted(answers, key=lambda answer: -answer["count"])]


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
