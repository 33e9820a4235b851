"""When a checkpoint gives no answer: a threshold, or a coverage that its calibration turns into one."""

import difflib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import cached_file

from modeling_qca.confidence_qca import abstains

from ..files.run_files import CALIBRATION

logger = logging.getLogger(__name__)
KEYS = ("temperature", "thresholds", "abstain_answer", "images", "after", "data")


@dataclass(frozen=True)
class Abstention:
    """
    Args:
        threshold: the lowest probability of an answer that is given.
        abstain_answer: an answer that means "no answer".
    """

    threshold: float = 0.0
    abstain_answer: str | None = None

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"a threshold is a probability between 0 and 1, got {self.threshold}")

    def __call__(self, answer: str, probability: float) -> bool:
        """Whether the question gets no answer; `answer` and `probability` are those of its best answer."""
        return abstains(answer, probability, self.threshold, self.abstain_answer)


def read_abstention(
    checkpoint: str,
    threshold: float | None = None,
    coverage: float | None = None,
    abstain_answer: str | None = None,
) -> Abstention:
    """
    Args:
        checkpoint: folder or Hub id.
        threshold, coverage: at most one of them. A coverage becomes the threshold that reached it on the rows that
            the checkpoint was calibrated on. A coverage of 1 gives every answer.
        abstain_answer: that of the training, see `evaluation.read_scoring`; None takes that of the calibration.

    Raises:
        ValueError: both are given, one is out of range, or a coverage of a checkpoint that is not calibrated.
    """
    if threshold is not None and coverage is not None:
        raise ValueError("a threshold and a coverage are given: choose one of them")
    if coverage is not None and not 0 < coverage <= 1:
        raise ValueError(f"a coverage is a share of the questions above 0 and at most 1, got {coverage}")
    calibration = read_calibration(checkpoint)
    if coverage is not None and calibration is None:
        raise ValueError(
            f"{checkpoint} has no {CALIBRATION}, which says what threshold gives a coverage: run `qca calibrate` on "
            "it, or pass a threshold"
        )
    if abstain_answer is None and calibration is not None:
        abstain_answer = calibration["abstain_answer"]
    if coverage is not None and coverage < 1:
        known = calibration["thresholds"]
        threshold = float(np.interp(coverage * 100, range(1, len(known) + 1), known))
        if threshold == 0:
            logger.warning(
                "%s answered fewer than %.0f %% of the questions of its calibration: every answer is given",
                *(checkpoint, 100 * coverage),
            )
    return Abstention(threshold or 0.0, abstain_answer)


def check_abstain_answer(abstain_answer: str | None, answers: Collection[str]) -> None:
    """
    Raises:
        ValueError: `abstain_answer` is none of the model's `answers`.
    """
    if abstain_answer is not None and abstain_answer not in answers:
        near = difflib.get_close_matches(abstain_answer, list(answers), n=1)
        raise ValueError(
            f"`abstain_answer` is {abstain_answer!r}, which is none of the model's {len(answers)} answers"
            + (f"; the nearest is {near[0]!r}" if near else "")
        )


def read_calibration(checkpoint: str) -> dict[str, Any] | None:
    """
    The `calibration.json` beside a checkpoint; None if there is none.

    Returns:
        `temperature`; `thresholds` of 1 to 100 % coverage; `abstain_answer`; `images`, the digests of the images it
        was fitted on, or None in a published checkpoint; and `after`, `data` and what else `calibrate_checkpoint`
        measured.

    Raises:
        ValueError: the file is not one that `qca calibrate` wrote.
    """
    file = cached_file(checkpoint, CALIBRATION, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        missing = [key for key in KEYS if key not in content]
        if not missing and not _is_thresholds(content):
            missing = ["thresholds"]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: not the {CALIBRATION} of `qca calibrate`: {error}") from error
    if missing or not isinstance(content, dict):
        raise ValueError(f"{file}: not the {CALIBRATION} of `qca calibrate`: it has no `{missing[0]}`")
    return content


def _is_thresholds(content: Mapping[str, Any]) -> bool:
    values = content["thresholds"]
    return isinstance(values, list) and len(values) == 100 and all(isinstance(value, float) for value in values)
