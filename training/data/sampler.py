"""The order of an epoch. Questions about one image stay together, so that a batch encodes each image once."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class ImageGroupedSampler(Sampler[int]):
    """
    A seeded permutation of the rows in which up to `questions_per_image` questions of an image follow one another.

    Args:
        image_ids: image of each row.
        questions_per_image: largest group. An image with more questions has several groups, shuffled separately.
        seed: the order depends only on the seed and the epoch.

    Raises:
        ValueError: `questions_per_image` is below 1.
    """

    def __init__(self, image_ids: Sequence[str], questions_per_image: int, seed: int = 0):
        if questions_per_image < 1:
            raise ValueError(f"`questions_per_image` must be at least 1, got {questions_per_image}.")
        self.rows_of_image: dict[str, list[int]] = {}
        for row, image_id in enumerate(image_ids):
            self.rows_of_image.setdefault(image_id, []).append(row)
        self.num_rows = len(image_ids)
        self.questions_per_image = questions_per_image
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        groups = []
        for rows in self.rows_of_image.values():
            shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
            size = self.questions_per_image
            groups += [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        for group in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[group]
