"""The name that release 0.1 had for `ModelCardCallback`."""

import warnings
from typing import Any

from transformers import Trainer

from .model_card_callback import ModelCardCallback


def keep_card(trainer: Trainer, **options: Any) -> None:
    """Add a `ModelCardCallback` to `trainer`. Deprecated."""
    warnings.warn(
        "`keep_card(trainer)` is now `trainer.add_callback(ModelCardCallback(trainer))`, "
        "of `modeling_qca.hub_card.model_card_callback`.",
        FutureWarning,
        stacklevel=2,
    )
    trainer.add_callback(ModelCardCallback(trainer, **options))
