"""Training on a stream: each row once per pass on any number of processes, resuming, and refused options."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from helpers.data_files import draw
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from modeling_qca.training.data import streams as streaming
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.data.streams import read_answers, repeat_and_shuffle
from modeling_qca.training.data.vocabulary import build_vocabulary, vocabulary_reach
from modeling_qca.training.evaluation.accuracy import majority_accuracy
from modeling_qca.training.fitting import training_run as training
from modeling_qca.training.fitting.recipe import Recipe, make_recipe
from modeling_qca.training.fitting.splits import blank_images, load_splits
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes

SPLITS = ("train", "validation")


def sharded_table(folder: Path, rows: int, shards: int) -> Path:
    """A table of `rows` questions about one image in `shards` files."""
    draw(folder / "images" / "image0.jpg")
    records = [{"image_id": "image0", "question": f"q {row}", "answer": str(row % 3)} for row in range(rows)]
    for shard in range(shards):
        path = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        datasets.Dataset.from_list(records[shard::shards]).to_parquet(path)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 12, "validation": 4}, seed=0)
    return folder


def recipe(scenes: Path, output: Path, **values) -> Recipe:
    common = {
        "data": str(scenes),
        "model": "qca-tiny",
        "output_dir": str(output),
        "streaming": True,
        "max_steps": 12,
        "per_device_train_batch_size": 24,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return make_recipe({**common, **values}, "test")


def test_recipe_trains_on_a_stream(scenes, tmp_path):
    shown: list[str] = []
    options = {"max_steps": 12, "learning_rate": 5e-3, "attention_supervision": "every_hop"}
    results = train(recipe(scenes, tmp_path, **options), show=shown.append)
    assert not shown  # a stream is not inspected: that would read it once more
    assert results == json.loads((tmp_path / "results.json").read_text())
    (state,) = tmp_path.glob("checkpoint-*/trainer_state.json")
    losses = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    rows = [load_rows(scenes, split=split) for split in SPLITS]
    assert results["baselines"]["majority"]["accuracy"] == majority_accuracy(*rows, "consensus", True)
    answers = build_vocabulary(rows[0]["answers"])
    reach = {split: vocabulary_reach(of["answers"], answers) for split, of in zip(SPLITS, rows, strict=True)}
    assert results["data"]["vocabulary"] == {"answers": len(answers), **reach}


@pytest.mark.slow
def test_resumed_run_continues_with_the_next_rows(scenes, tmp_path, monkeypatch):
    options = {"classifier_dropout": 0.1, "save_steps": 3}  # 96 rows: step 9 is in the third pass
    train(recipe(scenes, tmp_path / "whole", **options))

    class PowerCut(BaseException):
        pass

    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                raise PowerCut

    class Trainer(training.QCATrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Cut())

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(training, "QCATrainer", Trainer)
        train(recipe(scenes, tmp_path / "cut", **options))
    assert (tmp_path / "cut" / "checkpoint-9").exists()
    train(recipe(scenes, tmp_path / "cut", **options))
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("shards", "processes", "workers"), [(1, 1, 0), (4, 1, 2), (1, 2, 0), (4, 2, 0), (4, 2, 2), (3, 2, 0), (2, 3, 0)]
)
def test_each_row_is_seen_once_per_pass(shards, processes, workers, tmp_path):
    stream = load_rows(sharded_table(tmp_path, 24, shards), streaming=True).remove_columns("image")
    assert stream.num_shards == shards
    seen = []
    for process in range(processes):
        loader = DataLoader(stream, 4, collate_fn=list, num_workers=workers)
        share = prepare_data_loader(
            loader, num_processes=processes, process_index=process, put_on_device=False, dispatch_batches=False
        )
        seen.append([row["question"] for batch in share for row in batch])
        assert 8 <= len(seen[-1]) < 24 or processes == 1
    assert sorted(question for share in seen for question in share) == sorted(f"q {row}" for row in range(24))


def test_passes_have_different_orders(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 6)
    stream = load_rows(sharded_table(tmp_path, 24, 3), streaming=True).remove_columns("image")

    def order(seed: int) -> list[str]:
        return [row["question"] for row in islice(repeat_and_shuffle(stream, seed), 5 * 24)]

    rows = order(0)
    assert rows == order(0) != order(1)
    assert rows[:24] != rows[24:48]
    counts = Counter(rows)  # what the buffer still holds is missing from the fifth pass
    assert len(counts) == 24 and all(4 <= count <= 6 for count in counts.values())


def test_read_answers_equals_the_rows(tmp_path):
    folder = sharded_table(tmp_path, 24, 3)
    answered = read_answers(load_rows(folder, streaming=True))
    for column in ("question_id", "answers"):
        assert answered[column][:] == load_rows(folder)[column][:]


def test_stream_leaves_out_held_out_groups(scenes, tmp_path):
    options = {"validation_data": str(scenes), "group_by": "image_id // 4"}
    stream, _ = load_splits(recipe(scenes, tmp_path, **options))
    kept, _ = load_splits(recipe(scenes, tmp_path, streaming=False, **options))
    assert [row["question_id"] for row in stream] == kept["question_id"][:]
    blank, expected = blank_images(stream), blank_images(kept)
    assert [row["image"] for row in blank] == [row["image"] for row in expected]
    assert {row["image_id"] for row in blank} == {"blank"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": -1, "num_train_epochs": 2}, "`streaming` needs `max_steps`"),
        ({"save_strategy": "epoch"}, "`save_strategy` is `epoch`, but a stream has no epochs"),
        ({"freeze": ["vision"], "cache_image_features": True}, "`cache_image_features` needs .* and no `streaming`"),
    ],
)
def test_refuses_options_without_streaming_support(scenes, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        recipe(scenes, tmp_path, **values)
