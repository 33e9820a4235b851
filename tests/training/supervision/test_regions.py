"""Coverage of boxes, polygons and masks: hand-computed shares, and other libraries as reference."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw, ImageOps

from modeling_qca.image_qca import ORIENTATION
from modeling_qca.training.supervision.regions import Box, Mask, Polygon, ellipse, rotated_box

SIZE = (8, 4)
L_SHAPE = Polygon((((0, 0), (4, 0), (4, 2), (2, 2), (2, 4), (0, 4)),))


def test_box_covers_fractions_of_cells():
    shares = Box(0.5, 1, 2.25, 3.5).coverage(SIZE, SIZE)
    expected = np.zeros((4, 8))
    expected[1:3, :3] = [0.5, 1, 0.25]
    expected[3, :3] = [0.25, 0.5, 0.125]
    assert shares == pytest.approx(expected)


def test_box_on_a_coarser_canvas_covers_the_same_share_of_the_picture():
    assert Box(1, 0, 6, 3).coverage(SIZE, (4, 2)) == pytest.approx(np.array([[0.5, 1, 1, 0], [0.25, 0.5, 0.5, 0]]))


def test_box_beyond_the_picture_is_cut_off():
    assert Box(-5, -5, 2, 1).coverage(SIZE, SIZE).sum() == 2
    assert Box(7, 3, 90, 90).coverage(SIZE, SIZE).sum() == 1


def test_polygon_on_cell_borders_is_exact():
    expected = np.zeros((4, 8))
    expected[:2, :4] = expected[2:, :2] = 1
    assert L_SHAPE.coverage(SIZE, SIZE) == pytest.approx(expected)


def test_outlines_of_a_polygon_are_united():
    square, within, apart = (
        ((0, 0), (4, 0), (4, 4), (0, 4)),
        ((2, 1), (4, 1), (4, 3), (2, 3)),
        ((6, 0), (8, 0), (8, 1)),
    )
    assert Polygon((square, within)).coverage(SIZE, SIZE).sum() == 16
    assert Polygon((square, within, apart)).coverage(SIZE, SIZE).sum() == pytest.approx(17)


def test_slanted_polygon_agrees_with_points_that_another_library_finds_inside():
    corners = ((3.3, 2.1), (28.7, 9.4), (17.2, 18.6), (9.5, 14.9))
    fine = (np.stack(np.meshgrid(np.arange(320), np.arange(200)), axis=-1) + 0.5) / 10
    inside = Outline(corners).contains_points(fine.reshape(-1, 2)).reshape(20, 10, 32, 10).mean(axis=(1, 3))
    assert Polygon((corners,)).coverage((32, 20), (32, 20)) == pytest.approx(inside, abs=0.06)


def test_mask_survives_encoding_and_covers_shares():
    chosen = np.random.default_rng(0).random((6, 8)) > 0.5
    mask = Mask.from_array(chosen)
    assert (mask.array == chosen).all()
    assert sum(mask.counts) == 48
    assert mask.coverage((80, 60), (4, 3)) == pytest.approx(chosen.reshape(3, 2, 4, 2).mean(axis=(1, 3)))


@pytest.mark.parametrize("first", [False, True])
def test_mask_counts_begin_with_pixels_that_are_not_chosen(first):
    chosen = np.array([[first, True], [False, True]])
    assert Mask.from_array(chosen).counts == ((0, 1, 1, 2) if first else (2, 2))


def test_rotated_box_turns_clockwise_about_its_corner():
    assert np.array(rotated_box(4, 1, 3, 2, 90, (4, 1)).outlines[0]) == pytest.approx(
        np.array([(4, 1), (4, 4), (2, 4), (2, 1)])
    )


def test_ellipse_has_its_area_and_extent():
    shares = ellipse((50, 30), (40, 10)).coverage((100, 60), (100, 60))
    assert shares.sum() == pytest.approx(np.pi * 400, rel=2e-3)
    upright = ellipse((50, 30), (20, 10), degrees=90)
    (left, top), (right, bottom) = upright.corners()
    assert (left, top, right, bottom) == pytest.approx((40, 10, 60, 50), abs=0.1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["box", "polygon", "mask"])
def test_region_turns_as_pillow_turns_the_picture(orientation, kind):
    stored = Image.new("L", (12, 8))
    ImageDraw.Draw(stored).rectangle((1, 2, 6, 4), fill=255)  # pixels 1..6 and 2..4
    stored.getexif()[ORIENTATION] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored)) > 0
    region = {
        "box": Box(1, 2, 7, 5),
        "polygon": Polygon((((1, 2), (7, 2), (7, 5), (1, 5)),)),
        "mask": Mask.from_array(np.asarray(stored) > 0),
    }[kind]
    size = upright.shape[::-1]
    assert (region.turned(orientation, (12, 8)).coverage(size, size) == upright).all()
