"""`qca evaluate`: accuracy and relevance maps of a model on a data set, beside baselines and control maps."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import datasets
import numpy as np
from transformers.utils import cached_file

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering
from modeling_qca.overlay_qca import sees_whole_picture

from ..confidence.abstention import Abstention, check_abstain_answer, read_abstention, read_calibration
from ..confidence.calibration_error import calibration_table
from ..confidence.selective import selective_table
from ..data.answers import AnswerRule
from ..data.collator import QuestionCollator
from ..data.vocabulary import vocabulary_reach
from ..files.run_files import EVALUATION, QUESTIONS, RECIPE, RESULTS, RUN, folder_of_run, read_run, write_json
from .accuracy import answer_accuracy, best_single_answer, by_type
from .answer_metrics import compute_metrics, validate_metrics
from .attention import attention_table, shuffle_questions
from .checkpoint import load_pipeline
from .evaluation_data import EvaluationData, count_images, evaluation_data, shown_rows
from .predictions import BATCH_SIZE, milliseconds_per_question, predict
from .provenance import provenance
from .report import write_report

logger = logging.getLogger(__name__)
NO_ABSTENTION = Abstention()
SCORING = ("answer_rule", "normalize_answers", "abstain_answer")  # options of the rules, not of the data


def evaluate_model(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    collator: QuestionCollator,
    seed: int = 0,
    metrics: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    abstention: Abstention = NO_ABSTENTION,
) -> tuple[dict[str, Any], datasets.Dataset]:
    """
    Accuracy, attention quality and further metrics of `model` on `rows`.

    Args:
        rows: images not decoded.
        collator: its `answer_rule` and `normalize_answers` score the answers.
        seed: of the shuffled-question control.
        metrics: see `answer_metrics.compute_metrics`.
        batch_size: questions answered at once.
        abstention: which questions get no answer.

    Returns:
        `metrics` (accuracy first), `per_question_type`, `attention` (see `attention.attention_table`), `baselines`,
        `calibration` (see `calibration_error.calibration_table`) and `selective` (see `selective.selective_table`);
        and a data set of ids, question, answer, confidence, score, the expected answers of each row, and whether it
        `abstained`. `attention` is empty, with a warning, if the image processor crops. Accuracy is that of all
        questions, also of those that get no answer.
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
        **_confidence(model, rows, predicted, scores, seed, abstention),
    }
    details = rows.select_columns(["question_id", "image_id", "question", "question_type"])
    details = details.add_column("answer", predicted["answer"])
    details = details.add_column("confidence", predicted["confidence"]).add_column("score", scores.tolist())
    details = details.add_column("abstained", _abstained(predicted, abstention).tolist())
    return results, details.add_column("expected_answers", [_by_count(answers) for answers in rows["answers"]])


def _confidence(
    model: QCAForVisualQuestionAnswering,
    rows: datasets.Dataset,
    predicted: Mapping[str, Sequence[Any]],
    scores: np.ndarray,
    seed: int,
    abstention: Abstention,
) -> dict[str, Any]:
    """The sections `calibration` and `selective`; the second has `chosen` if a threshold is set."""
    confidence = np.array(predicted["confidence"])
    calibration = calibration_table(confidence, scores, rows["image_id"], seed)
    unanswered = np.array([answer == abstention.abstain_answer for answer in predicted["answer"]])
    selective = selective_table(confidence, scores, unanswered)
    if abstention.threshold > 0:
        given = ~_abstained(predicted, abstention)
        accuracy = float(scores[given].mean()) if given.any() else None
        selective["chosen"] = {
            "threshold": abstention.threshold,
            "coverage": float(given.mean()),
            "accuracy": accuracy,
        }
    return {"calibration": {"temperature": float(model.config.temperature)} | calibration, "selective": selective}


def _abstained(predicted: Mapping[str, Sequence[Any]], abstention: Abstention) -> np.ndarray:
    return np.array([abstention(*best) for best in zip(predicted["answer"], predicted["confidence"], strict=True)])


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
    if attention and not sees_whole_picture(collator.processor.image_processor):
        logger.warning(
            "attention is not measured: the image processor crops or pads the picture, but target regions cover all "
            "of it; set `do_center_crop=False`, or use a `ViTImageProcessorPil` with the same numbers"
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
    threshold: float | None = None,
    coverage: float | None = None,
) -> dict[str, Any]:
    """
    Args:
        checkpoint: folder or Hub id.
        data, split, options: of `rows.load_rows`; without `data` the run's own validation rows. The options
            `answer_rule` and `normalize_answers` are of `answers.answer_scores`, and `abstain_answer` is the answer
            that counts as no answer; by default they are those of the training.
        output_dir: gets `results.json` and `questions.parquet`.
        seed: of the shuffled-question control.
        report: page to write, see `report.write_report`.
        metrics: see `answer_metrics.compute_metrics`.
        batch_size: questions answered at once; it changes no answer.
        threshold, coverage: of `abstention.read_abstention`.

    Returns:
        The results. The baseline `majority` is the majority answer of the training, as after training. A checkpoint
        that does not remember its training has the baseline `best_single_answer` of these rows instead. `data` says
        how much of the rows the vocabulary reaches, and how many of their images were trained on and calibrated on, if
        that is known.

    Raises:
        ValueError: an unknown metric or `answer_rule`; data that is not named and not remembered; no answer to
            compare with; or an `output_dir` with the results of something else.
        ImportError: see `compute_metrics`.
    """
    validate_metrics(metrics)
    run = read_run(checkpoint)
    scoring = {name: options[name] for name in SCORING if name in options}
    chosen = evaluation_data(checkpoint, run, data, split, {k: v for k, v in options.items() if k not in scoring})
    rule, normalize, abstain_answer = read_scoring(checkpoint, scoring)
    abstention = read_abstention(checkpoint, threshold, coverage, abstain_answer)
    note = _note(checkpoint, chosen, rule, normalize)
    _check_folder(output_dir, note)
    pipeline = load_pipeline(checkpoint)
    check_abstain_answer(abstention.abstain_answer, pipeline.model.config.label2id)
    rows = chosen.rows()
    shown = shown_rows(checkpoint, rows)
    reach = known_answers(pipeline.model.config, rows, rule, normalize)
    collator = QuestionCollator(
        pipeline.processor, pipeline.model.config, answer_rule=rule, normalize_answers=normalize
    )
    results, details = evaluate_model(pipeline.model, shown, collator, seed, metrics, batch_size, abstention)
    results["baselines"] |= _constant_baseline(run, rows, rule, normalize)
    results["cost"] = {
        "milliseconds_per_question": round(milliseconds_per_question(pipeline.model, shown, collator), 1)
    }
    results |= provenance(rows, chosen.name, chosen.split_name, pipeline.device) | {"seeds": [seed]}
    results["data"] |= {"answer_rule": rule, "normalize_answers": normalize}
    results["data"]["vocabulary"] = {"answers": pipeline.model.config.num_labels, "validation": reach}
    results["data"] |= _images_seen_before(checkpoint, run, rows)
    output_dir.mkdir(parents=True, exist_ok=True)
    details.to_parquet(output_dir / QUESTIONS)
    write_json(output_dir / EVALUATION, note)
    write_json(output_dir / RESULTS, results)
    if report is not None:
        write_report(report, results, details, shown, pipeline)
    return results


def known_answers(config: QCAConfig, rows: datasets.Dataset, rule: AnswerRule, normalize: bool) -> dict[str, float]:
    """The [`vocabulary_reach`] of a model on `rows`, with a warning if none of them has an answer of the model."""
    answers = list(config.id2label.values())
    reach = vocabulary_reach(rows["answers"], answers, rule, normalize)
    if reach["coverage"] == 0:
        logger.warning(
            "None of %d questions has an answer of the model (%s, ...): check the data, `columns` and "
            "`normalize_answers`.",
            *(len(rows), ", ".join(answers[:3])),
        )
    return reach


def _images_seen_before(checkpoint: str, run: Mapping[str, Any] | None, rows: datasets.Dataset) -> dict[str, int]:
    """`images_trained_on` and `images_calibrated_on`, where they are known."""
    sources = {"trained": (run or {}).get("training_images")}
    sources["calibrated"] = (read_calibration(checkpoint) or {}).get("images")
    counts = {f"images_{name}_on": count_images(known, rows, name) for name, known in sources.items()}
    return {name: count for name, count in counts.items() if count is not None}


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


def read_scoring(checkpoint: str, given: Mapping[str, Any]) -> tuple[AnswerRule, bool, str | None]:
    """`answer_rule`, `normalize_answers` and `abstain_answer`: as given, or as in the training, or the defaults.

    Raises:
        ValueError: an unknown value, or a file of the checkpoint that cannot be read.
    """
    defaults = {"answer_rule": "consensus", "normalize_answers": True, "abstain_answer": None}
    chosen = {**defaults, **_trained_with(checkpoint), **given}
    rule, normalize, abstain_answer = (chosen[name] for name in SCORING)
    if rule not in get_args(AnswerRule):
        raise ValueError(f"`answer_rule` is {rule!r}, not one of {', '.join(get_args(AnswerRule))}")
    if not isinstance(normalize, bool):
        raise ValueError(f"`normalize_answers` is {normalize!r}; it is true or false")
    if not isinstance(abstain_answer, str | None):
        raise ValueError(f"`abstain_answer` is {abstain_answer!r}; it is the text of an answer")
    return rule, normalize, abstain_answer


def _trained_with(checkpoint: str) -> dict[str, Any]:
    """What of `SCORING` the training had, from the files that it left beside the checkpoint."""
    for source in (RUN, RESULTS, RECIPE):  # of a run; of a published checkpoint or of release 0.1; of a baseline
        file = cached_file(folder_of_run(checkpoint), source, _raise_exceptions_for_missing_entries=False)
        if file is None:
            continue
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            recipe = content.get("recipe", {}) if source == RESULTS else content
            return {name: recipe[name] for name in recipe.keys() & set(SCORING)}
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} was written by no training: {error}") from error
    return {}
