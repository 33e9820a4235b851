"""An exponential moving average of the weights that train."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """
    \\(a \\leftarrow d a + (1 - d) w\\) after every step, for each trained weight \\(w\\).

    `torch.optim.swa_utils.AveragedModel` copies a whole model. This copies the trained weights alone, and exchanges
    them with the model's.

    Args:
        model: the model whose trained weights are averaged. The average starts from them.
        decay: \\(d\\), in (0, 1).
    """

    FILE = "moving_average.safetensors"

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.in_model = False  # True: the model has the average, and `average` holds its last weights
        self._update = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        self._update([*self.average.values()], [weight.detach() for weight in self.weights.values()], None)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average: the model has the average until the next call."""
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
