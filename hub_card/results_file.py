"""results.json, the file that an evaluation writes and the model card reads.

    metrics            {metric: value}. A value is a number, or {"mean", "std"} over several runs (see `row_card`).
    baselines          {baseline: {metric: value}}, for example {"majority": {"accuracy": 0.2}}. The accuracy of a
                       baseline on one question type has the name of the type.
    attention          {metric: {"model": value, "center": ..., "uniform": ..., "shuffled_question": ...}}. "maps" has
                       the number of relevance maps behind each mean.
    per_question_type  {question type: {metric: value}}
    data               {"name", "split", "rows", "images", "fingerprint"} of the evaluated rows
    seeds              the training seeds
    versions           {package: version}
    device             the processor or GPU; optional
    command            the command that trained and evaluated
    cost               {"milliseconds_per_question", "trained_parameters", ...}
    recipe             the training recipe; optional
    calibration        the error of the probabilities, and the bins of its diagram; optional
    selective          accuracy if the least sure answers are not given; optional
    baseline           the kind of control model, or null for a model to use; optional

Names are lower case with underscores. Every value is finite.
"""

import json
import math
from pathlib import Path
from typing import Any

SECTIONS: dict[str, type] = {
    "metrics": dict,
    "baselines": dict,
    "attention": dict,
    "per_question_type": dict,
    "data": dict,
    "seeds": list,
    "versions": dict,
    "command": str,
    "cost": dict,
}
OPTIONAL = ("recipe", "baseline", "device", "calibration", "selective")
DATA_FIELDS = {"name": str, "split": str, "rows": int, "images": int, "fingerprint": str}

Results = dict[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: The file cannot be read, is not JSON, or does not hold an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); pass the folder of a saved checkpoint."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object.")
    return content


def read_results(path: Path) -> Results:
    """The results in a results.json file.

    Raises:
        ValueError: An entry is missing, unknown, of a wrong type, or not finite. The message names file and entry.
    """
    results = read_json(path)
    known = (*SECTIONS, *OPTIONAL)
    if unknown := sorted(results.keys() - known):
        raise ValueError(f"{path}: unknown entry {unknown[0]!r}; known are {', '.join(known)}.")
    _check_types(path, "", results, SECTIONS)
    _check_types(path, "data.", results["data"], DATA_FIELDS)
    if not results["metrics"]:
        raise ValueError(f"{path}: 'metrics' is empty.")
    for section in ("baselines", "attention", "per_question_type"):
        for name, values in results[section].items():
            if not isinstance(values, dict):
                raise ValueError(f"{path}: '{section}.{name}' must be a mapping of values.")
    for section in ("metrics", "baselines", "attention", "per_question_type", "cost", "calibration", "selective"):
        _check_finite(path, section, results.get(section, {}))
    return results


def _check_types(path: Path, prefix: str, found: dict[str, Any], expected: dict[str, type]) -> None:
    for name, kind in expected.items():
        if name not in found:
            raise ValueError(f"{path}: '{prefix}{name}' is missing.")
        if not isinstance(found[name], kind):
            raise ValueError(f"{path}: '{prefix}{name}' must be a {kind.__name__}, not {found[name]!r}.")


def _check_finite(path: Path, entry: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_finite(path, f"{entry}.{name}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _check_finite(path, f"{entry}[{place}]", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: '{entry}' is {value}.")
