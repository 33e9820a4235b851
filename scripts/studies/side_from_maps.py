r"""Do relevance maps show the answer of `side` questions, and does the model read it from them?

    python scripts/studies/side_from_maps.py runs/results/facades/step_by_step --output OUT.json

The folder holds a run for each seed, as `qca results` leaves it. For the `side` questions of each run's validation
rows, the table has the accuracy of the model's answers; that of answers read from its maps, by comparing the centers
of mass of the first two hops ("to the left of": the first center is further left); that of the same reading of the
target maps; and the pointing accuracy of each hop.
"""

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.evaluation.evaluation_data import evaluation_data
from modeling_qca.training.evaluation.predictions import predict
from modeling_qca.training.files.run_files import RESULTS, format_value, read_run, write_json

KIND = "side"
COLUMNS = ["model", "centers of its maps", "centers of the targets", "pointing of hop 1", "pointing of hop 2"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+", metavar="row")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    table = []
    for row in arguments.rows:
        seeds = [_measure(str(file.parent)) for file in sorted(row.glob(f"*/{RESULTS}"))]
        if not seeds:
            parser.error(f"{row}: no finished run")
        table.append([row.name.replace("_", " "), str(len(seeds)), *map(_spread, zip(*seeds, strict=True))])
    write_json(arguments.output, {"tables": [{"columns": [f"`{KIND}`", "seeds", *COLUMNS], "rows": table}]})


def _measure(checkpoint: str) -> tuple[float, ...]:
    """The values of `COLUMNS` for one run."""
    rows = evaluation_data(checkpoint, read_run(checkpoint), None, None, {}).rows()
    rows = rows.select([place for place, kind in enumerate(rows["question_type"]) if kind == KIND])
    pipeline = load_pipeline(checkpoint)
    collator = QuestionCollator(pipeline.processor, pipeline.model.config)
    predicted = predict(pipeline.model, rows, collator)
    expected = [answers[0]["answer"] for answers in rows["answers"]]
    maps, targets = (np.stack([np.asarray(one) for one in of]) for of in (predicted["relevance"], rows["relevance"]))
    return (
        float(np.mean([given == right for given, right in zip(predicted["answer"], expected, strict=True)])),
        *(float(np.mean(answers_of_centers(of, rows["question"]) == np.array(expected))) for of in (maps, targets)),
        *pointing(maps, targets),
    )


def answers_of_centers(maps: NDArray[Any], questions: list[str]) -> NDArray[np.str_]:
    """The answer that the centers of the first two of maps `[n, hops, rows, columns]` give to each question."""
    shares = maps.sum(axis=2) / maps.sum(axis=(2, 3))[..., None]  # [n, hops, columns]
    centers = shares @ np.arange(maps.shape[-1])
    asks_left = np.array([re.search(r" to the (left|right) of ", question)[1] == "left" for question in questions])
    return np.where((centers[:, 0] < centers[:, 1]) == asks_left, "yes", "no")


def pointing(maps: NDArray[Any], targets: NDArray[Any]) -> list[float]:
    """For each hop, the share of questions whose maximum lies in the target `[n, hops, rows, columns]` of that hop."""
    if maps.shape != targets.shape:
        raise ValueError(f"the maps are {maps.shape} and their targets {targets.shape}: hops and grid must be equal")
    count, hops = maps.shape[:2]
    highest = maps.reshape(count, hops, -1).argmax(axis=-1)
    inside = np.take_along_axis(targets.reshape(count, hops, -1) > 0, highest[..., None], axis=-1)[..., 0]
    return inside.mean(axis=0).tolist()


def _spread(values: tuple[float, ...]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return format_value({"mean": statistics.fmean(values), "std": deviation} if deviation else values[0])


if __name__ == "__main__":
    main()
