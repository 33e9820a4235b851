"""A model card for each row of a results table, with mean and standard deviation over the seeds.

`python -m modeling_qca.hub_card.row_card FOLDER RESULTS.json ROW --repo-id you/model` writes FOLDER/README.md from
FOLDER/config.json and one row. With `--check` it writes nothing and fails if the card is out of date.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from modeling_qca import QCAConfig
from modeling_qca.training.experiments.results_table import ResultsTable
from modeling_qca.training.files.atomic_write import atomic_write
from modeling_qca.training.files.run_files import OVERLAY

from .card import CARD, Release, model_card
from .results_file import Results


def write_row_cards(table: ResultsTable, summary: dict[str, Any], output_dir: Path) -> None:
    """Write README.md to the folder of every finished row with a checkpoint. The reference model has none.

    Args:
        summary: return value of `run_table`.
        output_dir: of `run_table`.
    """
    folders = {row.name: row.folder for row in table.rows}
    for row in summary["rows"]:
        folder, first = output_dir / folders[row["name"]], str(row["seeds"][0])
        if not (folder / first / CONFIG_NAME).exists():
            continue
        picture = f"{first}/{OVERLAY}" if (folder / first / OVERLAY).exists() else None
        release = Release(f"you/{table.name}-{folder.name}")
        card = model_card(
            QCAConfig.from_pretrained(folder / first), row_results(summary, row["name"]), release, picture
        )
        with atomic_write(folder / CARD) as unfinished:
            unfinished.write_text(str(card), encoding="utf-8")


def row_results(summary: dict[str, Any], name: str) -> Results:
    """The results of one row in the form of `results_file`: mean and deviation if the row has several seeds.

    Raises:
        ValueError: The summary has no such row.
    """
    rows = {row["name"]: row for row in summary["rows"]}
    if name not in rows:
        raise ValueError(f"{summary['table']} has no row {name!r}; its rows are: {', '.join(rows)}.")
    row = rows[name]
    types, metrics = _accuracy_and_metrics(row)
    baselines = {"majority": {"accuracy": summary["majority"]}}
    if "shuffled_questions" in row:
        baselines["shuffled_questions"] = {"accuracy": _value(row["shuffled_questions"], row)}
    question_only = next((other for other in rows.values() if other.get("baseline") == "blank_images"), row)
    if question_only is not row:
        of_types, of_metrics = _accuracy_and_metrics(question_only)
        baselines["question_only"] = of_types | of_metrics
    attention = {
        measure: {source: _value(spread, row) for source, spread in sources.items()}
        for measure, sources in row["attention"].items()
    }
    if "maps" in attention:
        attention["maps"] = {source: round(spread["mean"]) for source, spread in row["attention"]["maps"].items()}
    split = {"split": f"{summary['splits']} splits, one a seed"} if "splits" in summary else {}
    return {
        "metrics": {"accuracy": types.pop("accuracy"), **metrics},
        "per_question_type": {name: {"accuracy": value} for name, value in types.items()},
        "baselines": baselines,
        "attention": attention,
        "data": {**split, **summary["data"]},
        **{entry: summary[entry] for entry in ("versions", "command")},
        **{entry: row[entry] for entry in ("seeds", "cost", "recipe", "baseline") if entry in row},
        **({"device": summary["device"]} if "device" in summary else {}),
    }


def _accuracy_and_metrics(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The accuracy ("accuracy" for all questions, then by question type), and the other metrics."""
    types = {"accuracy" if name == "all" else name: _value(spread, row) for name, spread in row["accuracy"].items()}
    return types, {metric: _value(spread, row) for metric, spread in row.get("metrics", {}).items()}


def _value(spread: dict[str, Any], row: dict[str, Any]) -> Any:
    """Mean and deviation, or the value alone for one seed."""
    return spread if len(spread.get("values", row["seeds"])) > 1 else spread["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("row")
    parser.add_argument("--repo-id", "--repo_id", required=True, help="owner/name in the examples of the card")
    parser.add_argument("--check", action="store_true", help="write nothing and fail if the card is out of date")
    arguments = parser.parse_args()
    config, card = QCAConfig.from_pretrained(arguments.folder), arguments.folder / CARD
    try:
        results = row_results(json.loads(arguments.results.read_text(encoding="utf-8")), arguments.row)
    except ValueError as error:
        sys.exit(f"{arguments.results}: {error}")
    rendered = str(model_card(config, results, Release(arguments.repo_id)))
    if not arguments.check:
        card.write_text(rendered, encoding="utf-8")
    elif card.read_text(encoding="utf-8") != rendered:
        sys.exit(f"{card} is not the card of {arguments.results} and the template; run this without --check.")


if __name__ == "__main__":
    main()
