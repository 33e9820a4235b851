"""The device that computes: its name, and waiting for it."""

import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """The model of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its work, so that time can be taken."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
