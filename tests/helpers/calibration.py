"""A `calibration.json` as `qca calibrate` writes it, with chosen thresholds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_calibration(
    folder: Path, thresholds: Sequence[float], abstain_answer: str | None = None, images: list[str] | None = None
) -> None:
    """`thresholds` are those of 1, 2, ... 100 % coverage."""
    content: dict[str, Any] = {"temperature": 1.0, "thresholds": list(thresholds), "abstain_answer": abstain_answer}
    content |= {"images": images, "after": {}, "data": {}}
    (folder / "calibration.json").write_text(json.dumps(content))
