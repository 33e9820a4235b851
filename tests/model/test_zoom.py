"""Zoom: which windows are chosen, what is read in them, and where."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import fresh_process
from helpers.tiny import (
    called_operators,
    tiny_batch,
    tiny_config,
    tiny_image,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    tiny_vision_config,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import ViTConfig, ViTImageProcessorPil
from transformers.utils import logging

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAModel
from modeling_qca.embedding_qca import grid_coordinates
from modeling_qca.states_qca import PatchPlaces
from modeling_qca.training.data.image_features import encoder_fingerprint
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.fitting.model_factory import image_shape
from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.prediction.predictor import Predictor
from modeling_qca.training.supervision.scenes import write_small_scenes
from modeling_qca.vision_qca import QCAImageFeatures
from modeling_qca.words_qca import word_importance
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
@given(factors, st.integers(1, 4), st.integers(1, 4))
def test_windows_overlap_by_half_and_show_as_many_patches_as_the_glance(factor, down, across):
    rows, columns = 2 * down, 2 * across
    windows = Windows.of((rows, columns), factor, torch.device("cpu"))
    assert torch.allclose(windows.boxes, torch.tensor(plain_boxes(factor)))
    for window, (left, top, right, bottom) in enumerate(plain_boxes(factor)):
        cells = [
            row * columns * factor + column
            for row in range(rows * factor)
            for column in range(columns * factor)
            if top < (row + 0.5) / rows / factor < bottom and left < (column + 0.5) / columns / factor < right
        ]
        assert windows.cells[window].tolist() == cells
        covered = torch.zeros(rows * factor * columns * factor).index_fill(0, torch.tensor(cells), 1)
        shares = covered.view(1, rows * factor, columns * factor)
        shares = torch.nn.functional.avg_pool2d(shares, factor).flatten()
        torch.testing.assert_close(windows.inside[window], shares)


@settings(max_examples=30, deadline=None)
@given(factors, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_windows_are_chosen_one_after_another_by_the_share_that_is_left(factor, half, count, seed):
    side = 2 * half
    windows = Windows.of((side, side), factor, torch.device("cpu"))
    maps = torch.rand(3, side * side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen, shares = windows.choose(maps, count)
    for row in range(3):
        rest = maps[row].clone()
        for place in range(count):
            held = [float((rest * inside).sum()) for inside in windows.inside]
            window = int(chosen[row, place])
            held = [-1.0 if other in chosen[row, :place] else share for other, share in enumerate(held)]
            assert held[window] == pytest.approx(max(held)) == float(shares[row, place])
            rest -= rest * windows.inside[window]


@pytest.mark.parametrize(("factor", "rows", "columns"), [(2, 16, 16), (3, 4, 6), (4, 14, 14)])
def test_windows_are_different_whatever_the_map(factor, rows, columns):
    windows, every = Windows.of((rows, columns), factor, torch.device("cpu")), (2 * factor - 1) ** 2
    maps = torch.cat([torch.full((1, rows * columns), 1 / rows / columns), torch.eye(rows * columns)[:3]])
    chosen, _ = windows.choose(maps, every)
    assert all(sorted(row) == list(range(every)) for row in chosen.tolist())


def test_windows_are_chosen_in_float32_under_autocast():
    windows = Windows.of((16, 16), 2, torch.device("cpu"))
    maps = (5 * torch.randn(500, 256, generator=torch.Generator().manual_seed(0))).softmax(dim=-1)
    chosen, _ = windows.choose(maps, 2)
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = windows.choose(maps, 2)
    assert torch.equal(again, chosen)


def test_the_second_hop_reads_glance_and_windows_at_their_places():
    """Rebuilt by hand: a plain hop over the patches that the chosen windows show, at the centers of their cells."""
    model, batch = zoom_model(spatial_fusion=True), zoom_batch(3, 1)
    body = model.qca
    with torch.no_grad():
        outputs = body(**batch)
        features = body.get_image_features(batch["pixel_values"]).last_hidden_state[0].unflatten(0, (10, 33))[:, 1:]
        text = body.get_text_features(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        question = body.query_embedder(text.last_hidden_state, text.attention_mask.bool())
        glance = body.patch_embedder(features[:1], grid_coordinates((4, 8), features.device))
        fine = grid_coordinates((8, 16), features.device).unflatten(0, (8, 16))
        boxes = plain_boxes(FACTOR)
        for row in range(3):
            asked = [states[row : row + 1] for states in (question.query, question.tokens, question.mask)]
            places = PatchPlaces(grid_coordinates((4, 8), features.device))
            query, _, _, first = body.hops.layers[0](asked[0][:, None], glance, *asked[1:], places)
            found, where = [glance], [places.coordinates]
            rest = first.mean(dim=1)[0].unflatten(0, (4, 8)).clone()
            for box in outputs.zoom_boxes[row].tolist():
                shares = [float(rest[_cells(other, 4, 8)].sum()) for other in boxes]
                assert boxes.index(tuple(box)) == max(range(9), key=shares.__getitem__)
                rest[_cells(box, 4, 8)] = 0
                where.append(fine[_cells(box, 8, 16)].flatten(0, 1))
                found.append(body.patch_embedder(features[1 + boxes.index(tuple(box))][None], where[-1]))
            places = PatchPlaces(torch.cat(where))
            _, _, evidence, second = body.hops.layers[1](query, torch.cat(found, dim=1), *asked[1:], places)
            torch.testing.assert_close(outputs.evidence[row, 1], evidence[0], rtol=1e-4, atol=1e-5)
            expected = second[0, :, :32].unflatten(-1, (4, 8)).repeat_interleave(2, -1).repeat_interleave(2, -2) / 4
            for number, box in enumerate(outputs.zoom_boxes[row].tolist()):
                added = second[0, :, 32 * (number + 1) : 32 * (number + 2)].unflatten(-1, (4, 8))
                expected[(slice(None), *_cells(box, 8, 16))] += added
            torch.testing.assert_close(outputs.relevance[row, 1].unflatten(-1, (8, 16)), expected)


def _cells(box, rows: int, columns: int) -> tuple[slice, slice]:
    left, top, right, bottom = box
    return slice(int(top * rows), int(bottom * rows)), slice(int(left * columns), int(right * columns))


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

        config, shape = tiny_config(zoom_factor=FACTOR), type("Shape", (), {"prefix": 0})

        def encode_images(self, pixels, **requested):
            means = torch.nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)
            return type("Features", (), {"last_hidden_state": means})

    pixels = torch.randn(2, 3, *SIZE)
    _, read = encode_glance(Means(), pixels, {})
    windows = Windows.of((4, 8), FACTOR, pixels.device)
    whole = torch.nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)  # [2, 8 * 16, 3]
    for window in range(9):
        for image in range(2):
            found = read(torch.tensor([image]), torch.tensor([window]))[0]
            torch.testing.assert_close(found, whole[image, windows.cells[window]])


def test_only_what_the_chosen_windows_show_changes_the_answer():
    """Dots that the glance does not see are put on one patch of each picture."""
    model, batch = zoom_model(zoom_regions=1), zoom_batch(1, 1, seed=3)
    places = list(itertools.product(range(8), range(16)))
    dotted = batch["pixel_values"].repeat(len(places), 1, 1, 1)
    for picture, (row, column) in zip(dotted, places, strict=True):
        picture[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += DOTS.repeat(2, 2)
    with torch.no_grad():
        outputs = model(**batch)
        batch |= {
            "question_index": torch.zeros(len(places), dtype=torch.long),
            "image_index": torch.arange(len(places)),
        }
        changed = model(**batch | {"pixel_values": dotted})
    left, top, right, bottom = outputs.zoom_boxes[0, 0].tolist()
    for (row, column), logits in zip(places, changed.logits, strict=True):
        shown = top < (row + 0.5) / 8 < bottom and left < (column + 0.5) / 16 < right
        difference = float((logits - outputs.logits[0]).abs().max())
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
    config, glance = tiny_config(zoom_factor=FACTOR), QCAImageFeatures(torch.zeros(1, 16, 1), grid=(4, 4))
    scores = torch.randn(1, 1, 16, requires_grad=True)
    relevance = scores.softmax(dim=-1)
    zoom = Zoom(config, glance, None, lambda images, chosen: torch.ones(1, 16, 1), lambda patches, places: patches)
    patches, _ = zoom(relevance, torch.zeros(1, 16, 1), PatchPlaces(torch.zeros(16, 2)))
    assert torch.equal(patches[:, 16:], torch.ones(1, 16, 1))
    share = (relevance[0, 0] * zoom.windows.inside[zoom.chosen[0, 0]]).sum()
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
        ({"zoom_factor": 2, "token_budget": 4, "token_budget_layer": 1}, "not go together with `token_budget`"),
        ({"zoom_factor": 2, "vision_conditioning_layers": 1}, "together with `vision_conditioning_layers`"),
        ({"zoom_factor": 2, "patch_update": "broadcast"}, "does not go together with `patch_update`"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_an_encoder_without_patches_is_refused_with_zoom():
    for sizes in ({"patch_size": 0}, {"image_size": 4}):
        vision = tiny_vision_config().to_dict() | sizes
        with pytest.raises(Exception, match="patches of at least 1 x 1 pixels"):
            QCAConfig(vision_config=vision, text_config=tiny_config().text_config.to_dict(), zoom_factor=2)


def test_pictures_and_features_of_a_wrong_size_are_refused():
    model, batch = zoom_model(), zoom_batch()
    with pytest.raises(ValueError, match="must be multiples of 32 and 32 pixels, got 64 x 80"):
        model(**batch | {"pixel_values": batch["pixel_values"][..., :80]})
    others = {name: value for name, value in batch.items() if name != "pixel_values"}
    with pytest.raises(
        ValueError, match="hold no 4 x 4 grid of patches for the whole picture and for each of 9 windows"
    ):
        model(**others, image_features=torch.zeros(2, 33, 32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    zoom_model().save_pretrained(folder)
    tiny_processor(size={"height": SIZE[0], "width": SIZE[1]}).save_pretrained(folder)
    return folder


def test_a_look_shows_the_windows(checkpoint):
    ask, picture = load_pipeline(str(checkpoint)), tiny_image(1, (256, 128))
    look = ask.look(picture, "where is the ball")
    with torch.no_grad():
        outputs = ask.model(**ask.processor(picture, "where is the ball"))
    assert look.windows == [tuple(box) for box in outputs.zoom_boxes[0].tolist()]
    torch.testing.assert_close(look.relevance, outputs.relevance.mean(dim=2)[0].unflatten(-1, outputs.grid))
    framed, bare = np.asarray(look.overlay()), np.asarray(replace(look, windows=[]).overlay())
    frames = np.zeros((128, 256), dtype=bool)
    for box in look.windows:
        left, top, right, bottom = (round(edge * side) for edge, side in zip(box, (256, 128) * 2, strict=True))
        frame = np.zeros_like(frames)
        frame[top : bottom + 1, left : right + 1] = True
        frame[top + 2 : bottom - 1, left + 2 : right - 1] = False
        frames |= frame
    assert (framed[:128][frames] == 255).all()
    assert np.array_equal(framed[:128][~frames], bare[:128][~frames])
    assert ask.look(picture, "where is the ball", method="rollout").method == "relevance"
    with pytest.raises(ValueError, match="A model with `zoom_factor` has `method='relevance'` alone"):
        ask.model.explain(ask.processor(picture, "where is the ball"), "gradient")


def test_predictor_and_word_importance_read_the_same_windows(checkpoint):
    ask, questions = load_pipeline(str(checkpoint)), ["where is the ball", "how many"]
    pictures = [tiny_image(seed, (100, 80)) for seed in range(2)]
    found = Predictor(str(checkpoint), questions)({"image": pictures})
    for row, (picture, question) in enumerate(itertools.product(pictures, questions)):
        best = ask(picture, question)[0]
        assert (found["answer"][row], found["probability"][row]) == (best["answer"], pytest.approx(best["score"]))
        word, lost = ask.look(picture, question).words[0]
        shorter = ask.processor(picture, question)
        shorter["attention_mask"][0, 1] = 0
        with torch.no_grad():
            left = ask.model(**shorter).logits.softmax(dim=-1)[0, ask.model.config.label2id[best["answer"]]]
        assert (word, lost) == (question.split()[0], pytest.approx(best["score"] - float(left), abs=1e-5))


def test_the_code_of_a_checkpoint_zooms_alike(checkpoint, tmp_path):
    torch.save(zoom_batch(), tmp_path / "batch.pt")
    program = """
        import sys, torch, transformers
        transformers.logging.disable_progress_bar()
        model = transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
        with torch.no_grad():
            torch.save(model(**torch.load("batch.pt")).relevance, "relevance.pt")
    """
    fresh_process.run(program, checkpoint, folder=tmp_path, without_package=True)
    with torch.no_grad():
        expected = QCAModel.from_pretrained(checkpoint).eval()(**zoom_batch()).relevance
    torch.testing.assert_close(torch.load(tmp_path / "relevance.pt"), expected)


def test_training_with_cached_windows_equals_training_with_fresh_ones(tmp_path, monkeypatch):
    write_small_scenes(tmp_path / "scenes", {"train": 6, "validation": 3}, seed=0)
    weights = []
    for cached in (False, True):
        keys = {"data": str(tmp_path / "scenes"), "model": "qca-tiny", "output_dir": str(tmp_path / f"run{cached}")}
        keys |= {"freeze": ["vision"], "cache_image_features": cached, "zoom_factor": 2, "image_size": [256, 512]}
        keys |= {"attention_supervision": "every_hop", "num_train_epochs": 1, "baselines": ["image_mean"]}
        results = train(make_recipe({**keys, "disable_tqdm": True, "save_strategy": "no"}, "test"))
        assert results["attention"]["maps"]["model"] == 48
        weights.append(load_file(tmp_path / f"run{cached}" / "model.safetensors"))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


def test_features_with_and_without_zoom_have_caches_of_their_own():
    processor, plain = tiny_processor(), tiny_model()
    zooming = QCAForVisualQuestionAnswering(tiny_config(zoom_factor=2))
    zooming.load_state_dict(plain.state_dict())
    assert encoder_fingerprint(zooming, processor, False) != encoder_fingerprint(plain, processor, False)


def test_new_encoders_get_pictures_whose_glance_has_their_size(tmp_path):
    tiny_vision_config().save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    keys = {"data": "d", "vision_encoder": str(tmp_path), "text_encoder": "t", "zoom_factor": 4}
    shape = image_shape(make_recipe(keys, "test"))
    assert (shape.height, shape.width, shape.patches) == (128, 128, 50 * 16)
    ViTConfig(image_size=56, patch_size=8, hidden_size=32, num_attention_heads=4).save_pretrained(tmp_path)  # 7 x 7
    ViTImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(tmp_path)
    shape = image_shape(make_recipe(keys, "test"))
    assert (shape.height, shape.width, shape.patches) == (192, 192, 50 * 36)
    with pytest.raises(ValueError, match="`image_size` must be multiples of 64 and 64 pixels, not \\[224, 192\\]"):
        image_shape(make_recipe({**keys, "image_size": [224, 192]}, "test"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"baselines": ["reference_model"]}, "`reference_model` has no zoom"),
        (
            {
                "object_words": ["ball"],
                "attention_supervision": "every_hop",
                "freeze": ["vision"],
                "cache_image_features": True,
            },
            "`object_words` learns from whole pictures",
        ),
    ],
)
def test_recipes_that_would_read_windows_as_pictures_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        make_recipe({"data": "d", "model": "m", "zoom_factor": 2, **keys}, "test")


def test_a_model_without_hops_says_that_zoom_leaves_it_no_map():
    model = zoom_model(num_attention_layers=0, zoom_regions=0)
    with pytest.raises(ValueError, match="with `zoom_factor` and without hops has no maps"):
        model.explain(zoom_batch(), "gradient")


def test_word_importance_of_several_pictures_encodes_those_that_are_asked_about(monkeypatch):
    warnings, model = [], zoom_model().eval()
    monkeypatch.setattr(logging.get_logger("modeling_qca.pairs_qca"), "warning_once", warnings.append)
    questions, size = ["what is red", "is it left", "what color"], (SIZE[1], SIZE[0])
    pictures = [tiny_image(seed, size) for seed in range(2)]
    processor = tiny_processor(size={"height": SIZE[0], "width": SIZE[1]})
    inputs = processor(images=pictures, text=questions, image_index=[0, 1, 1])
    whole = word_importance(model, tiny_tokenizer(), questions, inputs)
    monkeypatch.setattr("modeling_qca.words_qca.ROWS", 2)
    for expected, words in zip(whole, word_importance(model, tiny_tokenizer(), questions, inputs), strict=True):
        assert [word for word, _ in words] == [word for word, _ in expected]
        assert [lost for _, lost in words] == pytest.approx([lost for _, lost in expected], abs=1e-5)
    assert not warnings
