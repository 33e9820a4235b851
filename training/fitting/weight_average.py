"""An exponential moving average of the weights that train."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class MovingAverage:
    """
    \\(a \\leftarrow d a + (1 - d) w\\) after every step, for each trained weight \\(w\\).

    Args:
        model: whose trained weights are averaged; the average starts from them.
        decay: \\(d\\), in (0, 1).
    """

    FILE = "ema_decay.safetensors"

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.in_model = False  # whether the model holds the average, and `average` its last weights

    @torch.no_grad()
    def update(self) -> None:
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight.detach(), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average: the model is the average until the next call."""
        self.in_model = not self.in_model
        for name, weight in self.weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name] = kept

    def save(self, folder: str | os.PathLike) -> None:
        save_file(self.average, Path(folder) / self.FILE)

    def load(self, folder: str | os.PathLike) -> None:
        for name, average in load_file(Path(folder) / self.FILE).items():
            self.average[name].copy_(average)
