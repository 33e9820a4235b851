"""A loop of one's own with accelerate's FSDP, on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, merge_fsdp_weights, save_fsdp_model
from helpers.tiny import tiny_batch, tiny_model
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

TESTS = Path(__file__).parents[2]
LEARNING_RATE = 0.1


def questions() -> dict[str, torch.Tensor]:
    """Four questions, each about a picture of its own."""
    batch = tiny_batch(4, 4)
    del batch["image_index"]
    return {**batch, "labels": torch.tensor([0, 1, 2, 3])}


@pytest.mark.slow  # starts processes
def test_a_sharded_step_equals_one_process_and_its_checkpoint_loads_into_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    command.append(str(tmp_path / "state"))
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert not done.returncode, done.stdout + done.stderr
    model = tiny_model().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    model(**questions()).loss.backward()
    optimizer.step()
    merge_fsdp_weights(str(tmp_path / "state" / "pytorch_model_fsdp_0"), str(tmp_path / "merged"))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-5, msg=name)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer", "ViTLayer"],
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # Accelerate turns it off on CPUs, though torch can.
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    model = tiny_model().eval()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    mine = slice(2 * accelerator.process_index, 2 * accelerator.process_index + 2)
    accelerator.backward(model(**{name: tensor[mine] for name, tensor in questions().items()}).loss)
    optimizer.step()
    save_fsdp_model(plugin, accelerator, model, folder)


if __name__ == "__main__":
    main(sys.argv[1])
