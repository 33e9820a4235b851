"""What training needs of a stream of rows, which has no length and no order but its own."""

import datasets
from rich.progress import track

SHUFFLE_BUFFER = 1000


def endless(rows: datasets.IterableDataset, seed: int) -> datasets.IterableDataset:
    """
    Passes over `rows` without end, so that no process runs out of rows before another one and a resumed run finds its
    place. The shards are shuffled, and their rows within a buffer of `SHUFFLE_BUFFER`.
    """
    return rows.repeat(None).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)


def read_answers(rows: datasets.IterableDataset) -> datasets.Dataset:
    """The columns `question_id` and `answers` in memory, about 100 bytes a row; reads the stream once.

    Raises:
        ValueError: the stream is empty.
    """
    texts = rows.select_columns(["question_id", "answers"])
    read = track(texts.iter(batch_size=1000), "Reading answers", total=None, transient=True)
    batches = [datasets.Dataset.from_dict(batch, texts.features) for batch in read]
    if not batches:
        raise ValueError("the stream has no rows; nothing is left to train on")
    return datasets.concatenate_datasets(batches)
