"""`qca calibrate`: the temperature, the thresholds and the usual questions of a checkpoint, from held-out rows."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor

from ..confidence.abstention import check_abstain_answer
from ..confidence.calibration_error import calibration_table
from ..confidence.familiarity import QuestionFamiliarity, fit_familiarity
from ..confidence.selective import coverage_thresholds, selective_table
from ..confidence.temperature import best_probability, fit_temperature
from ..data.collator import QuestionCollator, tokenize_questions
from ..data.image_digests import image_digests
from ..data.rows import load_rows
from ..data.splits import fold_of_groups
from ..files.progress import track
from ..files.run_files import CALIBRATION, RUN, TRAINED_QUESTIONS, read_run, write_json
from .accuracy import answer_accuracy
from .checkpoint import load_pipeline
from .evaluation import SCORING, read_scoring
from .evaluation_data import evaluation_data, shown_rows
from .predictions import BATCH_SIZE, forward_batches
from .provenance import provenance

logger = logging.getLogger(__name__)
FOLDS = 5
MAXIMUM_QUESTIONS = 20_000  # more do not change one temperature, and their scores of all answers take memory
FEW_QUESTIONS = 200


def calibrate_checkpoint(
    checkpoint: str,
    data: str | None = None,
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """
    Fit the temperature on held-out rows and store it in `config.json`, with `calibration.json` beside it.

    The stored temperature is that of all the rows. What it achieves is measured by cross-fitting: the rows are cut
    into 5 folds, whole images (or groups of the run) in one, and each fold is measured at the temperature of the
    others.

    A run that knows its training data also gets `trained_questions.safetensors`, which tells questions unlike those
    trained on (see `familiarity`).

    Args:
        checkpoint: folder of a model that is not an adapter.
        data, split, options: as in `evaluation.evaluate_checkpoint`; by default the run's own validation rows.
        seed: of the folds and the resamples.
        batch_size: questions answered at once.

    Returns:
        The content of `calibration.json`: `temperature`, `thresholds` of 1 to 100 % coverage, `abstain_answer`,
        `before` and `after` (`calibration` and `selective`, see `evaluation.evaluate_model`), `folds` (their
        temperatures), `images` (digests of those it was fitted on), `question_threshold`, and the provenance.

    Raises:
        ValueError: no folder of a model; rows of images that it was trained on; fewer than two groups of rows; or
            see `evaluate_checkpoint`.
    """
    folder, options = _model_folder(checkpoint), options or {}
    run = read_run(folder)
    scoring = {name: options[name] for name in SCORING if name in options}
    chosen = evaluation_data(checkpoint, run, data, split, {k: v for k, v in options.items() if k not in scoring})
    rule, normalize, abstain_answer = read_scoring(checkpoint, scoring)
    pipeline = load_pipeline(checkpoint)
    model, processor = pipeline.model, pipeline.processor
    check_abstain_answer(abstain_answer, model.config.label2id)
    group_by = run["group_by"] if data is None and run["group_by"] else "image_id"
    folds, rows = _cut(chosen.rows(), group_by, seed)
    images = image_digests(rows)
    _refuse_training_images(checkpoint, run, images)
    collator = QuestionCollator(processor, model.config, answer_rule=rule, normalize_answers=normalize)
    batches = forward_batches(model, shown_rows(checkpoint, rows), collator, batch_size)
    logits = np.concatenate([outputs.logits.float().cpu().numpy() for outputs in batches])
    answers = [model.config.id2label[index] for index in logits.argmax(axis=1).tolist()]
    scores = answer_accuracy(answers, rows, rule, normalize)
    unanswered = np.array([answer == abstain_answer for answer in answers])
    several = model.config.problem_type == "multi_label_classification"
    content = cross_fit(logits, scores, unanswered, rows["image_id"], folds, several, seed)
    familiarity = _familiarity(run, model, processor, rows["question"])
    content |= {"abstain_answer": abstain_answer, "images": sorted(images), "seed": seed, "group_by": group_by}
    content["question_threshold"] = None if familiarity is None else familiarity.threshold
    content |= provenance(rows, chosen.name, chosen.split_name, model.device)
    _write(folder, model, processor, content, familiarity)
    return content


def cross_fit(
    logits: np.ndarray,
    scores: np.ndarray,
    unanswered: np.ndarray,
    image_ids: Sequence[str],
    folds: np.ndarray,
    several: bool,
    seed: int,
) -> dict[str, Any]:
    """
    The temperature and thresholds of all rows, and what the temperatures of the other folds achieve on each fold.

    Args:
        logits: `[n, C]`.
        scores, unanswered, folds: `[n]` accuracy of the best answer, whether it means "no answer", and its fold.
    """
    before, after, temperatures = best_probability(logits, 1.0, several), np.zeros(len(scores)), []
    for fold in np.unique(folds):
        here = folds == fold
        temperatures.append(fit_temperature(logits[~here], scores[~here], several))
        after[here] = best_probability(logits[here], temperatures[-1], several)
    temperature = fit_temperature(logits, scores, several)
    measured = {
        name: {
            "calibration": calibration_table(confidence, scores, image_ids, seed),
            "selective": selective_table(confidence, scores, unanswered),
        }
        for name, confidence in (("before", before), ("after", after))
    }
    thresholds = coverage_thresholds(best_probability(logits, temperature, several), unanswered)
    return {"temperature": temperature, "thresholds": thresholds, "folds": temperatures, **measured}


@torch.no_grad()
def embed_questions(
    model: QCAForVisualQuestionAnswering, processor: QCAProcessor, questions: Sequence[str]
) -> np.ndarray:
    """`[n, E]`: what the text encoder makes of each question, pooled over its tokens."""
    distinct = sorted(set(questions), key=lambda question: (len(question), question))  # little padding in a batch
    parts = []
    starts = range(0, len(distinct), BATCH_SIZE)
    for start in track(starts, "Question embeddings", disable=len(starts) < 2):
        chosen = distinct[start : start + BATCH_SIZE]
        tokens = tokenize_questions(processor, chosen, list(range(start, start + len(chosen))))
        parts.append(model.get_text_features(**tokens.to(model.device)).pooler_output.float().cpu().numpy())
    place = {question: index for index, question in enumerate(distinct)}
    return np.concatenate(parts)[[place[question] for question in questions]]


def read_familiarity(checkpoint: str | Path) -> QuestionFamiliarity | None:
    """What `qca calibrate` stored of the training questions; None if it stored nothing.

    Raises:
        ValueError: the file cannot be read.
    """
    file = cached_file(str(checkpoint), TRAINED_QUESTIONS, _raise_exceptions_for_missing_entries=False)
    return None if file is None else QuestionFamiliarity.read(Path(file))


def _model_folder(checkpoint: str) -> Path:
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{checkpoint}: the calibration is stored with the model, so pass the local folder of a whole model, with "
            "its config.json. A model of the Hub is downloaded first (`hf download`); an adapter's run has one."
        )
    return folder


def _cut(rows: datasets.Dataset, group_by: str, seed: int) -> tuple[np.ndarray, datasets.Dataset]:
    """The fold of each row, and the rows: whole groups, at most `MAXIMUM_QUESTIONS` if there are several."""
    folds = np.array(fold_of_groups(rows, group_by, FOLDS, seed))
    if len(rows) > MAXIMUM_QUESTIONS:
        parts = np.array(fold_of_groups(rows, group_by, -(-len(rows) // MAXIMUM_QUESTIONS), seed + 1))
        kept = np.flatnonzero(parts == 0)
        logger.warning("%d of %d questions, whole images, are used for calibration", len(kept), len(rows))
        folds, rows = folds[kept], rows.select(kept)
    if len(np.unique(folds)) < 2:
        raise ValueError(
            f"{len(rows)} questions in one group (`{group_by}`) cannot be cut into rows to fit the temperature on and "
            "others to measure it on: give more data"
        )
    if len(rows) < FEW_QUESTIONS:
        logger.warning("%d questions are few for a calibration: see the interval of its error", len(rows))
    return folds, rows


def _refuse_training_images(checkpoint: str, run: Mapping[str, Any] | None, images: set[str]) -> None:
    if run is None or run["training_images"] is None:
        logger.warning("%s does not say which images it was trained on: calibrate it on others", checkpoint)
        return
    if seen := len(images.intersection(run["training_images"])):
        raise ValueError(
            f"{checkpoint} was trained on {seen} of the {len(images)} images. A model is surer of these than of new "
            "ones, so its temperature would be too low: pass held-out data. The run's own validation rows are held "
            "out only if its `group_by` kept all questions about an image in one split"
        )


def _familiarity(
    run: Mapping[str, Any] | None,
    model: QCAForVisualQuestionAnswering,
    processor: QCAProcessor,
    held_out: Sequence[str],
) -> QuestionFamiliarity | None:
    """None, with a warning, where the training questions are not known."""
    try:
        trained = _training_questions(run)
    except ValueError as error:
        logger.warning("unfamiliar questions will not be flagged: %s", error)
        return None
    return fit_familiarity(*(embed_questions(model, processor, texts) for texts in (trained, list(held_out))))


def _training_questions(run: Mapping[str, Any] | None) -> list[str]:
    if run is None:
        raise ValueError(f"there is no {RUN} that says what the model was trained on")
    if run["training_images"] is None:
        raise ValueError("the training rows were a stream")
    cut: dict[str, Any] = {}
    if run["validation_data"] is None and run["validation_ratio"] is not None:
        cut = {"validation_ratio": run["validation_ratio"], "group_by": run["group_by"], "seed": run["data_seed"]}
    kind = {"format": run["format"], "on_bad_image": run["on_bad_image"]}
    rows: Any = load_rows(run["data"], split="train", **cut, **{**kind, **run["data_options"]})
    return sorted(set(rows["question"]))


def _write(
    folder: Path,
    model: QCAForVisualQuestionAnswering,
    processor: QCAProcessor,
    content: dict[str, Any],
    familiarity: QuestionFamiliarity | None,
) -> None:
    """The temperature comes last: until then the folder answers as before."""
    for part in (model, processor):  # the code of an earlier release would not read the temperature
        custom_object_save(part, folder)
    if familiarity is None:
        (folder / TRAINED_QUESTIONS).unlink(missing_ok=True)
    else:
        familiarity.write(folder / TRAINED_QUESTIONS)
    write_json(folder / CALIBRATION, content)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"temperature": content["temperature"]})
