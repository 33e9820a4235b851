"""Several processes: launch configurations, and `qca train` on two processes with DDP and FSDP."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from qca_cli.main import main as qca
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from modeling_qca import QCAForVisualQuestionAnswering, configuration
from modeling_qca.training.fitting import training_run as training
from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes

TESTS = Path(__file__).parents[2]
CONFIGS = sorted((Path(configuration.__file__).parent / "accelerate").glob("*.yaml"))
CPU, FSDP = (CONFIGS[0].with_name(name) for name in ("two_cpu_processes.yaml", "fsdp.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_launch_configurations_parse_and_have_a_usage_line(path):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision == "no"
    purpose, *usage = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    assert purpose.endswith((".", ":"))
    command = shlex.split("".join(line.removesuffix("\\") for line in usage))
    assert command[:2] == ["accelerate", "launch"]
    arguments = launch_command_parser().parse_args(command[2:])
    assert Path(arguments.config_file).name == path.name
    assert (arguments.num_processes or config.num_processes) > 1
    assert (arguments.no_python, arguments.training_script, arguments.training_script_args[0]) == (
        True,
        "qca",
        "train",
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 12, "validation": 4}, seed=0)  # 96 questions: three batches of 32
    return folder


def recipe(scenes: Path, output: Path, batch: int, **values) -> dict:
    common = {
        "data": str(scenes),
        "model": "qca-tiny",
        "output_dir": str(output),
        "num_train_epochs": 2,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return {**common, **values}


def launch(config: Path, values: dict, error: bool = False) -> str:
    """Train on two processes; returns what they printed, or wrote to stderr where an error is expected."""
    folder = Path(values["output_dir"]).parent
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    command += ["--num_processes", "2", __file__, "train", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert bool(done.returncode) == error, done.stdout + done.stderr
    return done.stderr if error else done.stdout


def losses(folder: Path, part: str = "loss") -> list[float]:
    states = [json.loads(file.read_text()) for file in folder.glob("checkpoint-*/trainer_state.json")]
    history = max(states, key=lambda state: state["global_step"])["log_history"]
    return [entry[part] for entry in history if part in entry]


def assert_same_run(one: Path, two: Path) -> None:
    assert len(losses(one)) == 6
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    assert losses(two, "answer_loss") == pytest.approx(losses(one, "answer_loss"), rel=1e-3)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=2e-3, msg=name)
    accuracy = [json.loads((folder / "results.json").read_text())["metrics"]["accuracy"] for folder in (one, two)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.05)


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(
    "options",
    [
        {"freeze": ["vision"], "cache_image_features": True, "baselines": ["image_mean"]},
        {"streaming": True, "max_steps": 6},
    ],
    ids=["cached_features", "streaming"],
)
def test_two_processes_train_the_same_model_as_one(options, scenes, tmp_path):
    train(make_recipe(recipe(scenes, tmp_path / "one", 32, **options), "test"))
    printed = launch(CPU, recipe(scenes, tmp_path / "two", 16, **options))
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert printed.count("this model") == 1


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("config", [CPU, FSDP], ids=["ddp", "fsdp"])
def test_two_processes_resume_within_an_epoch(config, scenes, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    launch(config, recipe(scenes, tmp_path / "whole", 16, **options))
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    printed = launch(config, recipe(scenes, tmp_path / "resumed", 16, **options))
    assert printed.count("'loss'") == 2
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(
    "options",
    [
        {"freeze": ["text"]},
        {"vision_conditioning_layers": "late", "vision_conditioning": "shared_projections"},
        {"token_budget": 12, "token_budget_layer": 1},
        {"token_budget": 12, "token_budget_layer": 1, "token_budget_scorer": "cls_attention"},
        {"lora_rank": 2},
    ],
    ids=["plain", "shared_projections", "token_budget", "cls_attention", "lora"],
)
def test_fsdp_trains_the_same_model_as_one_process(options, scenes, tmp_path):
    train(make_recipe(recipe(scenes, tmp_path / "one", 32, **options), "test"))
    printed = launch(FSDP, recipe(scenes, tmp_path / "two", 16, **options))
    assert_same_run(tmp_path / "one", tmp_path / "two")
    [share] = [line for line in printed.splitlines() if line.startswith("[")]
    sharded, whole = json.loads(share)
    assert sharded < 0.6 * whole
    assert QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "two").config.architectures == [
        "QCAForVisualQuestionAnswering"
    ]


@pytest.mark.slow  # starts processes
def test_fsdp_refuses_a_moving_average(scenes, tmp_path):
    message = launch(FSDP, recipe(scenes, tmp_path / "run", 16, ema_decay=0.9), error=True)
    assert "error: `ema_decay` does not work under FSDP" in message
    assert not (tmp_path / "run" / "results.json").exists()


class PrintShare(TrainerCallback):
    """How many weights this process holds, and how many there are."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        weights = [weight for weight in model.parameters() if isinstance(weight, DTensor)]
        if weights and args.process_index == 0:
            print([sum(weight.to_local().numel() for weight in weights), model.num_parameters()])


def main() -> None:
    """`qca`, on CPUs with FSDP too: accelerate turns it off there, though torch can."""
    without = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        without(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    class Trainer(training.QCATrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(PrintShare())

    torch.set_num_threads(1)
    AcceleratorState.__init__, training.QCATrainer = with_fsdp, Trainer
    qca()


if __name__ == "__main__":
    main()
