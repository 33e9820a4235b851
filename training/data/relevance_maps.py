"""Relevance maps beside a table of questions: rasterized from masks, read in blocks and written one at a time.

A map has a target value for each cell of a grid. The file `<table>_relevance.npz` holds `mask`
[n, rows, columns] or [n, T, rows, columns] and, where not every row has a map, `row` [n], the ascending row numbers.
"""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

Grid = tuple[int, int]
BLOCK = 256  # maps that are read at once


def cell_shares(mask: ArrayLike, grid: Grid) -> NDArray[np.float32]:
    """The share in [0, 1] of each of rows x columns cells that `mask` [height, width] covers, by overlap of area."""
    pixels = np.asarray(mask, dtype=np.float32)
    down, across = (overlap(cells, size) for cells, size in zip(grid, pixels.shape, strict=True))
    return (down @ pixels @ across.T).astype(np.float32)


@lru_cache(maxsize=16)  # the pictures of a data set mostly have a few sizes
def overlap(cells: int, size: int) -> NDArray[np.float32]:
    """[cells, size]: the weight of each pixel in the mean over each cell, for a side of `size` pixels."""
    edges = np.arange(cells + 1) * (size / cells)
    pixels = np.arange(size)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (shared.clip(0) * (cells / size)).astype(np.float32)
    weights.setflags(write=False)
    return weights


def as_hops(relevance: ArrayLike, place: str) -> NDArray[np.float32]:
    """One row's map [rows, columns] or maps [T, rows, columns] as float32 [T, rows, columns].

    Raises:
        ValueError: `relevance` has another shape, or a value that is negative or not finite. The message
            names `place`.
    """
    try:
        maps = np.asarray(relevance, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{place}: the rows of its relevance map differ in length") from error
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"{place}: a relevance map is [rows][columns] or [T][rows][columns], not {maps.shape}")
    if not (np.isfinite(maps) & (maps >= 0)).all():
        raise ValueError(f"{place}: its relevance map holds a value that is negative or not finite")
    return maps


def read_maps(path: Path, where: Mapping[str, str] | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(row number, maps [T, rows, columns]) in ascending order, with a block of maps in memory at a time.

    Args:
        path: the npz file.
        where: keep only maps whose entry in another array of the file equals this: `{"tier": "strict"}`.

    Raises:
        ValueError: the file is no npz, `mask` has another form, `row` does not ascend, `where` names no array, or an
            array has another length than `mask`.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an npz file of relevance maps: {error}") from error
    missing = [name for name in ("mask", *(where or {})) if name not in arrays.files]
    if missing:
        raise ValueError(f"{path}: no array {missing[0]!r}, only {', '.join(arrays.files)}")
    count, numbered = count_maps(path)
    for name in (*(where or {}), *(["row"] if numbered else [])):
        if len(arrays[name]) != count:
            raise ValueError(f"{path}: {len(arrays[name])} entries in `{name}` for {count} in `mask`")
    rows = arrays["row"] if numbered else None
    if rows is not None and not (np.diff(rows) > 0).all():
        raise ValueError(f"{path}: `row` must ascend; sort the arrays by it")
    keep = [np.asarray(arrays[name]).astype(str) == value for name, value in (where or {}).items()]
    index = 0
    for block in _read_mask(path):
        for mask in _checked(block, path, index):
            if all(kept[index] for kept in keep):
                yield index if rows is None else int(rows[index]), mask
            index += 1


def write_maps(
    path: Path,
    maps: Iterable[NDArray[np.floating]],
    count: int,
    shape: tuple[int, ...],
    rows: Sequence[int] | None = None,
) -> None:
    """Write `count` maps of `shape` as `mask` [count, *shape] float16, one at a time.

    `rows` are the ascending row numbers of the maps; leave them out if every row of the table has a map.
    """
    header = {"descr": "<f2", "fortran_order": False, "shape": (count, *shape)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("mask.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for relevance in maps:
            file.write(np.ascontiguousarray(relevance, dtype="<f2").tobytes())
    if rows is not None:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("row.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(rows, dtype=np.int64))


def count_maps(path: Path) -> tuple[int, bool]:
    """The number of maps in the file, and whether it has the row numbers of the maps."""
    with zipfile.ZipFile(path) as archive, archive.open("mask.npy") as file:
        shape, _, _ = _read_header(file, path)
        return shape[0], "row.npy" in archive.namelist()


def _read_mask(path: Path) -> Iterator[NDArray[np.generic]]:
    """Blocks of maps [block, rows, columns] or [block, T, rows, columns]."""
    with zipfile.ZipFile(path) as archive, archive.open("mask.npy") as file:
        shape, fortran_order, dtype = _read_header(file, path)
        if len(shape) not in (3, 4) or fortran_order:
            raise ValueError(f"{path}: `mask` must be [n, rows, columns] or [n, T, rows, columns], not {shape}")
        size = dtype.itemsize * int(np.prod(shape[1:]))
        for start in range(0, shape[0], BLOCK):
            content = file.read(size * min(BLOCK, shape[0] - start))
            yield np.frombuffer(content, dtype).reshape(-1, *shape[1:])


def _checked(block: NDArray[np.generic], path: Path, start: int) -> NDArray[np.float32]:
    """A block of maps as float32 [block, T, rows, columns]; see [`as_hops`]."""
    maps = block.astype(np.float32)
    if maps.size and (np.isfinite(maps) & (maps >= 0)).all():
        return maps if maps.ndim == 4 else maps[:, None]
    return np.stack([as_hops(mask, f"{path} map {start + index}") for index, mask in enumerate(maps)])


def _read_header(file, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:  # type: ignore[no-untyped-def]
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"{path}: `mask` is in version {version} of the npy format; write it with numpy.savez")
