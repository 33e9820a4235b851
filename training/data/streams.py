"""A stream of rows for training: it has no length, and its order is that of its files."""

import datasets

from ..files.progress import track

SHUFFLE_BUFFER = 1000


def repeat_and_shuffle(rows: datasets.IterableDataset, seed: int) -> datasets.IterableDataset:
    """
    Endless passes over `rows`. The shards are shuffled, and their rows within a buffer of `SHUFFLE_BUFFER`.

    Without an end, no process runs out of rows before another one, and a resumed run finds its place.
    """
    return rows.repeat(None).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)


def read_answers(rows: datasets.IterableDataset) -> datasets.Dataset:
    """The columns `question_id` and `answers` in memory, about 100 bytes a row. Reads the stream once.

    Raises:
        ValueError: the stream is empty.
    """
    texts = rows.select_columns(["question_id", "answers"])
    read = track(texts.iter(batch_size=1000), "Reading answers")
    batches = [datasets.Dataset.from_dict(batch, texts.features) for batch in read]
    if not batches:
        raise ValueError("the stream has no rows, so there is nothing to train on")
    return datasets.concatenate_datasets(batches)
