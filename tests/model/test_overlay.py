"""Overlays draw relevance at the right place of square, wide and tall images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_qca.overlay_qca import VIRIDIS, colors, kept_patches, overlay, place_maps, strip, text_strip

SIZES = [(64, 64), (97, 41), (40, 130)]  # width, height


def gray(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (128, 128, 128))


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from(SIZES),
    rows=st.integers(2, 16),
    columns=st.integers(2, 16),
    place=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_brightest_pixels_are_at_the_center_of_the_most_relevant_patch(size, rows, columns, place):
    row, column = int(place[0] * rows), int(place[1] * columns)
    relevance = torch.full((rows, columns), 0.1)
    relevance[row, column] = 0.9
    picture = np.asarray(overlay(gray(size), relevance, legend=False)).astype(int)
    assert picture.shape == (size[1], size[0], 3)
    brightness = picture[..., 0] + picture[..., 1] - picture[..., 2]  # viridis ends in yellow
    y, x = (brightness == brightness.max()).nonzero()
    height, width = size[1] / rows, size[0] / columns
    assert abs(y.mean() + 0.5 - (row + 0.5) * height) <= height / 2
    assert abs(x.mean() + 0.5 - (column + 0.5) * width) <= width / 2


@pytest.mark.parametrize("size", SIZES)
def test_colors_are_proportional_to_the_largest_share(size):
    relevance = torch.linspace(0.2, 0.8, 12).reshape(3, 4)
    picture = np.asarray(overlay(gray(size), relevance, legend=False)).astype(float)
    for row in range(3):
        for column in range(4):
            y, x = (row + 0.5) * size[1] / 3, (column + 0.5) * size[0] / 4
            expected = 0.4 * 128 + 0.6 * colors(np.array(float(relevance[row, column]) / 0.8))
            np.testing.assert_allclose(picture[int(y), int(x)], expected, atol=12)


def test_colors_equal_viridis_of_matplotlib():
    matplotlib = pytest.importorskip("matplotlib", reason="the `figures` extra is not installed")
    values = np.linspace(0, 1, 256)
    expected = matplotlib.colormaps["viridis"](values)[:, :3] * 255
    assert np.abs(colors(values) - expected).max() < 6.5
    assert (colors(np.linspace(0, 1, 17)) == VIRIDIS).all()
    lightness = colors(values) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1).all()


def test_caption_and_legend_are_printed_below_the_image():
    image, relevance = gray((200, 100)), torch.eye(4)
    bare = overlay(image, relevance, legend=False)
    with_legend = overlay(image, relevance)
    captioned = overlay(image, relevance, "what is left of the red cube " * 3)
    assert bare.size == (200, 100)
    assert with_legend.width == captioned.width == 200
    assert 100 < with_legend.height < captioned.height
    for picture in (with_legend, captioned):
        assert picture.crop((0, 0, 200, 100)).tobytes() == bare.tobytes()
    assert text_strip("word " * 30, 200).height > 2 * text_strip("word", 200).height
    assert text_strip("one\ntwo", 200).height > text_strip("one two", 200).height
    below = np.asarray(captioned)[with_legend.height :]
    assert (below == 0).any()
    assert (below[:, -4:] == 255).all()  # nothing runs over the edge


def test_a_map_of_zeros_has_the_lowest_color_everywhere():
    picture = np.asarray(overlay(gray((30, 20)), torch.zeros(4, 4), legend=False))
    assert (picture == picture[0, 0]).all()


def test_dropped_patches_fade_and_kept_patches_stay():
    image = Image.new("RGB", (40, 20), (200, 30, 30))
    kept = torch.tensor([[True, False], [False, True]])
    picture = np.asarray(kept_patches(image, kept)).astype(int)
    assert (picture[:10, :20] == (200, 30, 30)).all() and (picture[10:, 20:] == (200, 30, 30)).all()
    faded = picture[:10, 20:]
    assert (faded.max(-1) == faded.min(-1)).all() and (faded > 190).all()


def test_strip_places_pictures_side_by_side():
    picture = strip([Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 5), "blue")])
    assert picture.size == (48, 20)
    assert picture.getpixel((5, 19)) == (255, 0, 0)
    assert picture.getpixel((20, 2)) == (0, 0, 255)
    assert picture.getpixel((20, 10)) == (255, 255, 255)


def test_relevance_of_several_maps_is_refused():
    with pytest.raises(ValueError, match=r"one map \[rows, columns\], got shape \(2, 4, 4\)"):
        overlay(gray((8, 8)), torch.zeros(2, 4, 4))


@pytest.mark.parametrize("box", [None, (10, 5, 30, 25), (-8, 2, 48, 28), (5, -6, 35, 36)])
def test_maps_are_placed_where_the_overlay_draws_them(box):
    left, top, right, bottom = box or (0, 0, 40, 30)
    relevance = torch.zeros(2, 4, 4)
    relevance[0, 1, 2] = relevance[1, 2, 1] = 1
    placed = place_maps(relevance, (30, 40), box)
    assert placed.shape == (2, 30, 40)
    for index, (row, column) in enumerate([(1, 2), (2, 1)]):
        y, x = (placed[index] == placed[index].max()).nonzero().float().mean(0)
        assert abs(y + 0.5 - (top + (row + 0.5) * (bottom - top) / 4)) <= (bottom - top) / 8
        assert abs(x + 0.5 - (left + (column + 0.5) * (right - left) / 4)) <= (right - left) / 8
        outside = placed[index].clone()
        outside[max(top, 0) : bottom, max(left, 0) : right] = 0
        assert not outside.any()
