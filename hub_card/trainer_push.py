"""`transformers.Trainer(push_to_hub=True)` whose repository works and has our card."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.dynamic_module_utils import custom_object_save

from modeling_qca.training.files.run_files import RESULTS

from .card import Release, model_card, read_results
from .publish import CARD, adapter_base, forget_folders


def keep_model_card(
    trainer: Trainer, *, license: str = "apache-2.0", language: str = "en", base_model: tuple[str, ...] = ()
) -> None:
    """Completes every later push of `trainer`; call it before `train`.

    By itself a Trainer writes a draft over the card, leaves the code out of the pushes it makes while training, and
    uploads `training_args.bin`, a pickle with paths of this machine. After this call each push carries our card (with
    numbers once `output_dir` holds a results.json) and the code, and leaves that file out. PEFT writes and keeps the
    card of an adapter.

    Raises:
        ValueError: for a trainer that does not push, that was given a token, or whose adapter has a base model that
            is not on the Hub.
    """
    if trainer.hub_model_id is None:
        raise ValueError("This Trainer does not push; pass `push_to_hub=True` in its arguments.")
    if trainer.args.hub_token is not None:
        raise ValueError("Do not pass `hub_token`, it is saved with the arguments: log in with `hf auth login`.")
    forget_folders(trainer.accelerator.unwrap_model(trainer.model).config)
    release = Release(trainer.hub_model_id, None, license, language, base_model)
    if isinstance(trainer.model, PeftModel):
        adapter = trainer.model.active_peft_config
        adapter.base_model_name_or_path = adapter_base(adapter.base_model_name_or_path, release)
        base: Any = trainer.model.get_base_model()
        base.name_or_path = base.config.name_or_path = adapter.base_model_name_or_path  # for PEFT's card
    trainer.add_callback(_CompletePush(release))
    trainer.create_model_card = lambda *_, **__: None  # type: ignore[method-assign]


class _CompletePush(TrainerCallback):
    def __init__(self, release: Release):
        self.release = release

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)  # type: ignore[arg-type]
        (folder / ".gitignore").write_text("training_args.bin\n", encoding="utf-8")
        if isinstance(model, PeftModel):
            return
        custom_object_save(model, folder)
        model.config.save_pretrained(folder)
        results = read_results(folder / RESULTS) if (folder / RESULTS).exists() else None
        model_card(model.config, results, self.release).save(folder / CARD)
