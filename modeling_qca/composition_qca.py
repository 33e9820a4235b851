"""Two pretrained encoders, opened for `from_vision_text_pretrained`: configs, weights, pooling, dtype and devices."""

import json
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.accelerate import (
    accelerate_dispatch,
    check_and_set_device_map,
    get_balanced_memory,
    infer_auto_device_map,
)
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")
POOLING = "1_Pooling/config.json"  # in the folder of a sentence-transformers model
MAY_BE_MISSING = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
POOLING_MODES = {  # as older and newer releases of sentence-transformers write them
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last",
}


@dataclass
class EncoderSource:
    """
    A folder or a repository of the Hub that holds a pretrained encoder.

    Args:
        name_or_path: Hub id or folder.
        config: of the encoder, or of the tower of a two-tower checkpoint.
        dtype: that the weights are stored in, `None` if its config does not say.
        hub: options of every download, such as `revision`.
    """

    name_or_path: str
    config: PreTrainedConfig
    dtype: torch.dtype | None
    hub: dict[str, Any]

    @classmethod
    def open(cls, name_or_path: str, tower: str, trust_remote_code: bool | None = None, **hub: Any) -> "EncoderSource":
        """
        Args:
            tower: `"vision_config"` or `"text_config"`.
            trust_remote_code: run the code that the repository carries, if transformers has no model of its type.
        """
        fields, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
        foreign = "auto_map" in fields and fields.get("model_type") not in CONFIG_MAPPING
        config = AutoConfig.from_pretrained(
            name_or_path, trust_remote_code=trust_remote_code if foreign else False, **hub
        )
        if foreign:
            _register(config, name_or_path, hub)
        stored = config.dtype
        if tower in config.sub_configs:
            config = getattr(config, tower)
        return cls(name_or_path, config, config.dtype or stored, hub)

    @property
    def question_pooling(self) -> str | None:
        """What a sentence-transformers folder pools its tokens by; `None` for other folders, and with a warning for a
        mode that `question_pooling` does not have."""
        file = cached_file(self.name_or_path, POOLING, **MAY_BE_MISSING, **self.hub)
        if file is None:
            return None
        with open(file, encoding="utf-8") as opened:
            stored = json.load(opened)
        chosen = [name for name, value in stored.items() if name.startswith("pooling_mode") and value is not False]
        mode = POOLING_MODES.get(stored.get("pooling_mode", chosen[0])) if len(chosen) == 1 else None
        if mode is None:
            logger.warning(
                f"{self.name_or_path} pools its tokens in a way that `question_pooling` does not have ({POOLING}). "
                "Its default is used; pass one to choose."
            )
        return mode

    def load_into(self, encoder: PreTrainedModel) -> list[str]:
        """Load the weights of `encoder`; returns the names of those that are missing."""
        loaded: Any = type(encoder).from_pretrained(
            self.name_or_path, config=self.config, dtype=encoder.dtype, output_loading_info=True, **self.hub
        )
        pretrained, info = loaded
        encoder.load_state_dict(pretrained.state_dict())
        return sorted(info["missing_keys"])


def common_dtype(sources: list[EncoderSource]) -> torch.dtype:
    """The dtype that holds the weights of every encoder, as `dtype="auto"` asks for."""
    return reduce(torch.promote_types, [source.dtype or torch.float32 for source in sources])


def place(model: PreTrainedModel, device_map: Any):
    """
    Move `model` to devices.

    Args:
        device_map: a device, `"auto"` and the other names that `from_pretrained` takes, or the device of each module.
    """
    devices = check_and_set_device_map(device_map)
    if isinstance(devices, str):
        whole = set(model._no_split_modules)
        memory = get_balanced_memory(model, no_split_module_classes=whole, low_zero=devices == "balanced_low_0")
        devices = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    if len(set(devices.values())) == 1:
        model.to(next(iter(devices.values())))
    else:
        accelerate_dispatch(model, None, devices, None, None, False)


def _register(config: PreTrainedConfig, name_or_path: str, hub: dict[str, Any]):
    """Make the classes of a repository's own code known to the Auto classes of this process."""
    model_class = get_class_from_dynamic_module(config.auto_map["AutoModel"], name_or_path, **hub)
    AutoConfig.register(config.model_type, type(config), exist_ok=True)
    AutoModel.register(type(config), model_class, exist_ok=True)


__all__ = ["HUB_OPTIONS", "EncoderSource", "common_dtype", "place"]
