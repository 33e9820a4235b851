"""`qca compare`: two checkpoints on the same questions, image by image."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from modeling_qca.overlay_qca import sees_whole_picture

from ..confidence.bootstrap import bootstrap_interval, cluster_sums
from ..data.collator import QuestionCollator
from ..files.atomic_write import atomic_write
from ..files.run_files import read_run, write_json
from .accuracy import answer_accuracy
from .attention import pointing_hits
from .checkpoint import load_pipeline
from .evaluation import SCORING, known_answers, read_scoring
from .evaluation_data import EvaluationData, count_images, evaluation_data, shown_rows
from .predictions import BATCH_SIZE, predict
from .provenance import provenance

logger = logging.getLogger(__name__)
COMPARISON, CHANGED = "comparison.json", "changed.csv"
EXAMPLES = 20
COLUMNS = ["question_id", "image_id", "question_type", "question", "expected_answers", "first_answer", "second_answer"]
COLUMNS += ["first_score", "second_score"]


def compare_checkpoints(
    first: str,
    second: str,
    data: str | None,
    split: str | None,
    options: Mapping[str, Any],
    output_dir: Path,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """
    Args:
        first, second: folders or Hub ids.
        data, split, options: as in `evaluation.evaluate_checkpoint`; by default the validation rows that the runs
            have in common.
        output_dir: gets `comparison.json`, and `changed.csv` with every question whose answer changed.
        seed: of the resamples.
        batch_size: questions answered at once.

    Returns:
        `names`; `measures`: for `accuracy`, and for `pointing` where both have maps, under `all` and each question
        type `questions`, `first`, `second`, `difference` (second minus first) and `interval` (95 %, resampled by
        image); `changed`: the number of questions with another answer, of those scored `better` and `worse`, and
        `examples` of the largest changes; and the provenance.

    Raises:
        ValueError: the two were measured on different rows or by different rules, and no data or rule is given; or see
            `evaluate_checkpoint`.
    """
    sources, scoring = (first, second), {name: options[name] for name in SCORING if name in options}
    others = {name: value for name, value in options.items() if name not in SCORING}
    rules = [read_scoring(source, scoring)[:2] for source in sources]
    if rules[0] != rules[1]:
        raise ValueError(
            f"{first} and {second} score answers by different rules, {rules[0]} and {rules[1]}: pass `answer_rule` "
            "and `normalize_answers` as options of the data"
        )
    chosen, rows = _common_rows(sources, data, split, others)
    answered = [_answered(source, rows, *rules[0], batch_size) for source in sources]
    scores = [one["score"] for one in answered]
    measures = {"accuracy": paired_differences(scores[0], scores[1], rows["image_id"], rows["question_type"], seed)}
    places = sorted(answered[0]["pointing"].keys() & answered[1]["pointing"].keys())
    if places:
        hits = [np.array([one["pointing"][place] for place in places]) for one in answered]
        pointed = rows.select(places)
        groups = pointed["image_id"], pointed["question_type"]
        measures["pointing"] = paired_differences(hits[0], hits[1], *groups, seed)
    changed = _changed_rows(rows, answered)
    comparison = {
        "names": short_names(*sources),
        "measures": measures,
        "changed": {
            "questions": len(changed),
            "better": int(np.sum(scores[1] > scores[0])),
            "worse": int(np.sum(scores[1] < scores[0])),
            "examples": [_example(row) for row in sorted(changed, key=_by_change)[:EXAMPLES]],
        },
        **provenance(rows, chosen.name, chosen.split_name, answered[0]["device"]),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_changed(output_dir / CHANGED, changed)
    write_json(output_dir / COMPARISON, comparison)
    return comparison


def paired_differences(
    first: np.ndarray, second: np.ndarray, image_ids: Sequence[str], kinds: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """
    The means of two measurements of the same questions, and their difference, for all questions and each kind.

    Args:
        first, second: `[n]`.
        image_ids: `[n]`, the clusters of the resamples.
        kinds: `[n]` question types; a question without one counts under `all` only.
    """
    table = {}
    types, clusters = np.asarray(kinds), np.asarray(image_ids)
    for kind in ("all", *sorted(set(types.tolist()) - {""})):
        chosen = np.ones(len(types), bool) if kind == "all" else types == kind
        one, two = first[chosen], second[chosen]
        sums = cluster_sums(np.stack([np.ones(len(one)), two - one], axis=1), clusters[chosen])
        table[kind] = {
            "questions": int(chosen.sum()),
            "first": float(one.mean()),
            "second": float(two.mean()),
            "difference": float((two - one).mean()),
            "interval": list(bootstrap_interval(sums, lambda totals: totals[:, 1] / totals[:, 0], seed)),
        }
    return table


def short_names(first: str, second: str) -> list[str]:
    """The last parts of two paths, as many as tell them apart: `runs/a/0`, `runs/b/0` -> `a/0`, `b/0`."""
    parts = [Path(source).parts for source in (first, second)]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of[-count:]) for of in parts]
        if names[0] != names[1]:
            return names
    return ["first", "second"]


def _common_rows(
    sources: tuple[str, str], data: str | None, split: str | None, options: Mapping[str, Any]
) -> tuple[EvaluationData, datasets.Dataset]:
    runs = [read_run(source) for source in sources]
    own = [place for place in (0, 1) if data is not None or runs[place] is not None] or [0]
    found = [evaluation_data(sources[place], runs[place], data, split, options) for place in own]
    rows = found[0].rows()
    if data is None and len(found) == 2:
        others = found[1].rows()
        if any(rows[column][:] != others[column][:] for column in ("question_id", "image_id", "question", "answers")):
            raise ValueError(
                f"{sources[0]} was measured on {found[0].name} ({found[0].split_name}) and {sources[1]} on "
                f"{found[1].name} ({found[1].split_name}), which are not the same rows: name the data to compare on"
            )
    for source, run in zip(sources, runs, strict=True):
        if count_images((run or {}).get("training_images"), rows, "trained"):
            logger.warning("%s was trained on compared rows, so the comparison favors it", source)
    return found[0], rows


def _answered(source: str, rows: datasets.Dataset, rule: Any, normalize: bool, batch_size: int) -> dict[str, Any]:
    pipeline = load_pipeline(source)
    known_answers(pipeline.model.config, rows, rule, normalize)
    collator = QuestionCollator(
        pipeline.processor, pipeline.model.config, answer_rule=rule, normalize_answers=normalize
    )
    shown, description = shown_rows(source, rows), f"Answering with {Path(source).name}"
    predicted = predict(pipeline.model, shown, collator, batch_size, description)
    whole = sees_whole_picture(pipeline.processor.image_processor)
    return {
        "answer": predicted["answer"],
        "score": answer_accuracy(predicted["answer"], rows, rule, normalize),
        "pointing": pointing_hits(predicted["relevance"], rows) if whole else {},
        "device": pipeline.device,
    }


def _changed_rows(rows: datasets.Dataset, answered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    first, second = answered
    texts = rows.select_columns(["question_id", "image_id", "question_type", "question", "answers"])
    changed = []
    for place, row in enumerate(texts):
        if first["answer"][place] == second["answer"][place]:
            continue
        expected = sorted(row.pop("answers"), key=lambda answer: -answer["count"])
        changed.append(
            row
            | {
                "expected_answers": ", ".join(answer["answer"] for answer in expected),
                "first_answer": first["answer"][place],
                "second_answer": second["answer"][place],
                "first_score": float(first["score"][place]),
                "second_score": float(second["score"][place]),
            }
        )
    return changed


def _by_change(row: Mapping[str, Any]) -> float:
    return -abs(row["second_score"] - row["first_score"])


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "change": row["second_score"] - row["first_score"]}


def _write_changed(path: Path, changed: Sequence[Mapping[str, Any]]) -> None:
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(changed)
