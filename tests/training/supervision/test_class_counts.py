"""Pixel counts of classes against masks of pixels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modeling_qca.training.data.relevance_maps import cell_shares
from modeling_qca.training.supervision.class_counts import ClassCounts
from modeling_qca.training.supervision.image_questions import HALVES, RegionTarget, half_region


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_shares_and_cells_equal_those_of_the_pixels(height, width, rows, columns, seed):
    labels = np.random.default_rng(seed).integers(0, 4, (height, width), dtype=np.uint8)
    counts = ClassCounts(labels, 4, (rows, columns))
    thirds = (slice(height // 3, 2 * height // 3), slice(0, width // 3))
    for region in [
        None,
        *(half_region(half, labels.shape) for half in HALVES),
        *([thirds] if min(width, height) > 2 else []),
    ]:
        part = labels if region is None else labels[region]
        np.testing.assert_array_equal(counts.shares(region), [(part == label).mean() for label in range(4)])
        for label in (None, 0, 3):
            expected = cell_shares(RegionTarget(label, region).mask(labels), (rows, columns))
            np.testing.assert_allclose(counts.cell_shares(label, region), expected, atol=1e-6)
