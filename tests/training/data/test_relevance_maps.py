"""Relevance maps: rasterized by overlap of area, written and read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_qca.training.data.relevance_maps import BLOCK, cell_shares, read_maps, write_maps


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


@pytest.mark.parametrize("hops", [(), (2,)])
def test_maps_beyond_a_block_are_read_and_checked(tmp_path, hops):
    maps = np.random.default_rng(0).random((2 * BLOCK + 5, *hops, 3, 4)).astype(np.float16)
    rows = np.arange(len(maps)) * 3
    np.savez(tmp_path / "maps.npz", mask=maps, row=rows)
    read = list(read_maps(tmp_path / "maps.npz"))
    assert [row for row, _ in read] == rows.tolist()
    np.testing.assert_array_equal(
        [mask for _, mask in read], maps.astype(np.float32).reshape(-1, *(hops or (1,)), 3, 4)
    )
    maps[BLOCK + 7, ..., 1, 1] = np.nan
    np.savez(tmp_path / "maps.npz", mask=maps, row=rows)
    with pytest.raises(ValueError, match=f"map {BLOCK + 7}: its relevance map holds a value that is negative or not"):
        list(read_maps(tmp_path / "maps.npz"))
