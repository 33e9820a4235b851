"""The speed of training: the same learning with cached features, and fewer images in grouped batches."""

import json
import time

import pytest
from render_documents import speed_table

from modeling_qca.training.benchmark import training_speed as benchmark_training
from modeling_qca.training.benchmark.training_speed import measure_training
from modeling_qca.training.fitting.recipe import Recipe, make_recipe
from modeling_qca.training.supervision.scenes import write_scenes


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 16, "validation": 4}, seed=0)  # 128 questions, 8 about each image
    values = {
        "data": str(folder),
        "model": "qca-tiny",
        "freeze": ["vision", "text"],
        "classifier_dropout": 0.2,
        "per_device_train_batch_size": 24,
        "output_dir": str(folder / "unused"),
    }
    return make_recipe(values, "test")


def test_compares_two_ways_in_turn(recipe, tmp_path, monkeypatch):
    read_pixels = []
    step = benchmark_training.QCATrainer.compute_loss

    def slower_with_pixels(trainer, model, inputs):
        read_pixels.append("pixel_values" in inputs)
        time.sleep(0.05 * read_pixels[-1])
        return step(trainer, model, inputs)

    monkeypatch.setattr(benchmark_training.QCATrainer, "compute_loss", slower_with_pixels)
    monkeypatch.setattr(benchmark_training, "TRAINED_BATCH_SIZE", 16)
    monkeypatch.setattr(benchmark_training, "PASSES", 3)
    results = measure_training(recipe, tmp_path / "deep" / "speed.json")
    assert results == json.loads((tmp_path / "deep" / "speed.json").read_text())
    assert read_pixels == ([False] * 3 + [True] * 3) * 3 + [True] * 12
    measured = results["training_speed"]
    cached = measured["cached_features"]
    assert cached["speedup"]["median"] > 1
    assert cached["largest_relative_difference_of_losses"] < 1e-4
    assert cached["accuracy"]["cached"] == cached["accuracy"]["uncached"]
    assert cached["validation_questions"] == 32 and cached["same_answers"] == 1
    for way in (cached["cached"], cached["uncached"]):
        assert way["steps_an_epoch"] == 6 and way["steps"] == 9 and way["timed_steps"] == 6
        assert way["step_s"]["quartile_1"] <= way["step_s"]["median"] <= way["step_s"]["quartile_3"]
        assert way["epoch_s"] == pytest.approx(6 * way["step_s"]["median"])
    grouped, ungrouped = (measured["grouped_questions"][name] for name in ("grouped", "ungrouped"))
    assert grouped["images_a_batch"] == 2 < 8 < ungrouped["images_a_batch"] <= 16
    assert grouped["questions_a_batch"] == ungrouped["questions_a_batch"] == 16
    assert not list(recipe.output_dir.glob("*"))
    table = speed_table(results)
    assert f"| cached | 24 | 3 | {cached['cached']['step_s']['median']:.2f} (" in table
    assert f"| {cached['uncached']['epoch_s']:.0f} | 1 |" in table


def test_refuses_a_recipe_that_trains_the_vision_encoder(recipe, tmp_path):
    values = {"data": recipe.data, "model": "qca-tiny", "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="`vision` in `freeze`"):
        measure_training(make_recipe(values, "test"), tmp_path / "speed.json")
