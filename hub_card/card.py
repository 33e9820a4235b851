"""The model card. Every number in it comes from results.json (see `results_file`)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_qca import QCAConfig, __version__
from modeling_qca.training.files.run_files import ATTENTION_SOURCES, format_value

from .results_file import Results

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("template.md")
TASK = "visual-question-answering"


@dataclass(frozen=True)
class Release:
    """The part of a card that the publisher states. The rest is measured.

    Args:
        repo_id: `owner/name` on the Hub.
        tag: name of this version. The examples of the card load it.
        license: identifier on the Hub, for example "cc-by-4.0".
        language: ISO 639 code of the questions and answers.
        base_model: Hub ids of the encoders or of the fine-tuned model. The default is the encoders of the recipe.
    """

    repo_id: str
    tag: str | None = None
    license: str = "apache-2.0"
    language: str = "en"
    base_model: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.repo_id.split("/")[-1]


def model_card(
    config: QCAConfig, results: Results | None, release: Release, example_picture: str | None = None
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        config: of the checkpoint.
        results: of `read_results`. None for a checkpoint without an evaluation; its card has no numbers.
        release: the part that cannot be measured.
        example_picture: file beside the card that shows where the model looked.
    """
    return ModelCard.from_template(
        card_metadata(results, release),
        template_path=str(TEMPLATE),
        release=release,
        config=config,
        answers=_examples(config),
        revision=f', revision="{release.tag}"' if release.tag else "",
        version=__version__,
        example_picture=example_picture,
        results=results,
        reach=(results or {}).get("data", {}).get("vocabulary", {}).get("validation"),
        tables=_tables(results) if results else {},
        recipe=yaml.safe_dump(results.get("recipe"), sort_keys=False, allow_unicode=True) if results else "",
        format=format_value,
    )


def card_metadata(results: Results | None, release: Release) -> ModelCardData:
    """The metadata of the card, which the Hub reads."""
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
    """Whether `name` is `owner/name` and not a local folder."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def hub_dataset(recipe: dict[str, Any]) -> str | None:
    """The Hub id of a recipe's training data; None for local files and for a recipe without data."""
    options = {"format": recipe.get("format"), **recipe.get("data_options", {})}
    name = str(recipe.get("data"))
    return name if options["format"] == "hub" and is_hub_id(name) else None


def measured_metadata(results: Results, release: Release) -> dict[str, Any]:
    """`datasets` (only those on the Hub), `metrics` and the model index."""
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
    """The Markdown tables of the card. A table without rows is empty text."""
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
