"""Answer questions about the images of Parquet files on a Ray cluster:

python examples/predict_with_ray.py CHECKPOINT photos.parquet answers/ "is there a bed" "how many chairs"

The files have a column `image` with encoded images, paths or URLs. Without questions on the command line, they have
a column `question` too. `answers/` gets Parquet files with a row for each question about each image.
"""

import sys
from pathlib import Path

import ray

from modeling_qca.training import Predictor

WORKERS = 2  # each with a model of its own and a CPU; Ray needs more CPUs than that, since it reads on another one
BATCH_ROWS = 16
BLOCK_ROWS = 64  # of one task; a table of one block would keep a single worker busy


def main(checkpoint: str, source: str, output: str, *questions: str) -> None:
    settings = {"checkpoint": str(Path(checkpoint).absolute()), "questions": list(questions) or None}
    photos = ray.data.read_parquet(source).repartition(target_num_rows_per_block=BLOCK_ROWS)
    answers = photos.map_batches(Predictor, fn_constructor_kwargs=settings, batch_size=BATCH_ROWS, concurrency=WORKERS)
    answers.write_parquet(str(Path(output).absolute()))


if __name__ == "__main__":
    main(*sys.argv[1:])
