"""What the gate measures: every row over seeds and parts of the split, and its summary."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_qca.training.experiments.results_summary import paired_gain

from .pictures import Pictures
from .probe import (
    CHOICES,
    COUNTS,
    WINDOWS,
    Part,
    choices,
    chosen_as_windows,
    chosen_by_question,
    holds,
    points,
    read,
    right,
)
from .windows import SIDES

TWICE = {"whole112": "whole224", "whole224": "whole448"}  # dense at twice the side of the glance
CHOOSERS = ("whole112", "whole224", "half112_low", "quarter112_low")  # whose maps choose; low: all windows, 4 layers
WINDOW_CHOOSERS = {"half": "half112_low", "quarter": "quarter112_low"}  # windows scored as a whole, by side
REPLICATED = ("whole224", "quarter112", 1)  # the setting that is measured once more
REPLICATED_ARRAYS = ("whole224", "whole224_cls", "whole448", "quarter112")  # the features that it needs


class Measures:
    """Values of the test questions of each seed by measure: `values[name][seed]` is [rows[seed]]."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, NDArray[np.float64]]] = defaultdict(dict)
        self.rows: dict[int, NDArray[np.int64]] = {}

    def add(self, part: Part, name: str, values: NDArray[np.float64]) -> None:
        self.values[name][part.seed] = values


def measure(part: Part, measures: Measures) -> None:
    """Fit and test every row on one part of the split."""
    measures.rows[part.seed] = part.test
    halves = np.eye(4)[part.half]
    measures.add(part, "question only", right(part, halves))
    whole = _measure_whole(part, measures, (*TWICE, "whole448"))
    for chooser in CHOOSERS:
        measures.add(part, f"points {chooser}", points(part, chooser))
        for side in SIDES:
            windows = chosen_by_question(part, chooser, side)
            for count in COUNTS:
                measures.add(part, f"chooser {chooser} {side} {count}", holds(part, side, windows[:, :count]))
    for side, chooser in WINDOW_CHOOSERS.items():
        windows = chosen_as_windows(part, chooser, side)
        for count in COUNTS:
            measures.add(part, f"chooser whole {chooser} {side} {count}", holds(part, side, windows[:, :count]))
    for glance, crop in WINDOWS:
        _measure_windows(part, measures, glance, crop, whole[glance], COUNTS)


def measure_again(part: Part, measures: Measures) -> None:
    """Fit and test `REPLICATED` alone, beside its glance and dense at twice the side."""
    measures.rows[part.seed] = part.test
    glance, crop, count = REPLICATED
    whole = _measure_whole(part, measures, (glance, TWICE[glance]))
    _measure_windows(part, measures, glance, crop, whole[glance], (count,))


def _measure_whole(part: Part, measures: Measures, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Test the readers of whole pictures, and return their inputs."""
    whole = {name: read(part, part.scores(name)) for name in names}
    for name, inputs in whole.items():
        measures.add(part, name, right(part, inputs))
    return whole


def _measure_windows(
    part: Part, measures: Measures, glance: str, crop: str, whole: NDArray[np.float64], counts: Sequence[int]
) -> None:
    """Test the readers of a glance, whose inputs are `whole`, and of the windows of each choice."""
    side = WINDOWS[glance, crop]
    for choice, windows in choices(part, glance, side).items():
        for count in counts:
            name, seen = f"{glance} {crop} {choice} {count}", windows[:, :count]
            inputs = np.concatenate([whole, read(part, part.scores(crop), seen)], axis=1)
            measures.add(part, name, right(part, inputs))
            measures.add(part, f"holds {name}", holds(part, side, seen))


def summarize(measures: Measures, pictures: Pictures) -> dict[str, Any]:
    """Means, standard deviations over seeds and standard errors of every measure, and the gains of the gate."""
    words = list(pictures.things)
    kinds = np.array([words[asked.thing] for asked in pictures.questions])
    images = np.array([asked.picture for asked in pictures.questions])
    values, rows = dict(measures.values), measures.rows
    return {
        "questions": len(kinds),
        "pictures": len(np.unique(images)),
        "groups": len({pictures.groups[image] for image in images}),
        "kinds": {word: int((kinds == word).sum()) for word in words},
        "seeds": sorted(rows),
        "measures": {name: _spread(values[name], rows, images, kinds) for name in values},
        "gains": {
            f"{first} over {second}": _gain(values[first], values[second], rows, images)
            for first in values
            for second in _compared(first)
        },
    }


def _compared(name: str) -> Iterator[str]:
    """The measures that the accuracy with the question's choice is compared with."""
    if " question " in name and " shuffled " not in name and not name.startswith("holds"):
        for choice in CHOICES[1:]:
            yield name.replace(" question ", f" {choice} ")
        glance = name.split()[0]
        yield glance
        yield TWICE[glance]


Values = Mapping[int, NDArray[Any]]  # by seed


def _spread(values: Values, rows: Values, images: NDArray[np.int64], kinds: NDArray[np.str_]) -> dict[str, Any]:
    """Over the questions that have a value."""
    of_seeds = [float(np.nanmean(of_seed)) for of_seed in values.values()]
    zeros = {seed: np.zeros_like(of_seed) for seed, of_seed in values.items()}
    together = np.concatenate(list(values.values()))
    kind = np.concatenate([kinds[rows[seed]] for seed in values])
    known = ~np.isnan(together)
    return {
        "mean": statistics.fmean(of_seeds),
        "std": statistics.stdev(of_seeds) if len(of_seeds) > 1 else 0.0,
        "values": of_seeds,
        "standard_error": _gain(values, zeros, rows, images)["standard_error"],
        "kinds": {str(name): float(together[known & (kind == name)].mean()) for name in np.unique(kind[known])},
    }


def _gain(first: Values, second: Values, rows: Values, images: NDArray[np.int64]) -> dict[str, Any]:
    """See [`paired_gain`]; pictures are the sampling unit."""
    runs: tuple[list[dict[str, Any]], ...] = ([], [])
    for seed in first:
        known = ~np.isnan(first[seed])
        asked = rows[seed][known]
        for run, values in zip(runs, (first, second), strict=True):
            identity = {"question_id": asked.tolist(), "image_id": images[asked].tolist()}
            run.append(identity | {"score": values[seed][known].tolist()})
    return paired_gain(*runs)
