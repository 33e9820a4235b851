"""Read untrusted YAML: plain values only, of bounded size and depth, without aliases."""

import math
from typing import Any

import yaml

MAXIMUM_CHARACTERS = 50_000  # PyYAML reads some 50,000 a second
MAXIMUM_DEPTH = 20
MAXIMUM_INTEGER = 2**63


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, by which a few lines expand to billions, and deep nesting, which exhausts the stack."""

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
    The value of the YAML document `text`.

    Raises:
        ValueError: the text is not YAML, is too long or deep, or has an alias, a tag for an object, or a number that
            is not finite or needs more than 64 bits. The message begins with `name`.
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
        # PyYAML does not wrap the errors of its constructors, such as the ValueError for the date 2020-13-45.
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
        raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, int) and abs(value) >= MAXIMUM_INTEGER:
        raise ValueError("a number has more than 64 bits")
