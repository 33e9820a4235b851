"""An epoch is a seeded permutation in which questions about one image stay together."""

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_qca.training.data.sampler import ImageGroupedSampler


@given(
    image_ids=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60),
    size=st.integers(1, 9),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_epoch_is_a_permutation_in_groups_of_one_image(image_ids, size, seed, epoch):
    sampler = ImageGroupedSampler(image_ids, size, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(image_ids))) and len(sampler) == len(order)
    # as few groups as the sizes allow: every run of an image is made of full groups and at most one rest
    groups = sum(-(-count // size) for count in Counter(image_ids).values())
    runs = [len(list(run)) for _, run in groupby(image_ids[row] for row in order)]
    assert len(runs) <= groups


def test_groups_have_at_most_questions_per_image_rows():
    sampler = ImageGroupedSampler([name for name in "ab" for _ in range(64)], 4, seed=0)
    order = list(sampler)
    groups = [order[start : start + 4] for start in range(0, 128, 4)]
    images = ["".join("ab"[row // 64] for row in group) for group in groups]
    assert set(images) == {"aaaa", "bbbb"}
    assert len(list(groupby(images))) > 8  # the two images take turns by chance, neither comes whole


def test_order_depends_on_seed_and_epoch():
    image_ids = [str(row // 4) for row in range(64)]

    def order(seed: int, epoch: int) -> list[int]:
        sampler = ImageGroupedSampler(image_ids, 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)


def test_refuses_a_group_size_below_one():
    with pytest.raises(ValueError, match="questions_per_image"):
        ImageGroupedSampler(["a"], 0)
