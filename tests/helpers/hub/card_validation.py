"""What the Hub's /api/validate-yaml refuses in a model card's metadata."""

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0", "other", "unknown"}


def card_metadata(text: str) -> dict[str, Any]:
    match = FRONT_MATTER.search(text)
    return (yaml.safe_load(match.group(2)) or {}) if match else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def card_problems(text: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) of a README.md."""
    try:
        metadata = card_metadata(text)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if not isinstance(metadata, dict):
        return ["YAML Metadata Error: expected a mapping"], []
    errors = [f'"license" is not known: {name!r}' for name in as_list(metadata.get("license")) if name not in LICENSES]
    for key in ("tags", "metrics", "datasets", "language"):
        if not all(isinstance(item, str) for item in as_list(metadata.get(key))):
            errors.append(f'"{key}" must be an array of strings')
    for base in as_list(metadata.get("base_model")):
        if not isinstance(base, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            errors.append(f'"base_model" must be a model id on the Hub, got {base!r}')
    errors += model_index_errors(metadata.get("model-index") or [])
    return errors, [] if metadata else ["empty or missing yaml metadata in repo card"]


def model_index_errors(model_index: Any) -> list[str]:
    errors = []
    try:
        results = [(entry["name"], result) for entry in model_index for result in entry["results"]]
        for number, (_, result) in enumerate(results):
            for section, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance(result[section].get(key), str):
                    errors.append(f'"model-index[0].results[{number}].{section}.{key}" is required')
            if not all("type" in metric and "value" in metric for metric in result["metrics"]):
                errors.append(f'"model-index[0].results[{number}].metrics" need type and value')
    except (KeyError, TypeError, AttributeError) as error:
        errors.append(f'"model-index" is malformed: {error!r}')
    return errors
