"""Tables of what the gate measures, for documents, and the rule of the gate."""

from collections.abc import Iterator, Mapping
from typing import Any

from modeling_qca.training.files.run_files import format_value

from .features import CROPS
from .measures import CHOOSERS, REPLICATED, TWICE, WINDOW_CHOOSERS
from .probe import CHOICES, COUNTS, WINDOWS
from .windows import SIDES

FACADES, REPLICATION, SCENES = "facades", "facades once more", "drawn scenes"
BEHIND, SHARE = 0.01, 0.6  # the gate: at most behind dense, at most of its operations
GAIN_ERRORS = {FACADES: 2, REPLICATION: 2, SCENES: 3}  # over chance; eight settings are tried at once on the scenes
PATCH = 14  # pixels


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
    beats = chance["mean"] > GAIN_ERRORS[data] * chance["standard_error"]
    is_open = beats and twice["mean"] >= -BEHIND and share <= SHARE
    return {"open": is_open, "chance": chance, "twice": twice, "share": share}


def render(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of text cells, for `scripts/render_documents.py`."""
    tables = []
    if {FACADES, REPLICATION} <= results["data"].keys():
        tables.append(_replication_table(results))
    for data in (FACADES, SCENES):
        if data in results["data"]:
            tables += _full_tables(results, data, results["data"][data])
    return tables


def _replication_table(results: Mapping[str, Any]) -> dict[str, Any]:
    glance, windows, count = REPLICATED
    name = f"{glance} {windows} {{}} {count}"
    rows = []
    for data in (FACADES, REPLICATION):
        measures, found = results["data"][data]["measures"], gate(results, data, REPLICATED)
        accuracies = [measures[row] for row in (glance, *(name.format(choice) for choice in CHOICES), TWICE[glance])]
        gains = [_signed(found[compared]) for compared in ("chance", "twice")]
        rows.append([data, *map(format_value, accuracies), *gains, "open" if found["open"] else "closed"])
    columns = [_setting(*REPLICATED), _named(glance), *CHOICES, _named(TWICE[glance]), "over chance"]
    return {"columns": [*columns, f"over {_named(TWICE[glance])}", "gate"], "rows": rows}


def _full_tables(results: Mapping[str, Any], data: str, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        _whole_table(results, data, summary),
        _windows_table(results, data, summary),
        _gate_table(results, data),
        _choice_table(data, summary),
        _chooser_table(data, summary),
    ]


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
