"""Trainer callbacks: early stopping, training time, Ctrl-C, and progress, all of which survive a resumed run."""

import signal
import time
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files.progress import ProgressLines

STATE = "trainer_state.json"  # the last file of a checkpoint


class _Resumable(TrainerCallback, ExportableState):
    """Stores its attributes in the checkpoints, and restores them in a resumed run.

    `Trainer` can restore callbacks only together with its own control.
    """

    def state(self) -> dict[str, dict[str, Any]]:
        return {"args": {}, "attributes": self.attributes()}

    def attributes(self) -> dict[str, Any]:
        raise NotImplementedError

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        for name, value in stored["attributes"].items():
            setattr(self, name, value)


class EarlyStopping(_Resumable, EarlyStoppingCallback):
    """Stops after a number of evaluations without improvement, counted across interruptions of the run."""

    @property
    def is_over(self) -> bool:
        return self.early_stopping_patience_counter >= self.early_stopping_patience

    def attributes(self):
        return {"early_stopping_patience_counter": self.early_stopping_patience_counter}


class TrainingClock(_Resumable):
    """The `seconds` that a run has trained, summed over its interruptions."""

    def __init__(self):
        self.before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def attributes(self):
        return {"before": self.seconds}

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self._since = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.before, self._since = self.seconds, None


class SaveOnInterrupt(TrainerCallback):
    """As a context: the first Ctrl-C finishes the step, saves a checkpoint and stops; the second one stops at once."""

    def __init__(self):
        self.interrupted = False
        self._before: Any = None

    def __enter__(self):
        self._before = signal.signal(signal.SIGINT, self._ask_to_stop)

    def __exit__(self, *error):
        signal.signal(signal.SIGINT, self._before)

    def on_step_end(self, args, state, control, **kwargs):
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.interrupted and state.epoch % 1:  # in the middle of an epoch: no evaluation is due
            control.should_evaluate = False

    def _ask_to_stop(self, signal_number, frame):
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


class LinearRelevanceWeight(TrainerCallback):
    """Lowers the weight of attention supervision linearly to 0. The saved config keeps the full weight."""

    def __init__(self, weight: float):
        self.weight = weight

    def on_step_begin(self, args, state, control, model, **kwargs):
        model.config.relevance_loss_weight = self.weight * (1 - state.global_step / state.max_steps)

    def on_step_end(self, args, state, control, model, **kwargs):
        model.config.relevance_loss_weight = self.weight


class PrintProgress(TrainerCallback):
    """Prints a line with rate, remaining time and loss every ten seconds of training."""

    def __init__(self):
        self._lines: ProgressLines | None = None
        self._loss: list[str] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._lines = ProgressLines("Training", state.max_steps, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self._lines is not None and state.is_world_process_zero:
            self._lines.update(state.global_step, *self._loss)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._loss = [f"loss {float(logs['loss']):.4g}"] if "loss" in (logs or {}) else self._loss


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The latest complete checkpoint. The trainer's state is the last file that is written."""
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {int(text): folder for folder in folders if (text := folder.name.rpartition("-")[2]).isdecimal()}
    for step, folder in sorted(steps.items(), reverse=True):
        try:
            if TrainerState.load_from_json(str(folder / STATE)).global_step == step:
                return str(folder)
        except (OSError, ValueError):
            continue
    return None
