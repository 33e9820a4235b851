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
from ..data.vocabulary import vocabulary_reach
from ..files.run_files import EVALUATION, QUESTIONS, RECIPE, RESULTS, RUN, read_run, write_json
from .accuracy import answer_accuracy, best_single_answer, by_type
from .answer_metrics import compute_metrics, validate_metrics
from .attention import attention_table, shuffle_questions
from .checkpoint import load_pipeline
from .evaluation_data import EvaluationData, count_training_images, evaluation_data
from .predictions import BATCH_SIZE, milliseconds_per_question, predict
from .provenance import provenance
from .report import write_report

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
    data: str | None,
    split: str | None,
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
        data, split, options: of `rows.load_rows`; without `data` the run's own validation rows. The options
            `answer_rule` and `normalize_answers` are of `answers.answer_scores`, by default those of the training.
        output_dir: gets `results.json` and `questions.parquet`.
        seed: of the shuffled-question control.
        report: page to write, see `report.write_report`.
        metrics: see `answer_metrics.compute_metrics`.
        batch_size: questions answered at once; it changes no answer.

    Returns:
        The results. The baseline `majority` is the majority answer of the training, as after training. A checkpoint
        that does not remember its training has the baseline `best_single_answer` of these rows instead. `data` says
        how much of the rows the vocabulary reaches, and how many of their images were trained on, if that is known.

    Raises:
        ValueError: an unknown metric or `answer_rule`; data that is not named and not remembered; no answer to
            compare with; or an `output_dir` with the results of something else.
        ImportError: see `compute_metrics`.
    """
    validate_metrics(metrics)
    run = read_run(checkpoint)
    scoring = {name: options[name] for name in ("answer_rule", "normalize_answers") if name in options}
    chosen = evaluation_data(checkpoint, run, data, split, {k: v for k, v in options.items() if k not in scoring})
    rule, normalize = _scoring(checkpoint, scoring)
    note = _note(checkpoint, chosen, rule, normalize)
    _check_folder(output_dir, note)
    pipeline, rows = load_pipeline(checkpoint), chosen.rows()
    collator = QuestionCollator(
        pipeline.processor, pipeline.model.config, answer_rule=rule, normalize_answers=normalize
    )
    results, details = evaluate_model(pipeline.model, rows, collator, seed, metrics, batch_size)
    results["baselines"] |= _constant_baseline(run, rows, rule, normalize)
    results["cost"] = {
        "milliseconds_per_question": round(milliseconds_per_question(pipeline.model, rows, collator), 1)
    }
    results |= provenance(rows, chosen.name, chosen.split_name, pipeline.device) | {"seeds": [seed]}
    results["data"] |= {"answer_rule": rule, "normalize_answers": normalize}
    answers = list(pipeline.model.config.id2label.values())
    reach = vocabulary_reach(rows["answers"], answers, rule, normalize)
    results["data"]["vocabulary"] = {"answers": len(answers), "validation": reach}
    if (trained_on := count_training_images(run, rows)) is not None:
        results["data"]["images_trained_on"] = trained_on
    output_dir.mkdir(parents=True, exist_ok=True)
    details.to_parquet(output_dir / QUESTIONS)
    write_json(output_dir / EVALUATION, note)
    write_json(output_dir / RESULTS, results)
    if report is not None:
        write_report(report, results, details, rows, pipeline)
    return results


def _constant_baseline(
    run: Mapping[str, Any] | None, rows: datasets.Dataset, rule: AnswerRule, normalize: bool
) -> dict[str, dict[str, float]]:
    """The accuracy of the training's majority answer; if that is not known, of the best single answer of `rows`."""
    name = "best_single_answer" if run is None else "majority"
    answer = best_single_answer(rows, rule, normalize) if run is None else run["majority_answer"]
    accuracy = answer_accuracy([answer] * len(rows), rows, rule, normalize).mean()
    return {name: {"accuracy": float(accuracy)}}


def _note(checkpoint: str, chosen: EvaluationData, rule: str, normalize: bool) -> dict[str, str]:
    """What tells one evaluation from another in the same folder."""
    source = str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint
    given = {"data": chosen.data, "split": chosen.split, **chosen.options}
    scoring = {"answer_rule": rule, "normalize_answers": normalize}
    return {"checkpoint": source, **{name: str(value) for name, value in (given | scoring).items()}}


def _check_folder(output_dir: Path, note: dict[str, str]) -> None:
    """
    Raises:
        ValueError: the folder has results of a training, of another checkpoint or of other data.
    """
    file = output_dir / EVALUATION
    if (output_dir / RESULTS).exists() and (not file.exists() or json.loads(file.read_text()) != note):
        raise ValueError(
            f"{output_dir} holds the results of something else: choose another output folder, or remove this one"
        )


def _scoring(checkpoint: str, given: Mapping[str, Any]) -> tuple[AnswerRule, bool]:
    """`answer_rule` and `normalize_answers`: as given, or as in the training, or the defaults.

    Raises:
        ValueError: an unknown value, or a file of the checkpoint that cannot be read.
    """
    chosen = {"answer_rule": "consensus", "normalize_answers": True, **_trained_with(checkpoint), **given}
    rule, normalize = chosen["answer_rule"], chosen["normalize_answers"]
    if rule not in get_args(AnswerRule):
        raise ValueError(f"`answer_rule` is {rule!r}, not one of {', '.join(get_args(AnswerRule))}")
    if not isinstance(normalize, bool):
        raise ValueError(f"`normalize_answers` is {normalize!r}; it is true or false")
    return rule, normalize


def _trained_with(checkpoint: str) -> dict[str, Any]:
    """`answer_rule` and `normalize_answers` of the training, from the files that it left beside the checkpoint."""
    for source in (RUN, RESULTS, RECIPE):  # of a run; of a published checkpoint or of release 0.1; of a baseline
        file = cached_file(checkpoint, source, _raise_exceptions_for_missing_entries=False)
        if file is None:
            continue
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            recipe = content.get("recipe", {}) if source == RESULTS else content
            return {name: recipe[name] for name in recipe.keys() & {"answer_rule", "normalize_answers"}}
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} was written by no training: {error}") from error
    return {}
