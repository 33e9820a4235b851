"""Zoom: which windows are chosen, what is read in them, and where."""

from typing import Any

import pytest
import torch
from helpers.tiny import called_operators, tiny_batch, tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_qca.states_qca import PatchPlaces
from modeling_qca.zoom_qca import Windows, Zoom, encode_glance

FACTOR, SIZE = 2, (64, 128)  # glance of 4 x 8 patches, fine grid of 8 x 16, windows of 32 x 64 pixels
DOTS = 2 * torch.eye(2).repeat(2, 2) - 1  # of mean 0 over 2 x 2 pixels, so that the glance does not see them


def zoom_batch(questions: int = 5, images: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    return tiny_batch(questions, images, size=SIZE, seed=seed)


def zoom_model(vision: str = "vit", **fields: Any) -> Any:
    return tiny_model(vision, **{"zoom_factor": FACTOR, "zoom_regions": 2} | fields)


def plain_boxes(factor: int) -> list[tuple[float, float, float, float]]:
    side, places = 1 / factor, [place / (2 * factor) for place in range(2 * factor - 1)]
    return [(left, top, left + side, top + side) for top in places for left in places]


factors = st.sampled_from([2, 3, 4])


@settings(max_examples=20, deadline=None)
@given(factors, st.integers(1, 2), st.integers(1, 2))
def test_windows_overlap_by_half_and_show_as_many_patches_as_the_glance(factor, down, across):
    rows, columns = 2 * factor * down, 2 * factor * across
    windows = Windows.of((rows, columns), factor, torch.device("cpu"))
    assert torch.allclose(windows.boxes, torch.tensor(plain_boxes(factor)))
    for window, (left, top, right, bottom) in enumerate(plain_boxes(factor)):
        inside = [
            top < (row + 0.5) / rows < bottom and left < (column + 0.5) / columns < right
            for row in range(rows)
            for column in range(columns)
        ]
        assert windows.inside[window].tolist() == inside
        cells = [
            row * columns * factor + column
            for row in range(rows * factor)
            for column in range(columns * factor)
            if top < (row + 0.5) / rows / factor < bottom and left < (column + 0.5) / columns / factor < right
        ]
        assert windows.cells[window].tolist() == cells


@settings(max_examples=30, deadline=None)
@given(factors, st.integers(1, 4), st.integers(0, 99))
def test_windows_are_chosen_one_after_another_by_the_share_that_is_left(factor, count, seed):
    side = 2 * factor
    windows = Windows.of((side, side), factor, torch.device("cpu"))
    maps = torch.rand(3, side * side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen, shares = windows.choose(maps, count)
    for row in range(3):
        rest = maps[row].clone()
        for place in range(count):
            held = [float(rest[inside].sum()) for inside in windows.inside]
            assert int(chosen[row, place]) == max(range(len(held)), key=held.__getitem__)
            assert float(shares[row, place]) == pytest.approx(max(held))
            rest[windows.inside[chosen[row, place]]] = 0


@pytest.mark.parametrize("vision", ["vit", "dinov3_vit", "siglip_vision_model"])
def test_no_region_is_the_model_without_zoom(vision):
    zooming, plain, batch = zoom_model(vision, zoom_regions=0), tiny_model(vision), zoom_batch()
    glance = batch | {"pixel_values": torch.nn.functional.avg_pool2d(batch["pixel_values"], FACTOR)}
    with torch.no_grad():
        found, expected = zooming(**batch), plain(**glance)
    assert torch.equal(found.logits, expected.logits)
    assert found.zoom_boxes is None
    spread = expected.relevance.unflatten(-1, expected.grid) / FACTOR**2
    spread = spread.repeat_interleave(FACTOR, dim=-1).repeat_interleave(FACTOR, dim=-2)
    assert found.grid == (8, 16)
    assert torch.equal(found.relevance.unflatten(-1, found.grid), spread)


@pytest.mark.parametrize("fields", [{}, {"vision_feature_layers": [1, 3]}, {"num_attention_layers": 3}])
def test_cached_windows_equal_fresh_ones(fields):
    model, batch = zoom_model(**fields), zoom_batch()
    with torch.no_grad():
        fresh = model(**batch)
        features = model.get_image_features(batch["pixel_values"])
        others = {name: value for name, value in batch.items() if name != "pixel_values"}
        cached = model(**others, image_features=features.last_hidden_state, image_grid=features.grid)
    assert features.last_hidden_state.shape[1] == 10 * 33  # the glance and 9 windows
    assert features.grid == fresh.grid == cached.grid
    torch.testing.assert_close(cached.logits, fresh.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached.relevance, fresh.relevance, rtol=1e-4, atol=1e-6)
    assert torch.equal(cached.zoom_boxes, fresh.zoom_boxes)


def test_a_question_reads_the_same_alone_and_among_others():
    model, batch = zoom_model(), zoom_batch(6, 3)
    with torch.no_grad():
        together = model(**batch)
        for row in range(6):
            image = int(batch["image_index"][row])
            alone = {name: values[row : row + 1] for name, values in batch.items()}
            alone |= {"pixel_values": batch["pixel_values"][image : image + 1], "image_index": torch.tensor([0])}
            found = model(**alone)
            torch.testing.assert_close(found.logits[0], together.logits[row], rtol=1e-4, atol=1e-5)
            assert torch.equal(found.zoom_boxes[0], together.zoom_boxes[row])


def test_a_window_is_encoded_once_for_all_questions(monkeypatch):
    model, batch = zoom_model(), zoom_batch(16, 1)
    encoder, encoded = model.qca.vision_encoder, []
    encode = encoder.encode_images
    monkeypatch.setattr(
        encoder, "encode_images", lambda pixels, **k: encoded.append(len(pixels)) or encode(pixels, **k)
    )
    with torch.no_grad():
        boxes = model(**batch).zoom_boxes
    assert encoded == [1, len(set(map(tuple, boxes.flatten(0, 1).tolist())))]
    assert encoded[1] <= 9


def test_windows_show_the_pixels_at_their_cells():
    """Each patch of a window is compared with the patch of the whole picture at the same cell."""

    class Means:
        """Encodes a patch as the mean of its pixels."""

        config, shape = tiny_config(), type("Shape", (), {"prefix": 0})

        def encode_images(self, pixels, **requested):
            means = torch.nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)
            return type("Features", (), {"last_hidden_state": means})

    pixels = torch.randn(2, 3, *SIZE)
    _, read = encode_glance(Means(), pixels, FACTOR, {})
    windows = Windows.of((4, 8), FACTOR, pixels.device)
    whole = torch.nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)  # [2, 8 * 16, 3]
    for window in range(9):
        for image in range(2):
            found = read(torch.tensor([image]), torch.tensor([window]))[0]
            torch.testing.assert_close(found, whole[image, windows.cells[window]])


def test_only_what_the_chosen_windows_show_changes_the_answer():
    """Dots that the glance does not see are put on one patch after another."""
    model, batch = zoom_model(zoom_regions=1), zoom_batch(1, 1, seed=3)
    with torch.no_grad():
        outputs = model(**batch)
        left, top, right, bottom = outputs.zoom_boxes[0, 0].tolist()
        for row in range(8):
            for column in range(16):
                dotted = batch["pixel_values"].clone()
                dotted[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += DOTS.repeat(2, 2)
                changed = model(**batch | {"pixel_values": dotted})
                shown = top < (row + 0.5) / 8 < bottom and left < (column + 0.5) / 16 < right
                difference = float((changed.logits - outputs.logits).abs().max())
                assert (difference > 1e-4) == shown, (row, column, difference)


def test_maps_of_later_hops_lie_on_glance_and_windows():
    model, batch = zoom_model(), zoom_batch()
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.relevance.shape == (5, 2, 4, 128)
    torch.testing.assert_close(outputs.relevance.sum(dim=-1), torch.ones(5, 2, 4))
    blocks = outputs.relevance.unflatten(-1, (4, 2, 8, 2)).flatten(0, 2)  # cells of a patch of the glance
    first = blocks.unflatten(0, (5, 2, 4))[:, 0]
    torch.testing.assert_close(first.amax(dim=(-3, -1)), first.amin(dim=(-3, -1)))
    centers = (outputs.patch_boxes[..., :2] + outputs.patch_boxes[..., 2:]) / 2
    boxes = outputs.zoom_boxes[:, :, None]
    shown = ((centers[:, None] > boxes[..., :2]) & (centers[:, None] < boxes[..., 2:])).all(dim=-1).any(dim=1)
    last = blocks.unflatten(0, (5, 2, 4))[:, 1]
    varies = (last.amax(dim=(-3, -1)) - last.amin(dim=(-3, -1)) > 1e-9).any(dim=1).flatten(1)
    assert torch.equal(varies, shown.unflatten(-1, (4, 2, 8, 2)).all(dim=(2, 4)).flatten(1))


def test_gradients_reach_the_choice():
    """The values of a window stay; their gradient is that of the logarithm of its share."""
    windows = Windows.of((4, 4), FACTOR, torch.device("cpu"))
    scores = torch.randn(1, 1, 16, requires_grad=True)
    relevance = scores.softmax(dim=-1)
    zoom = Zoom(windows, 1, None, lambda images, chosen: torch.ones(1, 16, 1), lambda patches, places: patches)
    patches, _ = zoom(relevance, torch.zeros(1, 16, 1), PatchPlaces(torch.zeros(16, 2)))
    assert torch.equal(patches[:, 16:], torch.ones(1, 16, 1))
    share = relevance[0, 0, windows.inside[zoom.chosen[0, 0]]].sum()
    expected = torch.autograd.grad(16 * share.log(), scores, retain_graph=True)
    found = torch.autograd.grad(patches.sum(), scores)
    torch.testing.assert_close(found, expected)


def test_the_first_hop_learns_without_maps_and_with_them():
    model, batch = zoom_model().train(), zoom_batch()
    labels, target = torch.tensor([0, 1, 2, 3, 4]), torch.rand(5, 2, 128)
    for targets in ({}, {"target_relevance": target}):
        model.zero_grad()
        outputs = model(**batch, labels=labels, **targets)
        outputs.loss.backward()
        weight = model.qca.hops.layers[0].attention.scorer.q_proj.weight
        assert torch.isfinite(outputs.loss)
        assert weight.grad.abs().max() > 0


def test_a_traced_program_encodes_a_window_for_each_question():
    model, batch = zoom_model(), zoom_batch()
    with torch.no_grad():
        expected = model(**batch)
        program = torch.export.export(model, (), batch)
        found = program.module()(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-4, atol=1e-6)


def test_without_zoom_nothing_is_computed_for_it():
    batch = tiny_batch()
    counts = called_operators(lambda: tiny_model()(**batch))
    assert not {"aten::avg_pool2d", "aten::scatter_add"} & counts.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zoom_factor": 0}, "`zoom_factor` must be from 1 to 16, got 0"),
        ({"zoom_factor": 2, "zoom_regions": 10}, "`zoom_regions` must be from 0 to 9"),
        ({"zoom_factor": 2, "num_attention_layers": 1}, "set `num_attention_layers` to 2 or more"),
        ({"zoom_factor": 2, "token_budget": 4}, "drop `vision_conditioning_layers`, `token_budget`"),
        ({"zoom_factor": 2, "patch_update": "broadcast"}, "drop `vision_conditioning_layers`, `token_budget`"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_pictures_and_features_of_a_wrong_size_are_refused():
    model, batch = zoom_model(), zoom_batch()
    with pytest.raises(ValueError, match="must be multiples of 64 and 64 pixels, got 64 x 96"):
        model(**batch | {"pixel_values": batch["pixel_values"][..., :96]})
    others = {name: value for name, value in batch.items() if name != "pixel_values"}
    with pytest.raises(ValueError, match="do not hold the glance and 9 windows of a 8 x 8 grid"):
        model(**others, image_features=torch.zeros(2, 33, 32))
