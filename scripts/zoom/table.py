"""What the gate measures: every row over seeds and parts of the split, its summary, and tables for documents."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_qca.training.experiments.results_summary import paired_gain
from modeling_qca.training.files.run_files import format_value

from .features import CROPS
from .pictures import THINGS, Pictures
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
GAIN_ERRORS, BEHIND, SHARE = 2, 0.01, 0.6  # the gate: over chance, behind dense, of its operations
PATCH = 14  # pixels


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
    whole = {name: read(part, part.scores(name)) for name in (*TWICE, "whole448")}
    for name, inputs in whole.items():
        measures.add(part, name, right(part, inputs))
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
    for (glance, crop), side in WINDOWS.items():
        for choice, windows in choices(part, glance, side).items():
            for count in COUNTS:
                name, seen = f"{glance} {crop} {choice} {count}", windows[:, :count]
                inputs = np.concatenate([whole[glance], read(part, part.scores(crop), seen)], axis=1)
                measures.add(part, name, right(part, inputs))
                measures.add(part, f"holds {name}", holds(part, side, seen))


def summarize(measures: Measures, pictures: Pictures) -> dict[str, Any]:
    """Means, standard deviations over seeds and standard errors of every measure, and the gains of the gate."""
    words = list(THINGS.values())
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


def cost(results: Mapping[str, Any], glance: str, windows: str | None = None, count: int = 0) -> tuple[int, float]:
    """Patches that a reader sees, and GFLOP of the encoder for one question."""
    pixels = [CROPS[glance].pixels] + [CROPS[windows].pixels] * count if windows else [CROPS[glance].pixels]
    return sum((side // PATCH) ** 2 for side in pixels), sum(results["flops"][str(side)] for side in pixels) / 1e9


def settings() -> Iterator[tuple[str, str, int]]:
    """Glance, windows and their number."""
    for glance, windows in WINDOWS:
        for count in COUNTS:
            yield glance, windows, count


def gate(results: Mapping[str, Any], data: str, setting: tuple[str, str, int]) -> dict[str, Any]:
    """The gains of a setting and its share of the operations, and whether the gate is `open`."""
    glance, windows, count = setting
    name, gains = f"{glance} {windows} question {count}", results["data"][data]["gains"]
    chance = gains[f"{name} over {glance} {windows} chance {count}"]
    twice = gains[f"{name} over {TWICE[glance]}"]
    share = cost(results, glance, windows, count)[1] / cost(results, TWICE[glance])[1]
    beats = chance["mean"] > GAIN_ERRORS * chance["standard_error"]
    is_open = beats and twice["mean"] >= -BEHIND and share <= SHARE
    return {"open": is_open, "chance": chance, "twice": twice, "share": share}


def render(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of text cells, for `scripts/render_documents.py`."""
    tables = []
    for data, summary in results["data"].items():
        tables += [
            _whole_table(results, data, summary),
            _windows_table(results, data, summary),
            _gate_table(results, data),
            _choice_table(data, summary),
            _chooser_table(data, summary),
        ]
    return tables


def _whole_table(results: Mapping[str, Any], data: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    measures, kinds = summary["measures"], list(summary["kinds"])
    rows = []
    for name in ("question only", *TWICE, "whole448"):
        patches, gflop = cost(results, name) if name in CROPS else (0, 0.0)
        found = measures[name]
        of_kinds = [format_value(found["kinds"][kind]) for kind in kinds]
        rows.append([_named(name), format_value(found), _error(found), *of_kinds, str(patches), f"{gflop:.1f}"])
    return {"columns": [f"{data}: whole pictures", "accuracy", "SE", *kinds, "patches", "GFLOP"], "rows": rows}


def _windows_table(results: Mapping[str, Any], data: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for glance, windows, count in settings():
        found = [summary["measures"][f"{glance} {windows} {choice} {count}"] for choice in CHOICES]
        patches, gflop = cost(results, glance, windows, count)
        share = gflop / cost(results, TWICE[glance])[1]
        accuracies = map(format_value, found)
        rows.append([_setting(glance, windows, count), *accuracies, str(patches), f"{gflop:.1f}", f"{share:.0%}"])
    columns = [f"{data}: accuracy, windows chosen by", *CHOICES, "patches", "GFLOP", "of dense at twice the side"]
    return {"columns": columns, "rows": rows}


def _gate_table(results: Mapping[str, Any], data: str) -> dict[str, Any]:
    rows = []
    for setting in settings():
        found = gate(results, data, setting)
        gains = [_signed(found[compared]) for compared in ("chance", "twice")]
        rows.append([_setting(*setting), *gains, f"{found['share']:.0%}", "open" if found["open"] else "closed"])
    columns = [f"{data}: the question's choice", "over chance", "over dense at twice the side", "GFLOP of it", "gate"]
    return {"columns": columns, "rows": rows}


def _choice_table(data: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for glance, windows, count in settings():
        found = [summary["measures"][f"holds {glance} {windows} {choice} {count}"] for choice in CHOICES]
        rows.append([_setting(glance, windows, count), *map(format_value, found)])
    return {"columns": [f"{data}: choice accuracy, windows chosen by", *CHOICES], "rows": rows}


def _chooser_table(data: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    measures, rows = summary["measures"], []
    named = [(side, count) for side in SIDES for count in COUNTS]
    for name in (*CHOOSERS, *(f"whole {chooser}" for chooser in WINDOW_CHOOSERS.values())):
        found = [f"points {name}", *(f"chooser {name} {side} {count}" for side, count in named)]
        rows.append([_named(name), *(format_value(measures.get(measure)) for measure in found)])
    columns = [f"{data}: map that chooses", "pointing", *(f"{count} {side}" for side, count in named)]
    return {"columns": columns, "rows": rows}


def _setting(glance: str, windows: str, count: int) -> str:
    pixels = f"{CROPS[windows].pixels} px"
    side = WINDOWS[glance, windows]
    return f"glance {CROPS[glance].pixels} px, {count} {side} window{'s' * (count > 1)} at {pixels}"


def _named(name: str) -> str:
    crop = name.removesuffix("_low").removeprefix("whole ")
    if crop not in CROPS:
        return name
    pixels = f"{CROPS[crop].pixels} px"
    if crop == name:
        return pixels
    described = f"all {crop.rstrip('0123456789')} windows at {pixels}, four layers"
    return f"{described}, scored as a whole" if name.startswith("whole ") else described


def _error(found: Mapping[str, Any]) -> str:
    return f"{found['standard_error']:.3f}"


def _signed(gain: Mapping[str, Any]) -> str:
    return f"{gain['mean']:+.3f} (SE {gain['standard_error']:.3f})"
