"""A recipe: one flat YAML file with everything that a training run needs."""

import difflib
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from reprlib import repr as short
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from huggingface_hub.dataclasses import strict, type_validator
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import TrainingArguments

from modeling_qca import QCAConfig
from modeling_qca.legacy_qca import REMOVED_FIELDS, upgrade_fields

from ..data.answers import AnswerRule
from ..files.safe_yaml import parse_yaml
from .parameter_groups import check_groups

logger = logging.getLogger(__name__)
SECRETS = ("hub_token", "push_to_hub_token")
# set by the collator's needs, and by callbacks that store their own state
OUR_ARGUMENTS = ("remove_unused_columns", "label_names", "restore_callback_states_from_checkpoint")
IGNORED_ARGUMENTS = ("do_train", "do_eval", "do_predict", "resume_from_checkpoint")  # only scripts read them
LIMITS = ("minimum_count", "top_k")  # of a vocabulary
BASELINES = ("question_only", "image_mean")
ARGUMENT_DEFAULTS = {
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 128,
    "warmup_steps": 0.05,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.05,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 20,
    "report_to": "none",
    "metric_for_best_model": "accuracy",
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "use_cpu": not torch.accelerator.is_available(),
}
STREAMING_DEFAULTS = {
    "eval_strategy": "steps",
    "eval_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "accelerator_config": {"dispatch_batches": False},  # a batch holds fewer images than questions: it is not sliced
}


@strict
@dataclass
class Recipe:
    """
    What to train, on which data, and how.

    A file holds these keys beside the fields of [`QCAConfig`] (here `config`) and of `transformers.TrainingArguments`
    (here `arguments`).

    Args:
        data: Folder with `train.csv` or another table of docs/data.md, a file, or the id of a data set of the Hub.
        validation_data: Data of the validation split, if it is not in `data`.
        format: Format of the data: `table`, `hub`, `vqa_v2`, `vqa_hat`, `gqa`, `daquar` and others of docs/data.md.
        data_options: Options of the format, such as `{images: my_photos}`.
        validation_options: Options of the format of `validation_data`.
        validation_ratio: Share of the training rows to cut off as validation split. Without it the data has one.
        group_by: Column whose groups stay in one split: `image_id`, or `image_id // 12` for runs of twelve numbers.
            Training rows in a group of the validation split are left out.
        data_seed: Seed of the cut into training and validation rows. All other randomness has `seed`.
        on_bad_image: What an unreadable image does: `raise` stops, `skip` leaves its rows out with a warning.
        streaming: Read training rows as they are needed. Needs `max_steps`; `questions_per_image` has no effect.
        model: Preset to train from scratch (`qca-tiny`, `qca-small`, `qca-base`) or checkpoint to start from.
        vision_encoder: Pretrained vision encoder, a Hub id or a folder. Takes the place of `model`.
        text_encoder: Pretrained text encoder, a Hub id or a folder. Takes the place of `model`.
        image_size: Height and width in pixels, if they differ from the encoder's.
        vocabulary: Which answers the model knows: `{}` all, `{minimum_count: 9}` those of at least nine rows,
            `{top_k: 1000}` the most frequent. `null` keeps the answers in the config of `model`.
        keep_answers: Keep the answers of the checkpoint `model`, and add those of `vocabulary`.
        answer_rule: How an answer scores: `consensus` by how many people gave it, `set` 1 for each answer of the row.
        normalize_answers: Compare answers in the form of the official VQA evaluation.
        abstain_answer: Answer that means "no answer", such as `unanswerable` of VizWiz.
        attention_supervision: Which hops are trained towards the relevance maps of the rows.
        object_words: Names of objects in the questions, in the singular. Training rows without relevance maps get the
            regions of the objects that their question names, learned from all questions and answers, and from the
            maps that rows have.
        relevance_loss_schedule: Weight of that loss over training: `constant`, or `linear` down to 0.
        freeze: Parameter groups that do not train: `vision`, `text`, `conditioning`, `hops`, `head`.
        learning_rates: Learning rates of parameter groups, where they differ from `learning_rate`.
        lora_rank: Rank of low-rank adapters that train in place of the encoders' weights.
        questions_per_image: Largest number of questions about one image in a batch.
        cache_image_features: Compute the features of a frozen vision encoder once and store them.
        ema_decay: Decay of an exponential moving average of the weights, which is evaluated and saved.
        early_stopping_patience: Number of evaluations without improvement after which training stops.
        log_maps: Number of validation pictures that go with their relevance maps to the tracker (`report_to`) at each
            evaluation. A tracker may be a public page, so the default is 0.
        metrics: Metrics beside accuracy: `vqa_accuracy`, `wups`.
        baselines: Models to train and report beside this one: `question_only` sees blank images, `image_mean` has no
            hops.
    """

    data: str
    validation_data: str | None = None
    format: str = "table"
    data_options: dict[str, Any] = field(default_factory=dict)
    validation_options: dict[str, Any] = field(default_factory=dict)
    validation_ratio: float | None = None
    group_by: str | None = None
    data_seed: int = 0
    on_bad_image: Literal["raise", "skip"] = "raise"
    streaming: bool = False
    model: str | None = None
    vision_encoder: str | None = None
    text_encoder: str | None = None
    image_size: list[int] | None = None
    vocabulary: dict[str, int] | None = field(default_factory=dict)
    keep_answers: bool = False
    answer_rule: AnswerRule = "consensus"
    normalize_answers: bool = True
    abstain_answer: str | None = None
    attention_supervision: Literal["none", "last_hop", "every_hop"] = "none"
    object_words: list[str] = field(default_factory=list)
    relevance_loss_schedule: Literal["constant", "linear"] = "constant"
    freeze: list[str] = field(default_factory=list)
    learning_rates: dict[str, float] = field(default_factory=dict)
    lora_rank: int | None = None
    questions_per_image: int = 8
    cache_image_features: bool = False
    ema_decay: float | None = None
    early_stopping_patience: int | None = None
    log_maps: int = 0
    metrics: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def validate_names(self):
        check_groups(self.freeze)
        check_groups(self.learning_rates)
        for name in self.baselines:
            if name not in BASELINES:
                raise ValueError(f"there is no baseline {name!r}; the baselines are {', '.join(BASELINES)}")
        if unknown := (self.vocabulary or {}).keys() - LIMITS:
            raise ValueError(f"`vocabulary` has no `{min(unknown)}`; it may have {' or '.join(LIMITS)}")

    def validate_model(self):
        encoders = self.vision_encoder is not None and self.text_encoder is not None
        if (self.model is None) != encoders or (self.vision_encoder is None) != (self.text_encoder is None):
            raise ValueError("a recipe names either `model`, or both `vision_encoder` and `text_encoder`")
        if self.vocabulary is None and self.model is None:
            raise ValueError("`vocabulary: null` keeps the answers of `model`, and there is none")
        if self.keep_answers and self.model is None:
            raise ValueError("`keep_answers` keeps those of a checkpoint, and there is no `model`")
        if self.cache_image_features and ("vision" not in self.freeze or self.streaming):
            raise ValueError("`cache_image_features` needs `vision` in `freeze`, and no `streaming`")
        if self.lora_rank is not None and {"vision", "text"} <= set(self.freeze):
            raise ValueError("`lora_rank` trains adapters in the encoders, and `freeze` has `vision` and `text`")
        if self.config.get("zoom_factor", 1) > 1 and "reference_model" in self.baselines:
            raise ValueError("the baseline `reference_model` has no zoom: leave it out, or `zoom_factor`")
        supervision = self.attention_supervision
        if supervision != "none" and self.config.get("num_attention_layers") == 0:
            raise ValueError(
                f"`attention_supervision: {supervision}` is for hops, and `num_attention_layers` is 0: use `none`"
            )

    def validate_object_words(self):
        if not self.object_words:
            return
        if self.attention_supervision == "none":
            raise ValueError("`object_words` makes relevance maps: set `attention_supervision: every_hop`")
        if not self.cache_image_features:
            raise ValueError("`object_words` needs `cache_image_features: true`, and `vision` in `freeze`")
        if self.config.get("zoom_factor", 1) > 1:
            raise ValueError("`object_words` learns from whole pictures: leave it out, or `zoom_factor`")

    def validate_data(self):
        if self.validation_options and self.validation_data is None:
            raise ValueError("`validation_options` are of `validation_data`, and there is none")
        if not self.streaming:
            return
        if self.arguments.get("max_steps", -1) <= 0:
            raise ValueError("`streaming` needs `max_steps`: the length of an epoch of a stream is not known")
        for name in ("eval_strategy", "save_strategy"):
            if self.arguments.get(name) == "epoch":
                raise ValueError(f"`{name}` is `epoch`, but a stream has no epochs: use `steps` or `no`")

    def validate_trainer(self):
        if self.arguments.get("push_to_hub"):
            raise ValueError("`push_to_hub` is not for a recipe: push the trained checkpoint with `qca push`")
        if ignored := sorted(self.arguments.keys() & set(IGNORED_ARGUMENTS)):
            raise ValueError(
                f"`{ignored[0]}` is not for a recipe: it trains, evaluates, and continues from the last checkpoint in "
                "its `output_dir`"
            )
        if self.arguments.get("label_smoothing_factor"):
            raise ValueError(
                "`label_smoothing_factor` replaces the model's loss, and with it the supervision of relevance: leave "
                "it out"
            )
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                raise ValueError(f"`early_stopping_patience` is 1 or more, got {self.early_stopping_patience}")
            if self.arguments.get("eval_strategy") == "no":
                raise ValueError("`early_stopping_patience` counts evaluations, and `eval_strategy` is `no`")
        if self.log_maps < 0:
            raise ValueError(f"`log_maps` is a number of pictures, got {self.log_maps}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is between 0 and 1, got {self.ema_decay}")

    @property
    def output_dir(self) -> Path:
        return Path(self.arguments["output_dir"])

    def training_arguments(self, **overrides: Any) -> TrainingArguments:
        """The trainer's arguments.

        Raises:
            ValueError: `transformers` refuses them.
        """
        defaults = ARGUMENT_DEFAULTS | (STREAMING_DEFAULTS if self.streaming else {})
        return TrainingArguments(
            **{**defaults, **self.arguments, **overrides}, remove_unused_columns=False, label_names=["labels"]
        )


# Keys and values of release 0.1. Those of the model's config are in `legacy_qca`.
RENAMED_KEYS = {"relevance": "attention_supervision", "moving_average": "ema_decay"}
RENAMED_VALUES = {"attention_supervision": {"final": "last_hop"}}
OWN_FIELDS = {item.name for item in fields(Recipe)} - {"config", "arguments"}
OWN_TYPES, ARGUMENT_TYPES = get_type_hints(Recipe), get_type_hints(TrainingArguments)
CONFIG_FIELDS = set(QCAConfig.__annotations__) - {"vision_config", "text_config", "sub_configs_defaults", "model_type"}
CONFIG_FIELDS |= {"problem_type"}
ARGUMENT_FIELDS = {item.name for item in fields(TrainingArguments) if item.init} - OWN_FIELDS


def load_recipe(path: str | os.PathLike, overrides: Mapping[str, str] | None = None) -> Recipe:
    """
    Read a recipe. With `extends: other.yaml`, a path relative to the recipe, it adds or replaces keys of another one.

    Args:
        path: the YAML file.
        overrides: values of single keys as YAML text, which replace those of the file.

    Raises:
        ValueError: a key is unknown (the message has the nearest one), has a value of a wrong type, or is a secret, or
            `data` is missing. The message names the file and the key.
    """
    values = read_recipe(Path(path))
    chosen = {key: parse_yaml(text, f"--{key}") for key, text in (overrides or {}).items()}
    values |= renamed_keys(chosen, "the command line")
    values.setdefault("output_dir", f"runs/{Path(path).stem}")
    return make_recipe(values, str(path))


def make_recipe(values: Mapping[str, Any], name: str) -> Recipe:
    """The recipe with these flat `values`; errors as in [`load_recipe`] begin with `name`."""
    own: dict[str, Any] = {}
    config: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for key, value in renamed_keys(values, name).items():
        if key in SECRETS:
            raise ValueError(
                f"{name}: `{key}` must not be in a recipe, it would be pushed with the run: set HF_TOKEN or log in"
            )
        if key in OWN_FIELDS:
            own[key] = _typed(value, OWN_TYPES[key], f"{name}: `{key}`")
        elif key in CONFIG_FIELDS | REMOVED_FIELDS.keys():
            config[key] = value
        elif key in ARGUMENT_FIELDS and key not in OUR_ARGUMENTS:
            no = value is False and key.endswith("_strategy")  # YAML 1.1 reads `no` as false
            arguments[key] = "no" if no else _typed(value, ARGUMENT_TYPES[key], f"{name}: `{key}`")
        else:
            known = sorted((OWN_FIELDS | CONFIG_FIELDS | ARGUMENT_FIELDS) - set(OUR_ARGUMENTS))
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: there is no key `{key}`; the nearest is `{nearest}`")
    if "data" not in own:
        raise ValueError(f"{name}: `data` is missing: the folder, file or Hub data set to train on")
    try:
        return Recipe(**own, config=upgrade_fields(config), arguments=arguments)
    except StrictDataclassClassValidationError as error:
        raise ValueError(f"{name}: {error.__cause__}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def renamed_keys(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`values` by the keys and values of today, with one warning for each old one."""
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        today = RENAMED_KEYS.get(key, key)
        if today != key:
            logger.warning("%s: `%s` is now called `%s`", name, key, today)
            if today in values:
                raise ValueError(f"{name}: `{key}` is the old name of `{today}`, and both are given: remove `{key}`")
        values_today = RENAMED_VALUES.get(today, {})
        if isinstance(value, str) and value in values_today:
            logger.warning("%s: `%s: %s` is now `%s: %s`", name, key, value, today, values_today[value])
            value = values_today[value]
        renamed[today] = value
    return renamed


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, and those of the file it extends.

    Raises:
        ValueError: there is no such file, or it is not a mapping.
    """
    return _read(path, ())


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: it is no text, or its name is no path
        raise ValueError(f"{path}: no such recipe ({error})") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values")
    parent = values.pop("extends", None)
    if parent is None:
        return renamed_keys(values, str(path))
    if not isinstance(parent, str):
        raise ValueError(f"{path}: `extends` is {short(parent)}, not the path of a recipe")
    children = (*children, path.resolve())
    if (path.parent / parent).resolve() in children:
        raise ValueError(f"{path}: `extends` comes back to {parent}")
    return {**_read(path.parent / parent, children), **renamed_keys(values, str(path))}


def _typed(value: Any, expected: Any, name: str) -> Any:
    """`value`, its numbers converted, if it is of type `expected`.

    Raises:
        ValueError: it is of another type; the message begins with `name`.
    """
    converted = _with_numbers(value, expected)
    try:
        type_validator(name, converted, expected)
    except (TypeError, ValueError) as error:
        if get_origin(expected) is Literal:
            raise ValueError(f"{name} is {short(value)}, not one of {', '.join(get_args(expected))}") from error
        kind = expected.__name__ if isinstance(expected, type) else str(expected).replace("typing.", "")
        raise ValueError(f"{name} is {short(value)}, not of type {kind}") from error
    return converted


def _with_numbers(value: Any, expected: Any) -> Any:
    """`value` with whole numbers as the `int` or `float` of `expected`, and `1e-4`, text in YAML 1.1, as a number."""
    kinds = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    inner = {get_origin(kind): get_args(kind)[-1] for kind in kinds if get_origin(kind) in (list, dict)}
    if isinstance(value, list) and list in inner:
        return [_with_numbers(item, inner[list]) for item in value]
    if isinstance(value, dict) and dict in inner:
        return {key: _with_numbers(item, inner[dict]) for key, item in value.items()}
    if isinstance(value, str) and str not in kinds and (int in kinds or float in kinds):
        with suppress(ValueError):
            value = float(value)
    if type(value) in (int, float) and math.isfinite(value):
        if float in kinds:
            return float(value)
        if int in kinds and value == int(value):
            return int(value)
    return value
