"""Low-rank adapters (Hu et al. 2022) in the encoders. All other modules train in full."""

import re
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from modeling_qca import QCAForVisualQuestionAnswering, QCAModel

from ..evaluation.checkpoint import quiet_peft

PROJECTION = r"(?:[qkv]_proj|query|key|value|[qkv]_lin|[qkv]|qkv|Wqkv)"  # names of attention inputs in transformers


def lora_config(model: QCAForVisualQuestionAnswering | QCAModel, **kwargs: Any) -> LoraConfig:
    """
    The config of an adapter for pretrained encoders and newly initialized hops and head.

    Args:
        model: the model to adapt: `get_peft_model(model, lora_config(model))`. `Trainer` trains the result.
        kwargs: fields of `peft.LoraConfig` such as `r=16`. They replace the ones set here.

    Returns:
        A config that adapts the query, key and value projections of both encoders, and trains and saves whole the
        query and patch embedders, the hops, the head, and the conditioning and token budget where the model has them.

    Raises:
        ValueError: the attention projections of an encoder are not recognized. Pass `target_modules`.
    """
    head = [name for name, _ in model.named_children() if name in ("fusion", "spatial_fusion", "classifier")]
    body: QCAModel = model.qca if isinstance(model, QCAForVisualQuestionAnswering) else model
    if "target_modules" not in kwargs:
        kwargs["target_modules"] = _attention_projections(body)
    kwargs.setdefault("modules_to_save", _new_modules(body) + head)
    return LoraConfig(**kwargs)


def adapt(model: QCAForVisualQuestionAnswering, rank: int | None) -> Any:
    """`model` with low-rank adapters of this `rank`; the model itself without a rank."""
    if rank is None:
        return model
    with quiet_peft():
        return get_peft_model(model, lora_config(model, r=rank))


def _attention_projections(body: QCAModel) -> str:
    encoders: list[Any] = [body.vision_encoder.backbone, body.text_encoder]
    for encoder in encoders:
        linear = [part for part, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        if not any(re.search(rf"(?:^|\.){PROJECTION}$", part) for part in linear):
            raise ValueError(
                f"No attention projections found in the encoder {encoder.config.model_type}: pass `target_modules`, "
                "the names or a pattern of its linear layers."
            )
    return rf"(?:.*\.)?(?:vision_encoder\.backbone|text_encoder)\.(?:.*\.)?{PROJECTION}"


def _new_modules(body: QCAModel) -> list[str]:
    """Names, as PEFT matches them, of the modules that hold every parameter of `body` outside the encoders."""
    names = [name for name, _ in body.named_children() if name not in ("vision_encoder", "text_encoder")]
    names += [f"vision_encoder.conditioning.{layer}" for layer in body.vision_encoder.conditioning]
    if body.vision_encoder.budget is not None and list(body.vision_encoder.budget.parameters()):
        names.append("vision_encoder.budget")
    return names
