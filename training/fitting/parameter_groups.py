"""Parameter groups: the parts of a model that can be frozen or have their own learning rate."""

import re
from collections.abc import Iterable

from torch import nn

PATTERNS = {
    "conditioning": r"vision_encoder\.(conditioning|budget)\.",
    "vision": r"vision_encoder\.(?!conditioning\.|budget\.)",
    "text": r"text_encoder\.",
    "hops": r"(query_embedder|patch_embedder|hops|query_attention)\.",
    "head": r"(fusion|spatial_fusion|classifier)\.",
}
GROUPS = tuple(PATTERNS)


def group_of(parameter_name: str) -> str:
    """The group of a parameter: `vision`, `text`, `conditioning` (and token budget), `hops` (and embedders) or `head`.

    Raises:
        ValueError: the name belongs to no group.
    """
    for group, pattern in PATTERNS.items():
        if re.search(rf"(^|\.){pattern}", parameter_name):
            return group
    raise ValueError(f"Parameter {parameter_name!r} belongs to none of the groups {', '.join(GROUPS)}.")


def freeze(model: nn.Module, groups: Iterable[str]) -> None:
    """Freeze the parameters of `groups`.

    Raises:
        ValueError: a group does not exist.
    """
    check_groups(groups)
    for name, parameter in model.named_parameters():
        if group_of(name) in groups:
            parameter.requires_grad_(False)


def check_groups(groups: Iterable[str]) -> None:
    """Raise a `ValueError` that names the first of `groups` that does not exist."""
    for group in groups:
        if group not in GROUPS:
            raise ValueError(f"There is no parameter group {group!r}; the groups are {', '.join(GROUPS)}.")
