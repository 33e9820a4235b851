"""`transformers.Trainer` with what question answering about images adds: order, groups, and care for the run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ..data.sampler import ImageGroupedSampler
from .callbacks import EarlyStopping, last_complete_checkpoint
from .parameter_groups import GROUPS, check_groups, group_of
from .weight_average import MovingAverage

LOSS_PARTS = ("answer_loss", "relevance_loss")


class QCATrainer(Trainer):
    """
    Args:
        questions_per_image: up to this many questions of an image stand together in a batch.
        learning_rates: of parameter groups that differ from `args.learning_rate`.
        ema_decay: decay of an exponential moving average of the weights, which is then what evaluation sees and
            what training leaves in the model.

    Plain `Trainer` trains these models too; this one also keeps frozen encoders in evaluation mode, logs the parts of
    the loss, and stops at a loss that is not a number. Batches carry `question_ids` to say where that happened.

    Of several processes each averages the parts of the loss over its own rows: where some rows have no map, or a token
    budget dropped all of one, the mean over processes weighs rows a little otherwise than one process would.

    Raises:
        ValueError: for a parameter group that does not exist, or where one process would share several GPUs.
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
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process with {self.args.n_gpu} GPUs splits a batch's questions from its images: start with "
                "`accelerate launch`, or show it one GPU by CUDA_VISIBLE_DEVICES=0"
            )
        if self.label_smoother is not None:
            raise ValueError(
                "`label_smoothing_factor` puts a loss of its own in the place of the model's, which supervises "
                "relevance too: leave it out"
            )
        self.questions_per_image = questions_per_image
        self.learning_rates = dict(learning_rates or {})
        check_groups(self.learning_rates)
        if self.is_fsdp_enabled:
            if ema_decay is not None:
                raise ValueError("`ema_decay` does not work under FSDP; leave it out, or train with DDP")
            self._prepare_for_fsdp()
        self.frozen = _frozen_modules(self.model)
        self.loss_parts: dict[str, list[torch.Tensor]] = {}
        self.ema_decay = None
        if ema_decay is not None:
            if self.args.save_only_model:
                raise ValueError("`save_only_model` leaves `ema_decay` out of checkpoints: leave out one of them")
            self.ema_decay = MovingAverage(self.model, ema_decay)
            self.add_callback(_MovingAverageSteps(self.ema_decay))

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
        if self.ema_decay is None or self.ema_decay.in_model:
            return super().evaluate(*args, **kwargs)
        self.ema_decay.swap()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.ema_decay.swap()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As of any trainer; `True` goes on from the last checkpoint of `args.output_dir` that is complete.

        Raises:
            ValueError: where there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no complete checkpoint to go on from")
        if self.ema_decay is not None:
            if self.ema_decay.in_model:  # of a training before
                self.ema_decay.swap()
            if resume_from_checkpoint:
                self.ema_decay.load(resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _run_epoch(self, **kwargs):
        callbacks = self.callback_handler.callbacks
        over = self.state.global_step >= self.state.max_steps
        over |= any(callback.is_over for callback in callbacks if isinstance(callback, EarlyStopping))
        if over and kwargs["resume_from_checkpoint"] is not None:  # from behind the last step: take no other
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.ema_decay is not None and self.args.should_save:
            self.ema_decay.save(output_dir)


class _Epochs(TrainerCallback):
    """Tells the sampler its epoch: accelerate does not where several processes resume in the middle of one."""

    def __init__(self, sampler: ImageGroupedSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class _MovingAverageSteps(TrainerCallback):
    def __init__(self, ema_decay: MovingAverage):
        self.ema_decay = ema_decay

    def on_step_end(self, args, state, control, **kwargs):
        self.ema_decay.update()

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.ema_decay.load(state.best_model_checkpoint)
        self.ema_decay.swap()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model whose weights FSDP has sharded; every process has to ask for it."""
    state = model.state_dict()
    return {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in state.items()}


def _sharded_classes(model: Any) -> list[str]:
    """Classes FSDP shards each module of: those whose weights nothing but their own `forward` reads."""
    encoders = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    classes = {name for encoder in encoders for name in encoder._no_split_modules} - {"TokenBudget"}
    config = model.config
    if config.vision_conditioning == "shared_projections" or config.token_budget_scorer == "cls_attention":
        vision = model.base_model.vision_encoder
        classes -= {type(layer).__name__ for layer in vision.backbone.get_submodule(vision.layout.layers)}
    embedding = model.get_input_embeddings()  # FSDP shards it by itself
    modules = [module for module in model.modules() if embedding not in module.modules()]
    return sorted(classes & {type(module).__name__ for module in modules})


def _frozen_modules(module: nn.Module) -> list[nn.Module]:
    """Modules none of whose parameters train: a frozen encoder, without dropout, gives the same features each time."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [frozen for child in module.children() for frozen in _frozen_modules(child)]
