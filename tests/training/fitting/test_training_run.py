"""Training from recipes: results, resuming to the same weights, refusals, and warnings."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import EvalPrediction, TrainerCallback, TrainingArguments

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, configuration
from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.data.image_digests import image_digests
from modeling_qca.training.data.images import blank_image
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.data.vocabulary import store_vocabulary, vocabulary_reach
from modeling_qca.training.evaluation.calibrate import calibrate_checkpoint
from modeling_qca.training.evaluation.compare import compare_checkpoints
from modeling_qca.training.evaluation.evaluation import evaluate_checkpoint
from modeling_qca.training.evaluation.evaluation_data import shown_rows
from modeling_qca.training.files import progress
from modeling_qca.training.files.run_files import read_run
from modeling_qca.training.fitting import training_run as training
from modeling_qca.training.fitting.callbacks import last_complete_checkpoint
from modeling_qca.training.fitting.model_factory import build_model, training_answers
from modeling_qca.training.fitting.parameter_groups import freeze
from modeling_qca.training.fitting.recipe import Recipe, load_recipe, make_recipe
from modeling_qca.training.fitting.run_checks import (
    check_arguments,
    has_bfloat16,
    runnable_arguments,
    warn_of_missing_maps,
    warn_of_unknown_answers,
)
from modeling_qca.training.fitting.run_folder import images_trained_before, rows_fingerprint
from modeling_qca.training.fitting.splits import load_splits, measured_on, read_splits
from modeling_qca.training.fitting.training_run import TrainingStoppedError, train
from modeling_qca.training.fitting.weight_average import MovingAverage
from modeling_qca.training.supervision.scenes import write_scenes

RECIPES = sorted(Path(configuration.__file__).parent.glob("recipes/*.yaml"))
# What a recipe for real photos asks of its encoders, in the measure of the tiny preset.
TINY = {"vision_feature_layers": [1, 3], "hidden_size": 64, "token_budget": 12, "token_budget_layer": 1}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 12, "validation": 6}, seed=0)
    return folder


def keys(scenes: Path, output: Path, **values) -> dict:
    common = {
        "data": str(scenes),
        "model": "qca-tiny",
        "output_dir": str(output),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 32,
        "save_strategy": "steps",
        "save_steps": 1,
        "disable_tqdm": True,
    }
    return {**common, **values}


def recipe(scenes: Path, output: Path, **values) -> Recipe:
    return make_recipe(keys(scenes, output, **values), "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class StopAt(TrainerCallback):
    """Does something at the end of a step: what a power cut, a Ctrl-C or a bad row would do."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


@pytest.fixture
def at_step(monkeypatch):
    """Act at a step of the runs that follow."""

    def install(step, act):
        class Trainer(training.QCATrainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.add_callback(StopAt(step, act))

        monkeypatch.setattr(training, "QCATrainer", Trainer)
        return monkeypatch

    return install


TWINS = {"final_map", "rooms_views", "stage2", "unsupervised"}  # made tiny, what others do too


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in TWINS)) for path in RECIPES]
)
def test_every_shipped_recipe_runs(path, scenes, tmp_path):
    shipped = load_recipe(path)
    config = {name: value if value is None else TINY.get(name, value) for name, value in shipped.config.items()}
    arguments = {**shipped.arguments, "output_dir": str(tmp_path), "max_steps": 1, "disable_tqdm": True}
    arguments["bf16"] = path.stem == "rooms"  # once is enough on a processor that computes it number by number
    tiny = dataclasses.replace(
        shipped,
        data=str(scenes),
        format="table",
        data_options={},
        validation_data=None,
        validation_ratio=None,
        group_by=None,
        model="qca-tiny",
        vision_encoder=None,
        text_encoder=None,
        baselines=[],
        config=config,
        arguments=arguments,
    )
    results = train(tiny)
    assert 0 <= results["metrics"]["accuracy"] <= 1
    loaded = QCAForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert loaded.config.num_labels == results["data"]["vocabulary"]["answers"]


def test_results_have_metrics_baselines_and_attention(scenes, tmp_path):
    measured = {"attention_supervision": "every_hop", "baselines": ["question_only", "image_mean"]}
    run = recipe(scenes, tmp_path, max_steps=1, save_strategy="no", eval_strategy="no", **measured)
    results = train(run)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert set(results["baselines"]) == {"shuffled_questions", "majority", "question_only", "image_mean"}
    assert set(results["attention"]["pointing"]) == {"model", "shuffled_question", "center", "uniform"}
    assert set(results["per_question_type"]) == {"attribute", "exists", "count", "compare"}
    assert results["data"]["images"] == 6 and results["data"]["name"] == scenes.name
    assert results["cost"]["trained_parameters"] > 1e5
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.width == 384 and not list((tmp_path / "baselines").glob("*/overlay.png"))
    assert train(run) == results  # finished already: read, not trained again
    older = json.loads((tmp_path / "results.json").read_text())
    del older["recipe"]["metrics"]
    (tmp_path / "results.json").write_text(json.dumps(older))
    assert train(run) == older  # by a release that did not know this key yet


@pytest.mark.slow  # trains twice
@pytest.mark.parametrize(("ema_decay", "freeze"), [(None, []), (0.9, ["text"])])
def test_killed_run_resumes_to_the_same_weights(scenes, tmp_path, at_step, ema_decay, freeze):
    options = {
        "attention_supervision": "every_hop",
        "ema_decay": ema_decay,
        "classifier_dropout": 0.1,
        "freeze": freeze,
    }
    train(recipe(scenes, tmp_path / "whole", **options))

    class PowerCut(BaseException):
        pass

    def cut():
        raise PowerCut

    patch = at_step(3, cut)
    with pytest.raises(PowerCut):
        train(recipe(scenes, tmp_path / "cut", **options))
    patch.undo()
    # a kill in the middle of saving leaves a checkpoint without its last file
    half_written = tmp_path / "cut" / "checkpoint-9"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"")
    train(recipe(scenes, tmp_path / "cut", **options))
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_training_rows_exclude_images_of_validation(scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    for split in ("train", "validation"):
        (data / f"{split}_relevance.npz").unlink()
    rows = (data / "train.csv").read_text().splitlines()
    known = rows[1].split(",")[0]
    (data / "validation.csv").write_text("\n".join([rows[0], *(row for row in rows[1:] if row.startswith(known))]))
    run = recipe(data, tmp_path, group_by="image_id")
    train_rows, validation_rows = load_splits(run)
    assert set(validation_rows["image_id"]) == {known}
    assert known not in train_rows["image_id"] and len(train_rows) + len(validation_rows) == len(rows) - 1


@pytest.mark.slow  # trains three times
def test_early_stopping_counts_across_a_resumed_run(scenes, tmp_path, at_step):
    """With a metric that never gets better, patience ends at the same step whether the run was stopped or not."""
    never = {"learning_rate": 0.0, "early_stopping_patience": 2, "num_train_epochs": 5, "save_strategy": "epoch"}
    train(recipe(scenes, tmp_path / "whole", **never))

    def last(folder):
        return json.loads((folder / "results.json").read_text())["cost"], max(
            int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")
        )

    steps = last(tmp_path / "whole")[1]
    assert steps % 3 == 0  # the first epoch is the best, two more are no better
    patch = at_step(steps * 2 // 3 + 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingStoppedError):
        train(recipe(scenes, tmp_path / "parts", **never))
    patch.undo()
    saved = Path(last_complete_checkpoint(tmp_path / "parts"))
    before = json.loads((saved / "trainer_state.json").read_text())
    seconds = before["stateful_callbacks"]["TrainingClock"]["attributes"]["before"]
    train(recipe(scenes, tmp_path / "parts", **never))
    cost, stopped = last(tmp_path / "parts")
    assert stopped == steps
    assert cost["training_seconds"] >= round(seconds, 1) > 0  # of both parts together


def test_blank_images_run_is_distinguished_from_the_run_itself(scenes, tmp_path):
    run = recipe(scenes, tmp_path, max_steps=1, save_strategy="no", eval_strategy="no")
    blind = train(run, baseline="blank_images")
    assert train(run, baseline="blank_images") == blind
    seeing = train(run)
    assert (blind["baseline"], seeing["baseline"]) == ("blank_images", None)
    with pytest.raises(ValueError, match="of a run that differs in baseline"):
        saving = recipe(scenes, tmp_path / "saving", max_steps=1, eval_strategy="no")
        train(saving)
        (tmp_path / "saving" / "results.json").unlink()
        train(saving, baseline="blank_images")


@pytest.mark.parametrize(
    ("relevance", "maps", "warned"), [("last_hop", False, True), ("last_hop", True, False), ("none", False, False)]
)
def test_warns_when_no_row_has_relevance_maps(scenes, tmp_path, caplog, relevance, maps, warned):
    data = scenes
    if not maps:
        data = shutil.copytree(scenes, tmp_path / "scenes")
        for file in data.glob("*_relevance.npz"):
            file.unlink()
    run = recipe(data, tmp_path / "run", attention_supervision=relevance)
    warn_of_missing_maps(run, read_splits(run))
    assert ("no training row has a relevance map" in caplog.text) is warned


def test_results_of_a_replaced_model_are_removed(scenes, tmp_path, monkeypatch):
    options = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    train(recipe(scenes, tmp_path, attention_supervision="last_hop", lora_rank=2, **options))
    measured = [tmp_path / name for name in ("results.json", "questions.parquet", "overlay.png", "adapter")]
    assert all(file.exists() for file in measured)

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(training, "evaluate_model", fail)
    with pytest.raises(OSError, match="disk full"):
        train(recipe(scenes, tmp_path, attention_supervision="last_hop", learning_rate=1e-2, **options))
    assert not any(file.exists() for file in measured)


def test_refuses_cached_features_if_two_images_share_an_id(scenes, tmp_path):
    run = recipe(scenes, tmp_path / "run", freeze=["vision"], cache_image_features=True, max_steps=1)
    train_rows, validation_rows = load_splits(run)
    model, processor = build_model(run, ["yes"])
    freeze(model, run.freeze)
    renamed = train_rows.map(lambda row: {"image_id": row["image_id"].replace("train", "validation")})
    with pytest.raises(ValueError, match=r"image_id 'validation0' is of image .*train0.* but of .*give every image"):
        training.cache_features(model, processor, [renamed, validation_rows], half=False)


@pytest.mark.parametrize(
    "ends",
    [
        {"max_steps": 2},
        pytest.param({"max_steps": 2, "streaming": True}, marks=pytest.mark.slow),
        pytest.param({"num_train_epochs": 1.5}, marks=pytest.mark.slow),
        pytest.param(
            {"learning_rate": 1e-7, "early_stopping_patience": 1, "num_train_epochs": 4}, marks=pytest.mark.slow
        ),
    ],
)
def test_run_resumed_after_its_last_step_takes_no_further_step(scenes, tmp_path, ends):
    run = recipe(scenes, tmp_path, ema_decay=0.5, eval_steps=1, eval_strategy="steps", **ends)
    train(run)
    before = weights(tmp_path)
    (tmp_path / "results.json").unlink()
    train(run)
    assert all(weight.equal(before[name]) for name, weight in weights(tmp_path).items())


@pytest.mark.parametrize(
    "changed",
    [{"num_train_epochs": 1}, {"max_steps": 1}, {"num_train_epochs": 0.1}, {"num_train_epochs": 1, "freeze": []}],
)
def test_caches_text_features_if_the_text_encoder_is_frozen_and_all_questions_come(
    scenes, tmp_path, monkeypatch, changed
):
    def spy(model, questions, autocast):
        for of in questions:
            rows = zip(of["input_ids"], of["attention_mask"].bool(), strict=True)
            known.extend(tuple(ids[mask].tolist()) for ids, mask in rows)
        raise InterruptedError("what follows is training")

    def stop(self, **kwargs):
        raise InterruptedError

    known: list[tuple[int, ...]] = []
    monkeypatch.setattr(training, "TextFeatureCache", spy)
    monkeypatch.setattr(training.QCATrainer, "train", stop)
    run = recipe(scenes, tmp_path, **{"freeze": ["text"], "save_strategy": "no"} | changed)
    with pytest.raises(InterruptedError):
        train(run)
    processor = build_model(run, ["yes", "no"])[1]
    asked = [tuple(processor(text=question)["input_ids"][0].tolist()) for question in load_rows(scenes)["question"]]
    assert known == (asked if changed == {"num_train_epochs": 1} else [])


def test_adapters_of_frozen_groups_do_not_train(scenes, tmp_path):
    run = recipe(scenes, tmp_path, lora_rank=2, freeze=["text", "hops"], max_steps=2)
    train(run)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    taught = {name: bool(weight.any()) for name, weight in adapter.items() if "lora_B" in name}
    assert {"vision" if "vision_encoder" in name else "text" for name, any_ in taught.items() if any_} == {"vision"}
    assert any("text_encoder" in name for name in taught)


def test_linear_schedule_lowers_the_relevance_loss_weight_to_zero(scenes, tmp_path):
    values = {
        "attention_supervision": "last_hop",
        "relevance_loss_schedule": "linear",
        "max_steps": 4,
        "logging_steps": 1,
    }
    train(recipe(scenes, tmp_path, **values))
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "answer_loss" in entry]
    for step, parts in enumerate(logged):
        expected = parts["answer_loss"] + (1 - step / 4) * parts["relevance_loss"]
        assert parts["loss"] == pytest.approx(expected, rel=1e-3)
    assert len(logged) == 4 and QCAConfig.from_pretrained(tmp_path).relevance_loss_weight == 1.0


def test_refuses_one_process_with_several_gpus(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="accelerate launch"):
        train(recipe(scenes, tmp_path))


def test_null_vocabulary_keeps_the_answers_of_the_config(scenes, tmp_path):
    shutil.copytree(Path(configuration.__file__).parent / "qca-tiny", tmp_path / "preset")
    store_vocabulary(str(scenes), tmp_path / "preset", None, 3, {})
    stored = QCAConfig.from_pretrained(tmp_path / "preset").id2label
    train(recipe(scenes, tmp_path / "second", max_steps=1, model=str(tmp_path / "preset"), vocabulary=None))
    assert QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "second").config.id2label == stored
    assert len(stored) == 3
    with pytest.raises(ValueError, match="qca-tiny: no answers in its config"):
        train(recipe(scenes, tmp_path / "third", vocabulary=None))


def test_refuses_to_resume_from_checkpoints_of_another_recipe(scenes, tmp_path):
    short = {"max_steps": 1, "eval_strategy": "no"}
    train(recipe(scenes, tmp_path, **short))
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ValueError, match="differs in attention_supervision, learning_rate: give"):
        train(recipe(scenes, tmp_path, attention_supervision="last_hop", learning_rate=1e-4, **short))
    assert (tmp_path / "results.json").read_bytes() == before


def test_refuses_to_resume_with_other_answers(scenes, tmp_path, monkeypatch):
    run = recipe(scenes, tmp_path, max_steps=1, eval_strategy="no")
    train(run)
    (tmp_path / "results.json").unlink()
    monkeypatch.setattr(training, "training_answers", lambda *of: training_answers(*of)[::-1])
    with pytest.raises(ValueError, match=r"checkpoint-1 is of a run that differs in answers: give"):
        train(run)


@pytest.mark.parametrize(("split", "finished"), [("train", False), ("validation", False), ("train", True)])
def test_refuses_other_rows_in_the_folder_of_a_run(scenes, tmp_path, split, finished):
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    run = recipe(folder, tmp_path / "run", max_steps=1, eval_strategy="no")
    results = train(run)
    assert train(run) == results
    if not finished:
        (tmp_path / "run" / "results.json").unlink()
    names = (folder / f"{split}.csv").read_text()
    (folder / f"{split}.csv").write_text(names.replace("is there", "do you see"))
    rows = {"train": "the training rows", "validation": "the validation rows"}[split]
    place = "run" if finished else "checkpoint-1"
    with pytest.raises(ValueError, match=f"{place} is of a run that differs in {rows}: give this one another"):
        train(run)


@pytest.mark.parametrize(("baseline", "streaming"), [("blank_images", False), (None, True)])
def test_finished_run_knows_its_blank_or_streamed_rows(scenes, tmp_path, monkeypatch, baseline, streaming):
    run = recipe(scenes, tmp_path, max_steps=1, eval_strategy="no", save_strategy="no", streaming=streaming)
    results = train(run, baseline)
    monkeypatch.setattr("modeling_qca.training.fitting.splits.read_answers", lambda rows: pytest.fail("was read"))
    assert train(run, baseline) == results


def test_rows_fingerprint_follows_answers_maps_and_images_but_not_their_place(scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "scenes")

    def fingerprint(place):
        return rows_fingerprint(load_rows(place).cast_column("image", datasets.Image(decode=False)))

    found = [fingerprint(scenes), fingerprint(folder)]
    assert found[0] == found[1]
    table, maps = folder / "train.csv", folder / "train_relevance.npz"
    with np.load(maps) as arrays:
        stored = dict(arrays)
    np.savez(maps, **stored | {"mask": stored["mask"][..., ::-1]})
    found.append(fingerprint(folder))
    table.write_text(table.read_text().replace(",yes", ",no"))
    found.append(fingerprint(folder))
    Image.new("RGB", (9, 9)).save(next(iter(sorted((folder / "images").glob("train*")))))
    found.append(fingerprint(folder))
    assert len(set(found[1:])) == 4


def test_names_a_question_that_is_too_long_before_training(scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    rows = (folder / "validation.csv").read_text().splitlines()
    image, kind, _, answer = rows[-1].split(",")
    rows[-1] = ",".join([image, kind, "red " * 600, answer])
    (folder / "validation.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"Question validation-\d+, 'red red .* has 602 tokens"):
        train(recipe(folder, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
def test_resumes_a_run_of_an_earlier_release(scenes, tmp_path):
    train(recipe(scenes, tmp_path / "whole", save_total_limit=None))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "moved" / "checkpoint-2")
    described = json.loads((tmp_path / "whole" / "_recipe.json").read_text())
    del described["metrics"]
    described["arguments"]["output_dir"] = str(tmp_path / "moved")
    (tmp_path / "moved" / "_recipe.json").write_text(json.dumps(described))
    train(recipe(scenes, tmp_path / "moved", save_total_limit=None))
    assert_same_weights(tmp_path / "whole", tmp_path / "moved")
    assert not (tmp_path / "moved" / "checkpoint-1").exists()


def test_refuses_a_folder_with_results_of_no_training(scenes, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"metrics": {"accuracy": 1.0}}))
    with pytest.raises(ValueError, match=r"results.json is of no training; give this recipe another `output_dir`"):
        train(recipe(scenes, tmp_path))


@pytest.mark.slow  # trains three models
def test_image_mean_baseline_has_no_conditioning_or_token_budget(scenes, tmp_path):
    short = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    train(recipe(scenes, tmp_path / "budget", token_budget=8, token_budget_layer=1, **short))
    run = recipe(scenes, tmp_path / "next", model=str(tmp_path / "budget"), baselines=["image_mean"], **short)
    train(run)
    config = QCAConfig.from_pretrained(tmp_path / "next" / "baselines" / "image_mean")
    assert config.first_question_layer is None and config.num_attention_layers == 0
    assert QCAConfig.from_pretrained(tmp_path / "next").token_budget == 8


def test_image_mean_model_is_not_trained_again_as_its_baseline(scenes, tmp_path):
    no_hops = {"num_attention_layers": 0, "vision_conditioning_layers": None, "token_budget": None}
    run = recipe(scenes, tmp_path, max_steps=1, eval_strategy="no", baselines=["image_mean"], **no_hops)
    assert train(run)["baselines"].keys() == {"majority"}
    composed = {"model": None, "vision_encoder": "v", "text_encoder": "t"}
    for values, expected in ((composed, True), ({}, False), ({**composed, "token_budget": 8}, False)):
        run = recipe(scenes, tmp_path, num_attention_layers=0, **values)
        assert training.is_image_mean(run) is expected, values


@pytest.mark.slow
def test_resumes_from_a_checkpoint_without_a_recipe_with_a_warning(scenes, tmp_path, caplog):
    train(recipe(scenes, tmp_path / "whole", save_total_limit=None))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "moved" / "checkpoint-2")
    train(recipe(scenes, tmp_path / "moved", save_total_limit=None))
    assert "checkpoint-2: no _recipe.json says which recipe it is of" in caplog.text
    assert_same_weights(tmp_path / "whole", tmp_path / "moved")
    assert not (tmp_path / "moved" / "checkpoint-1").exists()  # went on, did not begin anew


@pytest.mark.slow  # starts processes
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_command_after_kill_9_resumes_to_the_same_weights(scenes, tmp_path):
    options = {
        "num_train_epochs": 10,
        "attention_supervision": "every_hop",
        "classifier_dropout": 0.1,
        "logging_steps": 1,
    }
    train(recipe(scenes, tmp_path / "whole", **options))
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(keys(scenes, tmp_path / "killed", **options)))
    command = [sys.executable, "-c", "from qca_cli.main import main; main()", "train", str(file)]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("killed/checkpoint-[5-9]")):
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 0 < done.stdout.count("'loss'") <= 26  # of 30 steps
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_ctrl_c_saves_and_the_same_command_resumes(scenes, tmp_path, at_step):
    options = {"save_strategy": "no"}
    train(recipe(scenes, tmp_path / "whole", **options))
    patch = at_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingStoppedError, match=r"stopped at step [23]; the same command goes on"):
        train(recipe(scenes, tmp_path / "stopped", **options))
    patch.undo()
    assert not (tmp_path / "stopped" / "results.json").exists()
    train(recipe(scenes, tmp_path / "stopped", **options))
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_loss_that_is_not_finite_stops_with_step_and_questions(scenes, tmp_path):
    run = recipe(scenes, tmp_path, learning_rate=1e30, warmup_steps=0, max_grad_norm=0.0)
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step \d, questions train-\d+"):
        train(run)
    assert not (tmp_path / "results.json").exists()


def test_second_stage_adds_hops_and_keeps_the_frozen_encoder(scenes, tmp_path):
    hops = {
        stage: load_recipe(RECIPES[0].parent / f"{stage}.yaml").config["num_attention_layers"]
        for stage in ("stage1", "stage2")
    }
    short = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    train(recipe(scenes, tmp_path / "one", num_attention_layers=hops["stage1"], **short))
    second = {"model": str(tmp_path / "one"), "num_attention_layers": hops["stage2"], "freeze": ["vision"]}
    train(recipe(scenes, tmp_path / "two", attention_supervision="last_hop", **second, **short))
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert not any(".hops." in name for name in first) and any(".hops." in name for name in second)
    vision = [name for name in first if ".backbone." in name]
    assert vision and all(torch.equal(first[name], second[name]) for name in vision)


def test_frozen_groups_and_groups_with_zero_learning_rate_keep_their_weights(scenes, tmp_path):
    short = {"save_strategy": "no", "eval_strategy": "no"}
    train(recipe(scenes, tmp_path / "start", max_steps=1, learning_rate=0.0, **short))
    train(recipe(scenes, tmp_path / "end", max_steps=2, freeze=["vision"], learning_rates={"text": 0.0}, **short))
    start, end = weights(tmp_path / "start"), weights(tmp_path / "end")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert not [name for name in changed if ".backbone." in name or ".text_encoder." in name]
    assert any(".hops." in name for name in changed) and any("classifier" in name for name in changed)


def test_cached_image_features_train_the_same_model(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(training.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options = {"freeze": ["vision"], "attention_supervision": "last_hop", "max_steps": 2, "eval_strategy": "no"}
    fresh = train(recipe(scenes, tmp_path / "fresh", **options))
    cached = train(recipe(scenes, tmp_path / "cached", cache_image_features=True, **options))
    one, other = weights(tmp_path / "fresh"), weights(tmp_path / "cached")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
    assert cached["metrics"]["accuracy"] == pytest.approx(fresh["metrics"]["accuracy"], abs=0.05)


def test_batch_accuracy_is_the_score_of_the_chosen_answers():
    chosen = np.array([2, 0, 1])
    assert training.batch_accuracy(EvalPrediction(chosen, np.array([2, 1, 1]))) == {"accuracy": pytest.approx(2 / 3)}
    scores = np.array([[0.1, 0.2, 0.6], [0.3, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert training.batch_accuracy(EvalPrediction(chosen, scores)) == {"accuracy": pytest.approx((0.6 + 0.3) / 3)}


def test_moving_average_equals_the_formula():
    module = torch.nn.Linear(2, 1, bias=False)
    average = MovingAverage(module, 0.75)
    expected = module.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            module.weight.fill_(step)
        average.update()
        expected = 0.75 * expected + 0.25 * step
    average.swap()
    torch.testing.assert_close(module.weight.detach(), expected)
    average.swap()
    assert module.weight.tolist() == [[3.0, 3.0]]


def test_training_rows_in_groups_of_validation_are_left_out(scenes, tmp_path, caplog):
    run = recipe(scenes, tmp_path, validation_data=str(scenes), group_by="image_id // 4")
    train_rows, validation_rows = load_splits(run)
    # `train7` and `validation7` end in the same number: of one neighborhood, by name
    held_out = {int(name.removeprefix("validation")) // 4 for name in validation_rows["image_id"]}
    assert held_out == {0, 1}
    assert {int(name.removeprefix("train")) // 4 for name in train_rows["image_id"]} == {2}
    whole = len(load_rows(scenes))
    assert f"{whole - len(train_rows)} of {whole} training rows are left out: validation has rows" in caplog.text


def test_names_the_data_and_split_of_the_results(scenes, tmp_path):
    assert measured_on(recipe(scenes, tmp_path)) == {"name": scenes.name, "split": "validation"}
    other = recipe(scenes, tmp_path, validation_data="data/other")
    assert measured_on(other) == {"name": "other", "split": "validation"}
    cut = recipe(scenes, tmp_path, data_options={"validation_ratio": 0.5, "seed": 3})
    assert measured_on(cut) == {"name": scenes.name, "split": "50% of train, seed 3"}


def test_bfloat16_is_turned_off_on_a_processor_that_emulates_it(scenes, tmp_path, caplog, monkeypatch):
    for native, bf16 in ((True, True), (False, False)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native)
        run = recipe(scenes, tmp_path, bf16=bf16, use_cpu=True)
        check_arguments(run.training_arguments())
        assert runnable_arguments(run).bf16 is bf16
    assert not caplog.text
    run = recipe(scenes, tmp_path, bf16=True, use_cpu=True)
    check_arguments(run.training_arguments())
    assert "`bf16` is turned off" in caplog.text
    assert runnable_arguments(run).bf16 is False and run.arguments["bf16"] is True
    assert has_bfloat16(torch.device("cuda"))


@pytest.mark.parametrize(
    ("tracker", "message"), [("wandbb", "there is no tracker 'wandbb'"), ("comet_ml", "not installed")]
)
def test_refuses_a_tracker_that_is_not_installed_before_reading_data(tmp_path, tracker, message):
    with pytest.raises(ValueError, match=message):
        train(recipe(tmp_path / "no data", tmp_path / "run", report_to=tracker))


def test_warns_of_questions_without_an_answer_in_the_vocabulary(scenes, tmp_path, caplog):
    run = recipe(scenes, tmp_path, vocabulary={"top_k": 2})
    splits = read_splits(run)
    answers = training_answers(run, splits.answered)
    warn_of_unknown_answers(run, splits, answers)
    (message,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("validation:")]
    rows = splits.validation
    outside = round(len(rows) * (1 - vocabulary_reach(rows["answers"], answers, "consensus", True)["coverage"]))
    assert f"{outside} of {len(rows)} questions have no answer in the vocabulary of 2, the first is" in message
    assert outside > 0 and "validation-" in message


def test_run_remembers_data_answers_and_training_images(scenes, tmp_path):
    results = train(recipe(scenes, tmp_path, max_steps=1, eval_strategy="no"))
    run = read_run(tmp_path)
    assert (run["data"], run["format"], run["split"]) == (str(scenes), "table", "validation")
    assert run["data_options"] == {} and run["validation_data"] is None
    assert (run["answer_rule"], run["normalize_answers"]) == ("consensus", True)
    assert len(run["answers"]) == results["data"]["vocabulary"]["answers"]
    assert set(run["training_images"]) == image_digests(load_rows(scenes, split="train"))
    assert not set(run["training_images"]) & image_digests(load_rows(scenes, split="validation"))


def test_run_remembers_the_images_of_the_run_that_it_continues(scenes, tmp_path, caplog):
    short = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    write_scenes(tmp_path / "more", {"train": 4, "validation": 2}, seed=1)
    train(recipe(tmp_path / "more", tmp_path / "first", **short))
    train(recipe(scenes, tmp_path / "second", model=str(tmp_path / "first"), **short))
    own = image_digests(load_rows(scenes)) | image_digests(load_rows(tmp_path / "more"))
    assert set(read_run(tmp_path / "second")["training_images"]) == own
    assert "trained on" not in caplog.text
    switched = recipe(scenes, tmp_path / "third", model=str(tmp_path / "first"), **short)
    known = tmp_path / "first" / "run.json"
    before = json.loads(known.read_text())
    seen = sorted(image_digests(load_rows(scenes, split="validation")))
    known.write_text(json.dumps(before | {"training_images": seen}))
    train(switched)
    assert "6 of the 6 images to evaluate on were trained on" in caplog.text
    known.write_text(json.dumps(before | {"training_images": None}))
    train(recipe(scenes, tmp_path / "fourth", model=str(tmp_path / "first"), **short))
    assert read_run(tmp_path / "fourth")["training_images"] is None
    known.write_text(json.dumps(before))
    saved = recipe(scenes, tmp_path / "fifth", model=str(tmp_path / "first" / "checkpoint-1"), **short)
    assert images_trained_before(saved) == set(before["training_images"])


def test_question_only_run_is_shown_blank_images_ever_after(scenes, tmp_path, caplog):
    train(recipe(scenes, tmp_path, max_steps=2, eval_strategy="no", baselines=["question_only"]))
    folder = tmp_path / "baselines" / "question_only"
    run = read_run(folder)
    assert run["blank_images"] and not read_run(tmp_path)["blank_images"]
    assert set(run["training_images"]) == image_digests(load_rows(scenes))
    asked = []
    shown_images = QuestionCollator.inputs

    def inputs(self, rows):
        asked.extend(row["image"]["bytes"] == blank_image()["bytes"] for row in rows)
        return shown_images(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuestionCollator, "inputs", inputs)
        results = evaluate_checkpoint(str(folder), None, None, {}, tmp_path / "evaluation", 0)
        calibrate_checkpoint(str(folder))
        assert asked and all(asked)
        compare_checkpoints(str(folder), str(tmp_path), None, None, {}, tmp_path / "comparison")
    assert not all(asked)
    assert results["data"]["images"] == 6 and results["data"]["images_trained_on"] == 0
    assert "was trained on blank images" in caplog.text
    rows = load_rows(scenes, split="validation").cast_column("image", datasets.Image(decode=False))
    intermediate = shown_rows(str(folder / "checkpoint-2"), rows)
    assert {image["bytes"] for image in intermediate["image"]} == {blank_image()["bytes"]}
    details = pd.read_parquet(tmp_path / "evaluation" / "questions.parquet").set_index("question_id")
    trained = pd.read_parquet(folder / "questions.parquet").set_index("question_id")
    assert details["answer"].to_dict() == trained["answer"].to_dict()
    assert details["image_id"].nunique() == 6


def test_prints_lines_of_progress_without_a_terminal(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    values = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    train(recipe(scenes, tmp_path, disable_tqdm=False, per_device_train_batch_size=2, **values))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Training: ")]
    assert [line.split(",")[0] for line in lines] == [f"Training: {step} of 3" for step in (1, 2, 3)]
    assert "/s, " in lines[2] and " left, loss " in lines[2]


def test_object_words_give_maps_to_questions_that_have_none(scenes, tmp_path, caplog):
    pytest.importorskip("inflect")
    bare = tmp_path / "bare"
    shutil.copytree(scenes, bare)
    (bare / "train_relevance.npz").unlink()
    options = {"freeze": ["vision"], "cache_image_features": True, "attention_supervision": "every_hop"}
    words = ["circle", "square", "triangle", "star"]
    results = train(recipe(bare, tmp_path / "words", object_words=words, max_steps=2, **options))
    assert results["attention"]["pointing"]["model"] >= 0
    assert "training questions get relevance maps" in caplog.text
    assert "no training row has a relevance map" not in caplog.text
    train(recipe(bare, tmp_path / "without", max_steps=2, **options))
    assert "no training row has a relevance map" in caplog.text
    name = next(name for name in weights(tmp_path / "words") if "scorer.q_proj.weight" in name)
    assert not torch.equal(weights(tmp_path / "words")[name], weights(tmp_path / "without")[name])
