"""A callback for `transformers.Trainer(push_to_hub=True)`: every push has the model card and the code."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.dynamic_module_utils import custom_object_save

from modeling_qca.training.files.run_files import OVERLAY, RESULTS

from .adapter_folder import adapter_base
from .card import CARD, Release, model_card
from .private_data import copy_pixels
from .results_file import read_results
from .upload_folder import remove_local_names

# `training_args.bin` is a pickle with local paths. Pictures and reports show photos of the data.
NOT_PUSHED = ("training_args.bin", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.html")


class ModelCardCallback(TrainerCallback):
    """
    Add our model card and code to every push of a plain `Trainer`:

        trainer.add_callback(ModelCardCallback(trainer, license="cc-by-4.0"))

    The callback takes the trainer, because `Trainer.push_to_hub` would write its own card over ours. The card has
    numbers as soon as `output_dir` holds a results.json. Pictures, HTML pages and `training_args.bin` are not pushed.
    An adapter keeps PEFT's card.

    Args:
        trainer: with `push_to_hub=True`.
        license, language, base_model: see `Release`.
        with_example_picture: push overlay.png, an answered question of the validation rows with its photo.

    Raises:
        ValueError: The trainer does not push or was given a token, or the base model of its adapter is not on the Hub.
    """

    release: Release
    with_example_picture: bool

    def __init__(
        self,
        trainer: Trainer,
        *,
        license: str = "apache-2.0",
        language: str = "en",
        base_model: tuple[str, ...] = (),
        with_example_picture: bool = False,
    ):
        if trainer.hub_model_id is None:
            raise ValueError("This Trainer does not push; pass `push_to_hub=True` in its arguments.")
        if trainer.args.hub_token is not None:
            raise ValueError("Do not pass `hub_token`, it is saved with the arguments: log in with `hf auth login`.")
        self.release = Release(trainer.hub_model_id, None, license, language, base_model)
        self.with_example_picture = with_example_picture
        remove_local_names(trainer.accelerator.unwrap_model(trainer.model).config)
        if isinstance(trainer.model, PeftModel):
            _name_base(trainer.model, self.release)
        trainer.create_model_card = lambda *_, **__: None  # type: ignore[method-assign]

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)  # type: ignore[arg-type]
        picture = self._example_picture(folder)
        _ignore_private_files(folder / ".gitignore", picture)
        if isinstance(model, PeftModel):
            return
        custom_object_save(model, folder)
        model.config.save_pretrained(folder)
        results = read_results(folder / RESULTS) if (folder / RESULTS).exists() else None
        model_card(model.config, results, self.release, picture).save(folder / CARD)

    def _example_picture(self, folder: Path) -> str | None:
        if not self.with_example_picture or not (folder / OVERLAY).exists():
            return None
        copy_pixels(folder / OVERLAY, folder / OVERLAY)
        return OVERLAY


def _name_base(model: PeftModel, release: Release) -> None:
    """Replace a local folder by the base model's Hub id wherever PEFT reads it."""
    adapter = model.active_peft_config
    adapter.base_model_name_or_path = adapter_base(adapter.base_model_name_or_path, release)
    base: Any = model.get_base_model()
    base.name_or_path = base.config.name_or_path = adapter.base_model_name_or_path


def _ignore_private_files(gitignore: Path, picture: str | None) -> None:
    """Add the files that are not pushed to `.gitignore`, which the Hub client reads."""
    lines = gitignore.read_text(encoding="utf-8").splitlines() if gitignore.exists() else []
    missing = [line for line in NOT_PUSHED if line not in lines]
    allowed = [] if picture is None or f"!{picture}" in lines else [f"!{picture}"]
    gitignore.write_text("\n".join([*lines, *missing, *allowed]) + "\n", encoding="utf-8")
