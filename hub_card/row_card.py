"""A card for each row of a table of results: what its checkpoints reached over the seeds.

`python -m modeling_qca.hub_card.row_card FOLDER RESULTS.json ROW` renders the card of the config.json in a folder
beside it; with `--check` nothing is written, and a card that differs is an error.
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

from .card import Release, Results, model_card
from .publish import CARD


def write_row_cards(table: ResultsTable, summary: dict[str, Any], output_dir: Path) -> None:
    """
    `README.md` in the folder of every finished row that left a checkpoint; the reference model leaves none.

    Args:
        summary: of `training.results.run_table`.
        output_dir: of the same.
    """
    folders = {row.name: row.folder for row in table.rows}
    for row in summary["rows"]:
        folder, first = output_dir / folders[row["name"]], str(row["seeds"][0])
        if not (folder / first / CONFIG_NAME).exists():
            continue
        overlay = f"{first}/{OVERLAY}" if (folder / first / OVERLAY).exists() else None
        release = Release(f"you/{table.name}-{folder.name}")
        card = model_card(
            QCAConfig.from_pretrained(folder / first), row_results(summary, row["name"]), release, overlay
        )
        with atomic_write(folder / CARD) as unfinished:
            unfinished.write_text(str(card), encoding="utf-8")


def row_results(summary: dict[str, Any], name: str) -> Results:
    """The results of one row in the form of [`card`], as spreads where it has several seeds.

    Raises:
        ValueError: where the summary has no such row.
    """
    rows = {row["name"]: row for row in summary["rows"]}
    if name not in rows:
        raise ValueError(f"{summary['table']} has no row {name!r}, only {', '.join(rows)}")
    row = rows[name]
    kinds, further = _answered(row)
    baselines = {"majority": {"accuracy": summary["majority"]}}
    if "shuffled_questions" in row:
        baselines["shuffled_questions"] = {"accuracy": _value(row["shuffled_questions"], row)}
    blind = next((other for other in rows.values() if other.get("baseline") == "blank_images"), row)
    if blind is not row:
        known, measured = _answered(blind)
        baselines["question_only"] = known | measured
    attention = {
        measure: {source: _value(spread, row) for source, spread in sources.items()}
        for measure, sources in row["attention"].items()
    }
    if "maps" in attention:
        attention["maps"] = {source: round(spread["mean"]) for source, spread in row["attention"]["maps"].items()}
    split = {"split": f"{summary['splits']} splits, one a seed"} if "splits" in summary else {}
    return {
        "metrics": {"accuracy": kinds.pop("accuracy"), **further},
        "per_question_type": {kind: {"accuracy": value} for kind, value in kinds.items()},
        "baselines": baselines,
        "attention": attention,
        "data": {**split, **summary["data"]},
        **{entry: summary[entry] for entry in ("versions", "command")},
        **{entry: row[entry] for entry in ("seeds", "cost", "recipe", "baseline") if entry in row},
        **({"device": summary["device"]} if "device" in summary else {}),
    }


def _answered(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy, whole and by question type, and what further metrics say."""
    kinds = {"accuracy" if kind == "all" else kind: _value(spread, row) for kind, spread in row["accuracy"].items()}
    return kinds, {metric: _value(spread, row) for metric, spread in row.get("metrics", {}).items()}


def _value(spread: dict[str, Any], row: dict[str, Any]) -> Any:
    """One seed has no spread."""
    return spread if len(spread.get("values", row["seeds"])) > 1 else spread["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("row")
    parser.add_argument("--repo_id", required=True)
    parser.add_argument("--check", action="store_true", help="fail where the card is not up to date")
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
        sys.exit(f"{card}: differs from what {arguments.results} and the template give; run this without --check")


if __name__ == "__main__":
    main()
