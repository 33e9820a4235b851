"""Relevance maps: rasterized by overlap of area, written and read one at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modeling_qca.training.data.relevance_maps import cell_shares, read_maps, write_maps


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9))
def test_cell_shares_are_overlaps_of_area(height, width, rows, columns, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    fine = np.kron(mask, np.ones((rows, columns)))  # each pixel cut so that cells begin and end between pieces
    expected = fine.reshape(rows, height, columns, width).mean(axis=(1, 3))
    np.testing.assert_allclose(cell_shares(mask, (rows, columns)), expected, atol=1e-5)


def test_maps_written_one_at_a_time_are_an_ordinary_npz(tmp_path):
    maps = np.random.default_rng(0).random((5, 2, 3, 4)).astype(np.float16)
    write_maps(tmp_path / "maps.npz", iter(maps), 5, (2, 3, 4))
    np.testing.assert_array_equal(np.load(tmp_path / "maps.npz")["mask"], maps)
    for (row, read), written in zip(read_maps(tmp_path / "maps.npz"), maps, strict=True):
        np.testing.assert_array_equal(read.astype(np.float16), written, err_msg=str(row))
