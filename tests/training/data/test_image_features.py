"""Cached image features equal those of the encoder, are computed once, and follow changes."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_processor
from PIL import Image

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.training.data import image_features as feature_cache
from modeling_qca.training.data.image_features import ImageFeatureCache
from modeling_qca.training.data.images import read_image
from modeling_qca.training.fitting.model_factory import CONFIGURATION
from modeling_qca.training.fitting.parameter_groups import freeze


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = QCAForVisualQuestionAnswering(QCAConfig.from_pretrained(CONFIGURATION / "qca-tiny")).eval()
    freeze(model, ["vision"])
    return model


@pytest.fixture
def processor():
    return QCAProcessor.from_pretrained(CONFIGURATION / "qca-tiny")


@pytest.fixture
def rows(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = {}
    for number in range(5):
        path = folder / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
        rows[str(number)] = {"image": {"path": str(path), "bytes": None}, "image_id": str(number), "question_id": "q"}
    return rows


def test_features_equal_the_encoder_output_and_are_computed_once(tmp_path, model, processor, rows):
    cache = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    assert cache.computed == 5 and cache.grid == (5, 5)
    with torch.no_grad():
        fresh = model.get_image_features(processor(images=[read_image(rows["3"])])["pixel_values"])
    torch.testing.assert_close(cache.read(["3"]), fresh.last_hidden_state, rtol=1e-5, atol=1e-5)
    again = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    assert again.computed == 0
    assert torch.equal(again.read(["4", "0"]), cache.read(["4", "0"]))


def test_half_precision_stores_float16_features(tmp_path, model, processor, rows):
    whole = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    half = ImageFeatureCache(tmp_path / "cache", model, processor, rows, half=True)
    assert half.folder != whole.folder
    assert half.read(["1"]).dtype == torch.float16
    torch.testing.assert_close(half.read(["1"]).float(), whole.read(["1"]), rtol=0.05, atol=0.05)


def test_only_a_changed_image_is_encoded_again(tmp_path, model, processor, rows):
    before = ImageFeatureCache(tmp_path / "cache", model, processor, rows).read(["2"]).clone()
    Image.new("RGB", (40, 40), "red").save(rows["2"]["image"]["path"])
    cache = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    assert cache.computed == 1
    assert not torch.equal(cache.read(["2"]), before)


def test_another_run_with_images_of_the_same_names_changes_no_features_in_use(tmp_path, model, processor, rows):
    first = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    before = first.read(sorted(rows)).clone()
    others = {}
    for image_id, row in rows.items():
        path = tmp_path / "other" / f"{image_id}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (0, 40 * int(image_id), 0)).save(path)
        others[image_id] = row | {"image": {"path": str(path), "bytes": None}}
    second = ImageFeatureCache(tmp_path / "cache", model, processor, others)
    assert second.computed == 5 and second.folder == first.folder
    assert torch.equal(first.read(sorted(rows)), before)
    assert not torch.equal(second.read(sorted(rows)), before)


def test_changed_images_leave_one_file_of_features(tmp_path, model, processor, rows):
    for color in ("red", "green", "blue"):
        Image.new("RGB", (40, 40), color).save(rows["2"]["image"]["path"])
        cache = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
        assert sorted(file.suffix for file in cache.folder.iterdir()) == [".json", ".npy", ".npy"]


def test_features_of_the_release_before_are_used(tmp_path, model, processor, rows):
    cache = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    before = cache.read(sorted(rows)).clone()
    for file in cache.folder.iterdir():
        file.rename(file.with_name(f"{file.name[:16]}.{file.name.partition('.')[2]}"))
    cache = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    assert cache.computed == 0 and torch.equal(cache.read(sorted(rows)), before)


def test_changed_encoder_or_processor_uses_another_cache(tmp_path, model, processor, rows):
    first = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    assert ImageFeatureCache(tmp_path / "cache", model, processor, rows).folder != first.folder
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    model.config.vision_feature_layers = [1, 3]
    assert ImageFeatureCache(tmp_path / "cache", model, processor, rows).folder != first.folder
    model.config.vision_feature_layers = None
    eps, model.config.vision_config.layer_norm_eps = model.config.vision_config.layer_norm_eps, 1e-3
    assert ImageFeatureCache(tmp_path / "cache", model, processor, rows).folder != first.folder
    model.config.vision_config.layer_norm_eps = eps
    with torch.no_grad():
        next(model.qca.vision_encoder.backbone.parameters()).add_(1e-3)
    changed = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    assert changed.folder != first.folder and changed.computed == 5


def test_saved_and_loaded_model_finds_its_cache(tmp_path, model, rows):
    composed = tiny_processor()
    first = ImageFeatureCache(tmp_path / "cache", model, composed, rows)
    model.save_pretrained(tmp_path / "saved")
    composed.save_pretrained(tmp_path / "saved")
    loaded = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "saved")
    freeze(loaded, ["vision"])
    again = ImageFeatureCache(tmp_path / "cache", loaded, QCAProcessor.from_pretrained(tmp_path / "saved"), rows)
    assert (first.computed, again.computed) == (5, 0)


def test_interrupted_run_encodes_only_the_missing_images(tmp_path, model, processor, rows, monkeypatch):
    monkeypatch.setattr(feature_cache, "BATCH_SIZE", 2)
    encode, calls = feature_cache.encode_images, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:  # one call finds the shape, the next fills two rows
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(feature_cache, "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    monkeypatch.setattr(feature_cache, "encode_images", encode)
    cache = ImageFeatureCache(tmp_path / "cache", model, processor, rows)
    assert cache.computed == 3
    whole = ImageFeatureCache(tmp_path / "other", model, processor, rows)
    assert torch.allclose(cache.read(sorted(rows)), whole.read(sorted(rows)), atol=1e-6)


def test_concurrent_runs_encode_each_image_once(tmp_path, model, processor, rows, monkeypatch):
    encode = feature_cache.encode_images

    def slowly(*arguments):
        time.sleep(0.1)
        return encode(*arguments)

    monkeypatch.setattr(feature_cache, "encode_images", slowly)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(ImageFeatureCache, tmp_path / "cache", model, processor, rows) for _ in range(2)]
    caches = [run.result() for run in runs]
    assert sorted(cache.computed for cache in caches) == [0, 5]
    assert torch.equal(caches[0].read(sorted(rows)), caches[1].read(sorted(rows)))


def test_an_encoder_that_trains_is_refused(tmp_path, processor, rows):
    model = QCAForVisualQuestionAnswering(QCAConfig.from_pretrained(CONFIGURATION / "qca-tiny"))
    with pytest.raises(ValueError, match="add `vision` to `freeze`"):
        ImageFeatureCache(tmp_path / "cache", model, processor, rows)
