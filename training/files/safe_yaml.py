"""YAML that nobody vouches for: plain values alone, of bounded size and depth, without references to one another."""

import math
from typing import Any

import yaml

MAXIMUM_CHARACTERS = 50_000  # PyYAML reads some 50,000 a second
MAXIMUM_DEPTH = 20
MAXIMUM_INTEGER = 2**63


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, which let a few lines stand for billions, and deep nesting, which exhausts the stack."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases such as *{self.peek_event().anchor} are not allowed here")
        self.depth += 1
        if self.depth > MAXIMUM_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAXIMUM_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str, name: str) -> Any:
    """
    The value `text` stands for.

    Raises:
        ValueError: beginning with `name`, for what is no YAML, is too long or deep, has aliases or tags that make
            objects, or a number that is not finite or has no 64 bits.
    """
    if len(text) > MAXIMUM_CHARACTERS:
        raise ValueError(f"{name}: has {len(text):,} characters; at most {MAXIMUM_CHARACTERS:,} are read")
    try:
        value = yaml.load(text, _PlainLoader)
        _check_numbers(value)
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        # PyYAML lets what its constructors raise pass, such as a ValueError for the date 2020-13-45.
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())[:300]}") from error
    return value


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            _check_numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    elif isinstance(value, int) and abs(value) >= MAXIMUM_INTEGER:
        raise ValueError("a number has more than 64 bits")
