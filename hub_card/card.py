"""results.json -> the model card. Every number of the card is read from results.json, the file an evaluation writes:

    metrics            {metric: value}; a value is a number, or {"mean", "std"} over several runs, see `row_card`
    baselines          {baseline: {metric: value}}, such as {"majority": {"accuracy": 0.2}}; a baseline's accuracy on
                       one question type stands under the type's name
    attention          {metric: {"model": value, "center": ..., "uniform": ..., "shuffled_question": ...}}; of how many
                       maps each is the mean stands under "maps"
    per_question_type  {question type: {metric: value}}
    data               {"name", "split", "rows", "images", "fingerprint"} of the rows that were evaluated
    seeds              the seeds trained with
    versions           {package: version}
    device             the processor or GPU that computed; may be left out
    command            the command that trained and evaluated
    cost               {"milliseconds_per_question", "trained_parameters", ...}
    recipe             the training recipe; may be left out
    baseline            what was trained instead to compare with, or null; may be left out

Names are lower case with underscores; no value is NaN or infinite.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_qca import QCAConfig, __version__
from modeling_qca.training.files.run_files import ATTENTION_SOURCES, format_value

TEMPLATE = Path(__file__).with_name("template.md")
TASK = "visual-question-answering"
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
OPTIONAL = ("recipe", "baseline", "device")
DATA_FIELDS = {"name": str, "split": str, "rows": int, "images": int, "fingerprint": str}

Results = dict[str, Any]


def read_results(path: Path) -> Results:
    """results.json, checked against the form above.

    Raises:
        ValueError: naming the file and the entry that is missing, unknown, of another type or no finite number.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} must hold one JSON object.")
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
    for section in ("metrics", "baselines", "attention", "per_question_type", "cost"):
        _check_finite(path, section, results[section])
    return results


def _check_types(path: Path, prefix: str, found: dict[str, Any], expected: dict[str, type]) -> None:
    for name, kind in expected.items():
        if name not in found:
            raise ValueError(f"{path}: '{prefix}{name}' is missing.")
        if not isinstance(found[name], kind):
            raise ValueError(f"{path}: '{prefix}{name}' must be a {kind.__name__}, not {found[name]!r}.")


def _check_finite(path: Path, where: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_finite(path, f"{where}.{name}", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: '{where}' is {value}.")


@dataclass(frozen=True)
class Release:
    """What the publisher says about a checkpoint; the rest of its card is measured.

    Args:
        repo_id: `owner/name` on the Hub.
        tag: of this version, which the card's examples then load.
        license: identifier of the Hub, such as "cc-by-4.0".
        language: of the questions and answers, an ISO 639 code.
        base_model: Hub ids of the encoders, or of the model that was fine-tuned; those of the recipe unless given.
    """

    repo_id: str
    tag: str | None = None
    license: str = "apache-2.0"
    language: str = "en"
    base_model: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.repo_id.split("/")[-1]


def model_card(config: QCAConfig, results: Results | None, release: Release, overlay: str | None = None) -> ModelCard:
    """The card of a checkpoint.

    Args:
        config: of the checkpoint.
        results: of `read_results`; None for a checkpoint nobody evaluated, whose card has no numbers.
        release: what cannot be measured.
        overlay: file beside the card that shows where the model looked.
    """
    return ModelCard.from_template(
        card_metadata(results, release),
        template_path=str(TEMPLATE),
        release=release,
        config=config,
        answers=_examples(config),
        revision=f', revision="{release.tag}"' if release.tag else "",
        version=__version__,
        overlay=overlay,
        results=results,
        tables=_tables(results) if results else {},
        recipe=yaml.safe_dump(results.get("recipe"), sort_keys=False, allow_unicode=True) if results else "",
        format=format_value,
    )


def card_metadata(results: Results | None, release: Release) -> ModelCardData:
    """The part of the card the Hub reads."""
    recipe = (results or {}).get("recipe", {})
    encoders = [recipe.get("vision_encoder"), recipe.get("text_encoder")]
    bases = list(release.base_model) or [encoder for encoder in encoders if encoder and is_hub_id(encoder)]
    return ModelCardData(
        license=release.license,
        language=release.language,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["vqa", "query-conditioned-attention"],
        base_model=bases or None,
        base_model_relation="finetune" if bases else None,
        **(measured_metadata(results, release) if results else {}),
    )


def is_hub_id(name: str) -> bool:
    """Whether `name` is `owner/name` and no folder."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def hub_dataset(recipe: dict[str, Any]) -> str | None:
    """The id of the Hub data set a recipe trains on; None for files, and for a recipe that does not say."""
    options = {"format": recipe.get("format"), **recipe.get("data_options", {})}
    name = str(recipe.get("data"))
    return name if options["format"] == "hub" and is_hub_id(name) else None


def measured_metadata(results: Results, release: Release) -> dict[str, Any]:
    """`datasets`, of the Hub alone, `metrics` and the model index."""
    data, trained_on = results["data"], hub_dataset(results.get("recipe", {}))
    identifier = data["name"] if is_hub_id(data["name"]) else data["name"].lower().replace(" ", "-")
    evaluations = [
        EvalResult(
            task_type=TASK,
            task_name="Visual Question Answering",
            dataset_type=identifier,
            dataset_name=data["name"],
            dataset_split=data["split"],
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=value["mean"] if isinstance(value, dict) else value,
        )
        for name, value in results["metrics"].items()
    ]
    return {
        "datasets": [trained_on] if trained_on else None,
        "metrics": list(results["metrics"]),
        "model_name": release.name,
        "eval_results": evaluations,
    }


def _tables(results: Results) -> dict[str, str]:
    """The card's Markdown tables; empty where there is nothing to show."""
    types, baselines = results["per_question_type"], results["baselines"]
    overall = {name: {key: values[key] for key in values if key not in types} for name, values in baselines.items()}
    of_baselines = {
        kind: {name: values[kind] for name, values in baselines.items() if kind in values} for kind in types
    }
    attention = {
        source: {metric: values[source] for metric, values in results["attention"].items() if source in values}
        for source in ATTENTION_SOURCES
    }
    return {
        "results": _table("metric", _transposed({"this model": results["metrics"], **overall})),
        "per_question_type": _table("question type", {kind: types[kind] | of_baselines[kind] for kind in types}),
        "attention": _table("metric", _transposed(attention)),
    }


def _transposed(columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return {row: {name: column[row] for name, column in columns.items() if row in column} for row in rows}


def _table(corner: str, rows: dict[str, dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(format_value(row.get(column)) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) if rows else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _examples(config: QCAConfig, shown: int = 5) -> str:
    answers: dict[int, str] = config.id2label  # type: ignore[assignment]
    return ", ".join(f"`{answers[i]}`" for i in range(min(shown, len(answers)))) + ", ..." * (len(answers) > shown)
