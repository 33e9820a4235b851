"""`transformers.Trainer` for visual question answering: image order, parameter groups, frozen encoders, averaging."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from modeling_qca.evaluation_copy_qca import unwrapped_model

from ..data.sampler import ImageGroupedSampler
from .callbacks import EarlyStopping, last_complete_checkpoint
from .parameter_groups import GROUPS, check_groups, group_of
from .weight_average import MovingAverage

LOSS_PARTS = ("answer_loss", "relevance_loss")


class QCATrainer(Trainer):
    """
    Args:
        questions_per_image: up to this many questions about an image stand together in a batch.
        learning_rates: of parameter groups that differ from `args.learning_rate`.
        ema_decay: decay of an exponential moving average of the weights. Evaluation uses the average, and training
            leaves it in the model.

    Plain `Trainer` trains these models too. This one also keeps frozen encoders in evaluation mode, logs the parts of
    the loss, and stops at a loss that is not a number. Batches carry `question_ids`, which that error names.

    With several processes, each averages the parts of the loss over its own rows. If some rows have no relevance map,
    or a token budget dropped all of one, the mean over processes weighs rows differently than one process would.

    Raises:
        ValueError: a parameter group does not exist, or an argument does not fit these models.
    """

    def __init__(
        self,
        *args,
        questions_per_image: int = 8,
        learning_rates: Mapping[str, float] | None = None,
        ema_decay: float | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.questions_per_image = questions_per_image
        self.learning_rates = dict(learning_rates or {})
        self.ema_decay = ema_decay
        self._check_arguments()
        if self.is_fsdp_enabled:
            self._prepare_for_fsdp()
        self.frozen = _frozen_modules(self.model)
        self.average: MovingAverage | None = None
        self.loss_parts: dict[str, list[torch.Tensor]] = {}
        self._resumed_from: str | None = None
        self.add_callback(_TrainingStart(self))

    def _check_arguments(self):
        check_groups(self.learning_rates)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process with {self.args.n_gpu} GPUs splits a batch's questions from its images: start with "
                "`accelerate launch`, or set CUDA_VISIBLE_DEVICES=0 to use one GPU"
            )
        if self.label_smoother is not None:
            raise ValueError(
                "`label_smoothing_factor` replaces the model's loss, and with it the supervision of relevance: leave "
                "it out"
            )
        if self.ema_decay is not None and self.is_fsdp_enabled:
            raise ValueError("`ema_decay` does not work under FSDP; leave it out, or train with DDP")
        if self.ema_decay is not None and self.args.save_only_model:
            raise ValueError("`save_only_model` leaves `ema_decay` out of checkpoints: leave out one of them")

    def start_from(self, model: nn.Module) -> None:
        """
        Watch `model`, which is about to train: its frozen modules, and the average of its weights.

        With `model_init`, it is another model than the one the trainer was made with.
        """
        self.frozen = _frozen_modules(model)
        if self.ema_decay is None:
            return
        if self.average is None or self.average.model is not model:
            self.average = MovingAverage(model, self.ema_decay)
        if self._resumed_from is not None:
            self.average.load(self._resumed_from)

    def _prepare_for_fsdp(self):
        for name in self.model._ddp_params_and_buffers_to_ignore:
            self.model.get_parameter(name).requires_grad_(False)  # a checkpoint has no optimizer state of them
        plugin = self.accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or _sharded_classes(self.model)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = ImageGroupedSampler(dataset["image_id"], self.questions_per_image, seed)
        self.add_callback(_Epochs(sampler))
        return sampler

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Parameters grouped by the model's parts, and by whether weight decay applies."""
        if self.optimizer is None:
            trained: Any = model or self.model
            decayed = set(self.get_decay_parameter_names(trained))
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((group_of(name), name in decayed), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": groups[group, decays],
                        "lr": self.learning_rates.get(group, self.args.learning_rate),
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for group in GROUPS
                    for decays in (True, False)
                    if (group, decays) in groups
                ],
                **options,
            )
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> torch.Tensor:
        questions = inputs["question_ids"]
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, questions {', '.join(questions)}. "
                "Lower `learning_rate`, or look at these rows."
            )
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        inputs = {name: value for name, value in inputs.items() if name != "question_ids"}
        if model.training:
            for module in self.frozen:
                module.eval()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            for part in LOSS_PARTS:
                if outputs.get(part) is not None:
                    self.loss_parts.setdefault(part, []).append(outputs[part].detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            for part, values in self.loss_parts.items():
                logs[part] = self.accelerator.reduce(torch.stack(values).mean(), reduction="mean").item()
            self.loss_parts.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Same as `Trainer.evaluate`, except that it measures the average of the weights where there is one."""
        if self.average is None or self.average.in_model:
            return super().evaluate(*args, **kwargs)
        self.average.swap()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.average.swap()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Same as `Trainer.train`, except that `True` continues from the last checkpoint that is complete.

        Raises:
            ValueError: `args.output_dir` has no complete checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no complete checkpoint to go on from")
        self._resumed_from = resume_from_checkpoint or None
        if self.average is not None and self.average.in_model:  # left there by the training before
            self.average.swap()
        return super().train(resume_from_checkpoint=self._resumed_from, **kwargs)

    def _run_epoch(self, **kwargs):
        callbacks = self.callback_handler.callbacks
        over = self.state.global_step >= self.state.max_steps
        over |= any(callback.is_over for callback in callbacks if isinstance(callback, EarlyStopping))
        if over and kwargs["resume_from_checkpoint"] is not None:  # resumed after the last step: take no further one
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            self.average.save(output_dir)


class _Epochs(TrainerCallback):
    """Sets the sampler's epoch. accelerate does not, if several processes resume in the middle of an epoch."""

    def __init__(self, sampler: ImageGroupedSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class _TrainingStart(TrainerCallback):
    """Prepares the trainer for the model that trains, and averages its weights after every step."""

    def __init__(self, trainer: QCATrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.trainer.start_from(model)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.average is not None:
            self.trainer.average.update()

    def on_train_end(self, args, state, control, **kwargs):
        average = self.trainer.average
        if average is not None:
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                average.load(state.best_model_checkpoint)
            average.swap()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole state of a model whose weights FSDP sharded. Every process must call this."""
    state = model.state_dict()
    return {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in state.items()}


def _sharded_classes(model: Any) -> list[str]:
    """The classes whose modules FSDP shards: only their own `forward` reads their weights."""
    encoders = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    classes = {name for encoder in encoders for name in encoder._no_split_modules}
    vision = unwrapped_model(model).base_model.vision_encoder
    if vision.reads_layers:
        classes -= {type(layer).__name__ for layer in vision.backbone.get_submodule(vision.layout.layers)}
    embedding = model.get_input_embeddings()  # FSDP shards it by itself
    modules = [module for module in model.modules() if embedding not in module.modules()]
    return sorted(classes & {type(module).__name__ for module in modules})


def _frozen_modules(module: nn.Module) -> list[nn.Module]:
    """The outermost modules without a trained parameter. Without dropout, they give the same features each time."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [frozen for child in module.children() for frozen in _frozen_modules(child)]
