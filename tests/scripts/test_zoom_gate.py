"""The gate of zoom: windows and targets against plain loops, questions and splits by hand, and a run on tiny data."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from render_documents import render
from sklearn.linear_model import Ridge
from transformers import Dinov2Config, Dinov2Model
from zoom.features import CROPS, Encoder, cache_features, cut
from zoom.pictures import Asked, Pictures, facade_pictures, folds, half_cells
from zoom.probe import RIDGE, Part, Scores, choices, chosen_as_windows, fit_scores, patch_cells, read, relevance
from zoom.scenes import LATTICE, THINGS, draw_small_objects, place_objects, scene_pictures
from zoom.table import gate
from zoom.windows import CELLS, SIDES, choose, held_share, on_cells, window_boxes, window_cells, window_starts

from modeling_qca.training.supervision.scenes import SceneObject

SCRIPTS = Path(__file__).parents[2] / "scripts"
CLASSES = "building\ncar\ndoor\nvegetation\nwindow\n"


def looped_choice(values, side, count):
    """One map [CELLS, CELLS]: the window with most of what no earlier window holds."""
    length, rest, chosen = CELLS // SIDES[side], values.copy(), []
    for _ in range(count):
        starts = enumerate(window_starts(side))
        sums = {i: rest[r : r + length, c : c + length].sum() for i, (r, c) in starts if i not in chosen}
        chosen.append(max(sums, key=lambda i: (sums[i], -i)))
        row, column = window_starts(side)[chosen[-1]]
        rest[row : row + length, column : column + length] = 0
    return chosen


@pytest.mark.parametrize(("side", "windows"), [("half", 9), ("quarter", 49)])
def test_choice_takes_the_windows_with_most_of_the_map(side, windows):
    values = np.random.default_rng(0).random((20, CELLS, CELLS)) ** 8
    assert len(window_starts(side)) == windows
    assert choose(values, side, 2).tolist() == [looped_choice(each, side, 2) for each in values]


def test_held_share_counts_overlap_of_windows_once():
    target = np.zeros((1, CELLS, CELLS), np.float32)
    target[0, 0, 0] = target[0, 12, 12] = target[0, 31, 31] = 1
    assert held_share(target, "half", np.array([[0, 4]])) == pytest.approx(2 / 3)  # both hold the middle one
    assert held_share(target, "half", np.array([[0]])) == pytest.approx(2 / 3)
    assert held_share(np.zeros_like(target), "half", np.array([[0]])) == 0


@pytest.mark.parametrize(("side", "grid"), [(None, 8), (None, 16), ("half", 8), ("half", 16), ("quarter", 8)])
def test_cells_of_a_patch_are_those_that_it_shows(side, grid):
    found = patch_cells(side, grid)
    length = CELLS // SIDES.get(side, 1)
    step = length // grid
    numbers = np.arange(CELLS * CELLS).reshape(CELLS, CELLS)
    starts = [(0, 0)] if side is None else window_starts(side)
    for window, (row, column) in enumerate(starts):
        for patch in range(grid * grid):
            top, left = row + patch // grid * step, column + patch % grid * step
            assert found[window, patch].tolist() == numbers[top : top + step, left : left + step].ravel().tolist()


def test_maps_spread_over_cells_keep_their_sum_and_place():
    maps = np.random.default_rng(0).random((2, 64))
    assert on_cells(maps).sum(axis=(1, 2)) == pytest.approx(maps.sum(axis=1))
    assert on_cells(maps)[1, 4:8, 28:32] == pytest.approx(maps[1, 15] / 16)


def test_windows_are_cut_where_their_boxes_say():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:32, 64:] = 255  # the top right quarter
    crops = cut(Image.fromarray(pixels), CROPS["half112"])
    white = [bool(crop.min() > 0) for crop in crops]
    boxes = window_boxes("half").tolist()
    assert [boxes[index] for index in np.flatnonzero(white)] == [[0.5, 0.0, 1.0, 0.5]]


def tiny_part(maps, questions, train, features=None):
    """`questions`: (picture, half, present) about the first thing; those before `train` are trained on."""
    asked = [Asked(picture, 0, half, present) for picture, half, present in questions]
    rows = np.arange(len(asked))
    return Part(Pictures([], [], maps, asked), features or {}, rows[:train], rows[train:], 0)


def test_scores_are_those_of_ridge_regression():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4, 1, 64, 5)).astype(np.float16)
    maps = rng.random((4, 2, CELLS, CELLS)).astype(np.float32)
    scores = fit_scores(features, None, Pictures([], [], maps, []), np.array([0, 2]))
    target = maps.reshape(4, 2, 8, 4, 8, 4).mean(axis=(3, 5)).reshape(4, 2, 64)
    flat = features[[0, 2], 0].reshape(-1, 5).astype(float)
    expected = Ridge(alpha=RIDGE * len(flat)).fit(flat, target[[0, 2]].transpose(0, 2, 1).reshape(-1, 2))
    assert scores.values[3, 0] == pytest.approx(expected.predict(features[3, 0].astype(float)), abs=1e-4)


def test_map_that_chooses_lies_in_the_asked_half_where_the_score_is_highest():
    values = np.zeros((1, 1, 64, 1), np.float32)
    values[0, 0, 9], values[0, 0, 15] = 3, 9  # on the left and on the right
    part = tiny_part(np.zeros((1, 1, CELLS, CELLS), np.float32), [(0, "left", True), (0, "right", True)], 2)
    part._scores["whole112"] = Scores(values, patch_cells(None, 8))
    left, right = relevance(part, "whole112", 4.0)
    assert left.sum() == pytest.approx(1) and left[:, 16:].sum() == 0 and right[:, :16].sum() == 0
    assert left[4:8, 4:8].sum() > 0.9 and right[4:8, 28:32].sum() > 0.9


def test_windows_scored_as_a_whole_are_chosen_in_the_asked_half():
    rng = np.random.default_rng(0)
    maps = rng.random((6, 1, CELLS, CELLS)).astype(np.float32) ** 4
    shares = np.stack(
        [maps[:, 0, r : r + 8, c : c + 8].mean(axis=(1, 2)) for r, c in window_starts("quarter")], axis=1
    )
    features = np.repeat(shares[:, :, None, None], 64, axis=2).astype(np.float16)  # tell what a window shows
    questions = [(picture, half, True) for picture in range(6) for half in ("left", "bottom")]
    found = chosen_as_windows(
        tiny_part(maps, questions, 12, {"quarter112_low": features}), "quarter112_low", "quarter"
    )
    starts = window_starts("quarter")
    for (picture, half, _), windows in zip(questions, found, strict=True):
        inside = starts[:, 1] < 12 if half == "left" else starts[:, 0] > 12
        shown = np.where(inside, features[picture, :, 0, 0], -1)
        assert shown[windows].tolist() == np.sort(shown)[::-1][:2].tolist()  # some windows show the same share


def test_reader_sees_the_chosen_windows_in_the_asked_half_alone():
    values = np.random.default_rng(0).random((1, 9, 64, 1)).astype(np.float32)
    part = tiny_part(np.zeros((1, 1, CELLS, CELLS), np.float32), [(0, "left", True), (0, "left", True)], 2)
    found = read(part, Scores(values, patch_cells("half", 8)), np.array([[1], [2]]))
    seen = np.sort(values[0, 1].reshape(8, 8)[:, :4].ravel())[::-1]  # the left half of the window in the middle
    assert found[0] == pytest.approx([seen[0], seen[:4].mean(), seen.mean(), 1])
    assert found[1].tolist() == [0, 0, 0, 0]  # a window on the right


def test_true_region_of_an_absent_thing_is_that_of_another_question():
    maps = np.zeros((4, 1, CELLS, CELLS), np.float32)
    maps[0, 0, 0, 0] = maps[1, 0, 31, 0] = maps[3, 0, 0, 31] = 1
    questions = [(0, "left", True), (1, "left", True), (3, "right", True), (2, "left", False)]
    features = {"whole112_cls": np.ones((4, 64), np.float16)}
    part = tiny_part(maps, questions, 3, features)
    part._scores["whole112"] = Scores(np.ones((4, 1, 64, 1), np.float32), patch_cells(None, 8))
    part._scores["whole112"].values[:, :, 0] = 2
    first, second, third, absent = choices(part, "whole112", "half")["true region"][:, 0].tolist()
    assert (first, second, third) == (0, 6, 2) and absent in (0, 6)  # of a training question about the left half


def test_shuffled_choice_is_that_of_another_question_about_the_picture():
    questions = [(0, "left", True), (0, "right", True), (1, "left", False)]
    cls = np.zeros((2, 64), np.float16)
    cls[0, 63] = cls[1, 56] = 1
    part = tiny_part(np.ones((2, 1, CELLS, CELLS), np.float32), questions, 3, {"whole112_cls": cls})
    values = np.zeros((2, 1, 64, 1), np.float32)
    values[:, :, [0, 7]] = 1
    part._scores["whole112"] = Scores(values, patch_cells(None, 8))
    found = {name: windows[:, 0].tolist() for name, windows in choices(part, "whole112", "half").items()}
    assert found["question"] == [0, 2, 0] and found["shuffled question"] == [2, 0, 0]  # the last is alone
    assert found["cls attention"] == [8, 8, 6]


def save_facades(folder: Path, photos: int) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text(CLASSES)
    rows, rng = ["image_id,sequence,full_detail"], np.random.default_rng(0)
    for number in range(photos):
        labels = np.ones((80, 100), np.uint8)
        for thing in (2, 3, 4, 5):
            row, column = rng.integers(0, 74, 2)
            labels[row : row + 6, column : column + 6] = thing if rng.random() < 0.6 else 1
        Image.fromarray(labels).save(folder / "labels" / f"p{number}.png")
        Image.fromarray(labels * 50).convert("RGB").save(folder / "images" / f"p{number}.jpg")
        rows.append(f"p{number},street{number // 2},{'no' if number == 0 else 'yes'}")
    (folder / "images.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_questions_about_facades_are_balanced_and_about_small_things(tmp_path):
    pictures = facade_pictures(save_facades(tmp_path / "facades", 12))
    assert len(pictures.paths) == 11 and "street0" in pictures.groups  # p0 has no full detail
    answers = {}
    for asked in pictures.questions:
        answers.setdefault((asked.thing, asked.half), []).append(asked.present)
        area = pictures.maps[asked.picture, asked.thing][half_cells(asked.half)].mean()
        assert (0.0015 <= area <= 0.0205) if asked.present else area < 0.0005  # cells cross the middle of the picture
    assert answers and all(2 * sum(found) == len(found) for found in answers.values())


def test_scenes_show_half_of_the_things_in_a_half_and_distractors_of_each():
    rng, shown = random.Random(0), []
    for _ in range(200):
        objects = place_objects(rng)
        assert len({(item.row, item.column) for item in objects}) == len(objects)
        distractors = [(item.color, item.shape) for item in objects if (item.color, item.shape) not in THINGS]
        assert len(distractors) == 2 * len(THINGS)
        for color, shape in THINGS:
            assert any(color == other for other, _ in distractors) and any(shape == other for _, other in distractors)
            things = [item for item in objects if (item.color, item.shape) == (color, shape)]
            shown.append(any(item.column < LATTICE // 2 for item in things))
    assert np.mean(shown) == pytest.approx(0.5, abs=0.05)


def test_maps_of_a_scene_hold_the_pixels_of_the_objects_and_windows_cut_none():
    color, shape = THINGS[1]
    objects = [SceneObject(shape, color, 7, 8), SceneObject(shape, THINGS[0][0], 1, 1)]  # a square, and a distractor
    image, maps = draw_small_objects(objects, random.Random(0))
    pixels = maps * (image.width // CELLS) ** 2
    assert (0.8 * 16) ** 2 < pixels[1].sum() < 48**2 and pixels[[0, 2, 3]].sum() == 0
    assert set(np.argwhere(maps[1])[:, 0]) <= {14, 15} and set(np.argwhere(maps[1])[:, 1]) <= {16, 17}
    for side in SIDES:
        assert set((window_cells(side) * maps[1]).sum(axis=(1, 2))) <= {0, maps[1].sum()}


def test_questions_about_scenes_are_balanced_and_follow_from_the_seed(tmp_path):
    first, again = (scene_pictures(tmp_path / name, scenes) for name, scenes in (("first", 3), ("again", 1)))
    assert first.paths[0].read_bytes() == again.paths[0].read_bytes() and first.things[0] == "red circle"
    assert (first.maps[0] == again.maps[0]).all()
    answers = {}
    for asked in first.questions:
        answers.setdefault((asked.thing, asked.half), []).append(asked.present)
        assert first.maps[asked.picture, asked.thing][half_cells(asked.half)].any() == asked.present
    assert answers and all(2 * sum(found) == len(found) for found in answers.values())


def test_parts_of_the_split_share_no_group():
    groups = [f"street{number // 4}" for number in range(40)]
    asked = [Asked(number, 0, "left", True) for number in range(40) for _ in range(2)]
    tested = list(folds(Pictures([], groups, np.zeros(0), asked), 3))
    assert np.sum(tested, axis=0).tolist() == [1] * 80
    in_parts = [{groups[asked[row].picture] for row in np.flatnonzero(part)} for part in tested]
    assert not (in_parts[0] & in_parts[1] or in_parts[0] & in_parts[2] or in_parts[1] & in_parts[2])
    assert min(map(len, in_parts)) == 3


@pytest.mark.parametrize(
    ("chance", "twice", "opens"), [(0.021, -0.009, True), (0.019, -0.009, False), (0.021, -0.011, False)]
)
def test_gate_opens_only_if_every_condition_holds(chance, twice, opens):
    gains = {
        "whole112 half112 question 1 over whole112 half112 chance 1": {"mean": chance, "standard_error": 0.01},
        "whole112 half112 question 1 over whole224": {"mean": twice, "standard_error": 0.01},
        "whole112 half112 question 2 over whole112 half112 chance 2": {"mean": chance, "standard_error": 0.01},
        "whole112 half112 question 2 over whole224": {"mean": twice, "standard_error": 0.01},
    }
    results = {"flops": {"112": 10, "224": 45}, "data": {"facades": {"gains": gains}}}
    assert gate(results, "facades", ("whole112", "half112", 1))["open"] == opens
    assert not gate(results, "facades", ("whole112", "half112", 2))["open"]  # 67 % of the operations
    scenes = {"flops": results["flops"], "data": {"drawn scenes": {"gains": gains}}}
    assert not gate(scenes, "drawn scenes", ("whole112", "half112", 1))["open"]  # three standard errors


def save_vision_encoder(folder: Path) -> str:
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 12, "mlp_ratio": 1}
    Dinov2Model(Dinov2Config(image_size=112, patch_size=14, **shape)).save_pretrained(folder)
    return str(folder)


def test_encoder_gives_the_backbones_features_and_attention(tmp_path):
    encoder = Encoder(save_vision_encoder(tmp_path / "vision"))
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    found = encoder(pixels)
    with torch.no_grad():
        expected = encoder.model(pixels.bfloat16()).last_hidden_state
        encoder.model.set_attn_implementation("eager")
        attentions = encoder.model(pixels.bfloat16(), output_attentions=True).attentions
    assert torch.equal(found[12], expected[:, 1:].float())
    attention = attentions[-1][:, :, 0, 1:].float().mean(dim=1)
    torch.testing.assert_close(found[0], attention, atol=1e-3, rtol=0.02)


@pytest.mark.slow
def test_features_of_some_arrays_are_those_of_more(tmp_path):
    encoder = Encoder(save_vision_encoder(tmp_path / "vision"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "p.png")
    paths, names = [tmp_path / "p.png"], ["whole112_cls", "half112"]
    found = cache_features(encoder, paths, tmp_path / "some", names)
    more = cache_features(encoder, paths, tmp_path / "more", ["whole112", "half112_low", *names])
    assert list(found) == names and all((found[name] == more[name]).all() for name in names)
    with pytest.raises(ValueError, match="holds other features"):
        cache_features(encoder, paths, tmp_path / "some", ["whole112"])


@pytest.mark.slow
def test_program_measures_every_row_and_goes_on_where_it_stopped(tmp_path):
    facades, output = save_facades(tmp_path / "facades", 40), tmp_path / "zoom_gate.json"
    command = [sys.executable, "-m", "zoom.gate", facades, tmp_path / "work", "--output", output]
    command += ["--vision-encoder", save_vision_encoder(tmp_path / "vision")]
    subprocess.run(command, check=True, cwd=SCRIPTS)
    results = json.loads(output.read_text())
    measures = results["data"]["facades"]["measures"]
    true, chance = (measures[f"holds whole112 half112 {choice} 2"]["mean"] for choice in ("true region", "chance"))
    assert true == 1 and chance < 1
    document = "<!-- results: zoom_gate.json -->\n<!-- end -->"
    assert "glance 112 px, 2 quarter windows at 112 px" in render(document, tmp_path)
    progress = tmp_path / "work" / "progress.json"
    state = json.loads(progress.read_text())
    progress.write_text(json.dumps(state | {"done": 30}))
    subprocess.run(command, check=True, cwd=SCRIPTS)
    assert json.loads(output.read_text()) == results
    again = [*command[:4], tmp_path / "again", *command[5:], "--replicate"]
    subprocess.run(again, check=True, cwd=SCRIPTS)
    replicated = json.loads(output.read_text())
    assert replicated["data"]["facades"] == results["data"]["facades"]
    assert replicated["tables"][1:] == results["tables"]
    assert replicated["tables"][0]["rows"][1][0] == "facades once more"
    scenes = [*command[:3], tmp_path / "scenes", tmp_path / "of_scenes", *command[5:], "--scenes", "24"]
    subprocess.run(scenes, check=True, cwd=SCRIPTS)
    drawn = json.loads(output.read_text())
    assert drawn["tables"][: len(replicated["tables"])] == replicated["tables"]
    assert drawn["data"]["drawn scenes"]["kinds"].keys() == {" ".join(thing) for thing in THINGS}
    progress.write_text(json.dumps(state | {"encoder": "another"}))
    refused = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True)
    assert refused.returncode and "other pictures, encoders" in refused.stderr
