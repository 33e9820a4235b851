"""Relevance maps in a tracker: which pictures, when, and which recipes are refused."""

import io
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from helpers.tiny import tiny_model, tiny_processor
from PIL import Image
from transformers.integrations import TrackioCallback

from modeling_qca import QCAVisualQuestionAnsweringPipeline
from modeling_qca.overlay_qca import strip
from modeling_qca.training.data.images import read_image
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.fitting.map_log import SIDE, MapLog, spread_rows
from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 6, "validation": 4}, seed=0)
    return folder


@pytest.fixture
def rows(scenes, tmp_path) -> datasets.Dataset:
    return load_rows(scenes, split="validation", cache_dir=tmp_path / "cache")


def recipe(scenes, output, **values):
    common = {"data": str(scenes), "model": "qca-tiny", "output_dir": str(output), "max_steps": 2, "eval_steps": 1}
    steps = {"eval_strategy": "steps", "save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": 8}
    return make_recipe({**common, **steps, **values}, "test")


def maps_of(ask: QCAVisualQuestionAnsweringPipeline, row: dict) -> Image.Image:
    look = ask.look(read_image(row), row["question"], top_k=1).fit(SIDE)
    return strip([look.image, *(look.overlay(index) for index in range(len(look.relevance)))])


def same_picture(first: Image.Image, second: Image.Image) -> bool:
    """Whether no color differs by more than two of 255 shades: batches of another size round otherwise."""
    return first.size == second.size and np.abs(np.int16(first) - np.int16(second)).max() <= 2


def test_tensorboard_gets_the_maps_of_each_evaluation(scenes, rows, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    train(recipe(scenes, tmp_path / "run", report_to="tensorboard", log_maps=2, baselines=["image_mean"]))
    accumulator = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0})
    accumulator.Reload()
    shown = spread_rows(rows, 2)
    assert set(accumulator.Tags()["images"]) == {f"maps/{name}" for name in shown["question_id"]}
    ask = load_pipeline(str(tmp_path / "run"))
    for row in shown:
        events = accumulator.Images(f"maps/{row['question_id']}")
        assert [event.step for event in events] == [1, 2]
        first, last = (Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB") for event in events)
        assert same_picture(last, maps_of(ask, row)) and not same_picture(first, last)


class FakeTrackio:
    """What `TrackioCallback` holds as its module."""

    def __init__(self):
        self.logged: list[tuple[dict, int]] = []

    def Image(self, value, caption):  # noqa: N802
        return value, caption

    def log(self, values, step):
        self.logged.append((values, step))


def test_trackio_gets_pictures_with_captions(rows):
    callback = object.__new__(TrackioCallback)
    callback._trackio = tracker = FakeTrackio()
    trainer = SimpleNamespace(model=tiny_model(), callback_handler=SimpleNamespace(callbacks=[callback]))
    shown = spread_rows(rows, 3)
    log = MapLog(trainer, tiny_processor(), shown)
    log.on_evaluate(None, SimpleNamespace(is_world_process_zero=True, global_step=7), None)
    log.on_evaluate(None, SimpleNamespace(is_world_process_zero=False, global_step=8), None)
    assert [step for _, step in tracker.logged] == [7] * 3
    ask = QCAVisualQuestionAnsweringPipeline(model=trainer.model, processor=tiny_processor())
    for row, (values, _) in zip(shown, tracker.logged, strict=True):
        ((name, (picture, caption)),) = values.items()
        assert name == f"maps/{row['question_id']}" and caption.startswith(row["question"])
        np.testing.assert_array_equal(picture, np.asarray(maps_of(ask, row)))


def test_rows_are_of_different_images_spread_over_the_data():
    table = datasets.Dataset.from_dict(
        {"image_id": [f"image{row // 3}" for row in range(30)], "image": [{"path": "a", "bytes": None}] * 30}
    ).cast_column("image", datasets.Image())
    assert spread_rows(table, 3)["image_id"][:] == ["image0", "image4", "image9"]
    assert spread_rows(table, 99)["image_id"][:] == [f"image{number}" for number in range(10)]


@pytest.mark.parametrize("tracker", ["none", "wandb"])
def test_refuses_maps_without_a_tracker_that_takes_them(scenes, tmp_path, tracker, monkeypatch):
    monkeypatch.setattr("modeling_qca.training.fitting.training_run.check_arguments", lambda arguments: None)
    with pytest.raises(ValueError, match="`log_maps` sends pictures to a tracker: set `report_to` to tensorboard or"):
        train(recipe(scenes, tmp_path / "run", report_to=tracker, log_maps=2))
    assert not (tmp_path / "run").exists()


def test_refuses_a_negative_number_of_maps(scenes, tmp_path):
    with pytest.raises(ValueError, match="`log_maps` is a number of pictures, got -1"):
        recipe(scenes, tmp_path, log_maps=-1)
