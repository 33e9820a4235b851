"""Answer questions about the images of Parquet files on a Ray cluster:

python examples/predict_with_ray.py CHECKPOINT photos.parquet answers/ "is there a bed" "how many chairs"

The files have a column `image` with encoded images, paths or URLs. Without questions on the command line, they have
a column `question` too. `answers/` gets Parquet files with a row for each question about each image.
"""

import sys
from pathlib import Path

import ray

from modeling_qca.training import Predictor

WORKERS = 2  # each with a model of its own
ROWS = 16  # in a batch


def main(checkpoint: str, source: str, output: str, *questions: str) -> None:
    settings = {"checkpoint": str(Path(checkpoint).absolute()), "questions": list(questions) or None}
    answers = ray.data.read_parquet(source).map_batches(
        Predictor, fn_constructor_kwargs=settings, batch_size=ROWS, concurrency=WORKERS
    )
    answers.write_parquet(str(Path(output).absolute()))


if __name__ == "__main__":
    main(*sys.argv[1:])
