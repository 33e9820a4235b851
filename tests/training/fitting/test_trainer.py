"""Plain `transformers.Trainer` trains and evaluates the model, with and without PEFT, on one process and on two."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_batch, tiny_model, tiny_processor
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_qca.training.fitting.adapters import lora_config
from modeling_qca.training.fitting.callbacks import EarlyStopping
from modeling_qca.training.fitting.parameter_groups import freeze
from modeling_qca.training.fitting.trainer import QCATrainer

TESTS = Path(__file__).parents[2]


class Questions(Dataset):
    """Questions of seven tokens, each with a picture of its own; the first token says the answer and where to look."""

    def __init__(self, count: int, maps: bool = True, seed: int = 0):
        self.batch = tiny_batch(count, count, seed=seed)
        del self.batch["image_index"]
        self.batch["labels"] = self.batch["input_ids"][:, 0] % 5
        if maps:
            self.batch["target_relevance"] = torch.eye(16)[self.batch["input_ids"][:, 0] % 16]

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.batch.items()}


def trainer_of(folder: Path, model: torch.nn.Module | None = None, maps: bool = True, **arguments: Any) -> Trainer:
    defaults = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return Trainer(
        tiny_model() if model is None else model,
        TrainingArguments(folder, **defaults | arguments),
        train_dataset=Questions(16, maps),
        eval_dataset=Questions(10, maps, seed=1),
    )


def losses(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def adapted() -> PeftModel:
    model = tiny_model()
    return get_peft_model(model, lora_config(model))


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of the defaults."""
    torch.manual_seed(0)
    trainer = trainer_of(tmp_path_factory.mktemp("plain"))
    trainer.train()
    return losses(trainer)


@pytest.mark.parametrize("make", [tiny_model, adapted], ids=["whole", "lora"])
def test_trains_and_logs_training_and_evaluation_loss(make, tmp_path):
    trainer = trainer_of(tmp_path, make(), max_steps=40, eval_strategy="steps", eval_steps=20, warmup_steps=5)
    trainer.train()
    curve = losses(trainer)
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])
    evaluated = losses(trainer, "eval_loss")
    assert len(evaluated) == 2
    with torch.no_grad():
        batches = [
            trainer.data_collator([trainer.eval_dataset[i] for i in range(*ends)]) for ends in ((0, 8), (8, 10))
        ]
        by_hand = [trainer.model(**batch).loss.item() for batch in batches]
    assert evaluated[-1] == pytest.approx((8 * by_hand[0] + 2 * by_hand[1]) / 10, rel=1e-4)


@pytest.mark.parametrize("make", [tiny_model, adapted], ids=["whole", "lora"])
def test_evaluation_returns_logits_without_relevance_maps(make, tmp_path):
    model = make()
    (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation("eager")
    model.config.output_attentions = model.config.output_hidden_states = True
    seen = []
    trainer = trainer_of(tmp_path, model)
    trainer.compute_metrics = lambda prediction: seen.append(prediction) or {"accuracy": 0.5}
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 0.5
    assert metrics["eval_loss"] > 0
    with torch.no_grad():
        outputs = model(**trainer.eval_dataset.batch)
    assert {"relevance", "grid", "relevance_loss", "text_hidden_states"} <= outputs.keys()
    np.testing.assert_allclose(seen[0].predictions, outputs.logits, atol=1e-5)
    np.testing.assert_array_equal(seen[0].label_ids, trainer.eval_dataset.batch["labels"])


def test_data_without_maps_has_an_evaluation_loss_without_label_names(tmp_path):
    metrics = trainer_of(tmp_path, maps=False).evaluate()
    assert metrics["eval_loss"] > 0


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-4),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, 1e-3),
        ({"bf16": True}, 0.1),
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, 1e-4, marks=pytest.mark.slow),
    ],
    ids=["gradient_checkpointing", "gradient_accumulation", "bf16", "torch_compile"],
)
def test_ways_to_train_give_the_same_loss_curve(arguments, tolerance, plain_losses, tmp_path):
    trainer = trainer_of(tmp_path, **arguments)
    trainer.train()
    assert losses(trainer) == pytest.approx(plain_losses, rel=tolerance)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.slow  # compiles kernels
def test_compiled_kernels_give_the_same_loss_curve(plain_losses, tmp_path):
    trainer = trainer_of(tmp_path, torch_compile=True)
    trainer.train()
    assert losses(trainer) == pytest.approx(plain_losses, rel=1e-3)


@pytest.mark.slow  # that of a token budget, with more in it, is in test_token_budget
def test_forward_compiles_into_one_graph():
    model, batch = tiny_model(), tiny_batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert compiled(**batch).logits.allclose(model(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("make", [pytest.param(tiny_model, marks=pytest.mark.slow), adapted], ids=["whole", "lora"])
def test_interrupted_run_resumes_to_the_same_weights(make, tmp_path):
    torch.manual_seed(0)
    whole = trainer_of(tmp_path / "whole", make())
    whole.train()
    torch.manual_seed(0)
    first = trainer_of(tmp_path / "parts", make(), save_steps=4)
    first.add_callback(stop_after(4))
    first.train()
    assert len(losses(first)) == 4
    second = trainer_of(tmp_path / "parts", make(), save_steps=4)
    second.train(resume_from_checkpoint=True)
    assert losses(second) == pytest.approx(losses(whole), rel=1e-5)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


class Identified(Questions):
    """With what recipes' collator adds, and the image of each row for the order of an epoch."""

    def __getitem__(self, index: Any) -> Any:
        if index == "image_id":
            return [str(number) for number in range(len(self))]
        return super().__getitem__(index) | {"question_ids": index}


def our_trainer(
    folder: Path, ema_decay: float | None = None, model: Any = tiny_model, model_init: Any = None, **arguments: Any
) -> QCATrainer:
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
    }
    return QCATrainer(
        tiny_model() if model is tiny_model else model,
        TrainingArguments(folder, **defaults | arguments),
        train_dataset=Identified(16),
        eval_dataset=Identified(10, seed=1),
        model_init=model_init,
        ema_decay=ema_decay,
    )


def test_evaluates_the_moving_average_after_training(tmp_path):
    trainer = our_trainer(tmp_path, ema_decay=0.9)
    trainer.train()
    left = {name: weight.clone() for name, weight in trainer.average.weights.items()}
    with torch.no_grad():
        loss = trainer.model.eval()(**trainer.eval_dataset.batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert all(weight.equal(left[name]) for name, weight in trainer.average.weights.items())
    last = {name: weight.clone() for name, weight in trainer.average.average.items()}
    trainer.train(resume_from_checkpoint=True)  # is finished: takes no step from the last weights
    for name, weight in trainer.average.average.items():
        torch.testing.assert_close(weight, last[name])
    for name, weight in trainer.average.weights.items():
        torch.testing.assert_close(weight.detach(), left[name].detach())


def frozen_text_model() -> torch.nn.Module:
    model = tiny_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return model.train()


def test_model_init_freezes_and_averages_the_model_that_trains(tmp_path):
    def model_init() -> torch.nn.Module:
        model = frozen_text_model()
        freeze(model, ["text"])
        return model

    trainer = our_trainer(tmp_path, ema_decay=0.5, model=None, model_init=model_init)
    discarded = trainer.model
    modes: list[tuple[bool, bool]] = []
    compute_loss = trainer.compute_loss

    def spy(model, *args, **kwargs):
        loss = compute_loss(model, *args, **kwargs)
        if model.training:
            modes.append((model.qca.text_encoder.training, model.classifier.training))
        return loss

    trainer.compute_loss = spy
    trainer.train()
    assert trainer.model is not discarded and trainer.average.model is trainer.model
    assert modes == [(False, True)] * 6
    assert {id(weight) for weight in trainer.average.weights.values()} <= set(map(id, trainer.model.parameters()))
    with torch.no_grad():
        loss = trainer.model.eval()(**trainer.eval_dataset.batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("make", [tiny_model, adapted], ids=["whole", "lora"])
def test_reports_the_evaluation_loss_without_label_names(make, tmp_path):
    trainer = our_trainer(tmp_path, model=make(), label_names=None, max_steps=1)
    assert trainer.label_names == ["labels"]
    trainer.compute_metrics = lambda prediction: {"shape": np.shape(prediction.label_ids)[0]}
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0 and metrics["eval_shape"] == 10


@pytest.mark.parametrize("resume", [True, False])
def test_resumes_from_the_last_complete_checkpoint_only_if_asked(resume, tmp_path):
    with pytest.raises(ValueError, match="holds no complete checkpoint to go on from"):
        our_trainer(tmp_path).train(resume_from_checkpoint=True)
    our_trainer(tmp_path, ema_decay=0.9, max_steps=3).train(resume_from_checkpoint=False)
    (tmp_path / "checkpoint-best").mkdir()  # a user's own
    trainer, begun = our_trainer(tmp_path, ema_decay=0.9), []

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            begun.append(state.global_step)

    trainer.add_callback(Steps())
    trainer.train(resume_from_checkpoint=resume)
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [1, 2, 3, 4, 5, 6]
    assert begun == list(range(3 if resume else 0, 6))


def test_refuses_label_smoothing(tmp_path):
    with pytest.raises(ValueError, match="`label_smoothing_factor` replaces the model's loss"):
        our_trainer(tmp_path, label_smoothing_factor=0.1)


def test_refuses_checkpoints_without_the_moving_average(tmp_path):
    with pytest.raises(ValueError, match="`save_only_model` leaves `ema_decay` out"):
        our_trainer(tmp_path, 0.9, save_only_model=True)


def test_trainer_that_stopped_early_trains_again(tmp_path):
    best = {"metric_for_best_model": "loss", "load_best_model_at_end": True, "save_steps": 1}
    trainer = our_trainer(tmp_path, eval_strategy="steps", eval_steps=1, learning_rate=0.0, **best)
    trainer.add_callback(EarlyStopping(1))
    for _ in range(2):
        trainer.train()
        assert trainer.state.global_step == 2  # the first evaluation is the best, the second no better


def stop_after(step: int) -> Any:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

    return Stop()


@pytest.mark.parametrize("make", [tiny_model, adapted], ids=["whole", "lora"])
def test_best_checkpoint_is_loaded_at_the_end(make, tmp_path):
    every_four = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "save_only_model": True}
    trainer = trainer_of(tmp_path, make(), max_steps=16, learning_rate=0.05, load_best_model_at_end=True, **every_four)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses(trainer, "eval_loss")), rel=1e-5)
    assert not list(tmp_path.glob("*/optimizer*"))


def test_trainer_checkpoint_loads_as_a_model_with_its_processor(tmp_path):
    trainer = trainer_of(tmp_path, save_steps=8, save_only_model=True)
    trainer.processing_class = tiny_processor()
    trainer.train()
    checkpoint = tmp_path / "checkpoint-8"
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(checkpoint)
    batch = tiny_batch()
    assert loaded(**batch).logits.allclose(trainer.model.eval()(**batch).logits, atol=1e-5)
    assert AutoProcessor.from_pretrained(checkpoint).tokenizer.model_max_length == 16
    assert (checkpoint / "modeling_qca.py").exists()


def main(folder: str, *flags: str) -> None:
    """Train and write the loss curve; launched once alone and once as two processes."""
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    batch = {"per_device_train_batch_size": 4 // processes, "per_device_eval_batch_size": 10 // processes}
    trainer = trainer_of(Path(folder), **batch, **dict.fromkeys(flags, True))
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        curve = {"processes": trainer.args.world_size, "loss": losses(trainer), "eval_loss": evaluated}
        Path(folder, "losses.json").write_text(json.dumps(curve))
    # Gloo's thread drops the tensors of the last gather, for which it needs the interpreter: torch aborts, or hangs,
    # where that is leaving meanwhile.
    time.sleep(1)


@pytest.mark.slow  # starts six processes
@pytest.mark.parametrize("flags", [[], ["gradient_checkpointing"]], ids=["plain", "gradient_checkpointing"])
def test_two_processes_give_the_loss_curve_of_one_process(flags, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_machines", "1"]
    curves = []
    # The launcher starts several processes only where it believes in several GPUs; `use_cpu=True` puts them on CPUs.
    for processes in (["--cpu", "--num_processes", "1"], ["--multi_gpu", "--num_processes", "2"]):
        folder = tmp_path / processes[-1]
        folder.mkdir()
        command = [*launch, *processes, __file__, str(folder), *flags]
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=500)
        assert done.returncode == 0, done.stderr
        curves.append(json.loads((folder / "losses.json").read_text()))
    assert [curve["processes"] for curve in curves] == [1, 2]
    assert curves[1]["loss"] == pytest.approx(curves[0]["loss"], rel=1e-3)
    assert curves[1]["eval_loss"] == pytest.approx(curves[0]["eval_loss"], rel=1e-3)


if __name__ == "__main__":
    main(*sys.argv[1:])
