"""Where a relevance map points: its maximum, and the box of the region around it."""

import numpy as np
from scipy.ndimage import find_objects, label

from modeling_qca.overlay_qca import Box

SHARE_OF_PEAK = 0.5  # patches with at least this share of the maximum belong to the region


def peak_and_box(relevance: np.ndarray, seen: Box) -> tuple[list[float], list[float]]:
    """
    Args:
        relevance: `[rows, columns]`.
        seen: (left, top, right, bottom) in pixels of the part of the image that the grid covers.

    Returns:
        The center `[x, y]` of the patch with the maximum; and `[left, top, right, bottom]` around the patches that
        reach `SHARE_OF_PEAK` of it and are connected to it by their sides. In pixels, to one decimal.
    """
    row, column = np.unravel_index(np.argmax(relevance), relevance.shape)
    regions, _ = label(relevance >= SHARE_OF_PEAK * relevance[row, column])
    vertical, horizontal = find_objects(regions)[regions[row, column] - 1]
    left, top, right, bottom = seen
    width, height = (right - left) / relevance.shape[1], (bottom - top) / relevance.shape[0]
    peak = [left + (column + 0.5) * width, top + (row + 0.5) * height]
    box = [left + horizontal.start * width, top + vertical.start * height]
    box += [left + horizontal.stop * width, top + vertical.stop * height]
    return [round(float(value), 1) for value in peak], [round(float(value), 1) for value in box]
