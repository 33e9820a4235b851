"""Write `docs/recipes.md`: every key of a recipe with its type, default and meaning, read from the docstrings.

python scripts/reference.py           # write the page
python scripts/reference.py --check   # fail if the page is not current
"""

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from modeling_qca import QCAConfig
from modeling_qca.training.files.markdown import markdown_table
from modeling_qca.training.fitting import recipe as recipes
from modeling_qca.training.fitting.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
INTRODUCTION = """# Recipe reference

A recipe is a flat YAML file. It mixes three groups of keys: those of the [recipe](#recipe-keys), of the
[model config](#model-config) and of [`TrainingArguments`](#training-arguments). `--key value` on the command line
replaces a key; hyphens may take the place of underscores (`--group-by`). `extends: other.yaml` starts from another
recipe. An unknown key is an error that names the nearest one. [Training](training.md) lists
the recipes of the package.

```yaml
extends: rooms.yaml
data: my_rooms
relevance_scorer: bilinear
num_train_epochs: 10
```

`python scripts/reference.py` writes this page from the docstrings.
"""
ARGUMENTS = """Every field of
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments) is
a key too. These have other defaults here:
"""
REFUSED = "These are refused, because a recipe sets them itself or has another way: {}."
ENTRY = re.compile(r"^(?P<names>\w+(?:, \w+)*)(?: \(.*?\))?:(?P<text>.*(?:\n(?:[ \t]+.*)?)*)", re.MULTILINE)


def meanings(documented: type) -> dict[str, str]:
    """The meaning of each name in the `Args:` section of a docstring, on one line."""
    section = inspect.cleandoc(documented.__doc__).split("Args:\n", 1)[1]
    section = textwrap.dedent(re.split(r"\n(?=\S)", section)[0])
    return {
        name: " ".join(entry["text"].split())
        for entry in ENTRY.finditer(section)
        for name in entry["names"].split(", ")
    }


def type_name(expected: Any) -> str:
    """A short name of a type for a reader of YAML: `Literal["a", "b"] | None` becomes "`a` or `b`"."""
    if get_origin(expected) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(expected))
    if get_origin(expected) in (Union, UnionType):
        return " or ".join(type_name(kind) for kind in get_args(expected) if kind is not NoneType)
    return inspect.formatannotation(expected).removeprefix("typing.").replace("typing.", "")


def recipe_table() -> str:
    """Keys of [`Recipe`]."""
    described, types = meanings(Recipe), get_type_hints(Recipe)
    rows = []
    for field in dataclasses.fields(Recipe):
        if field.name in ("config", "arguments"):
            continue
        rows.append([f"`{field.name}`", type_name(types[field.name]), _default(field), described[field.name]])
    return markdown_table(["key", "type", "default", "meaning"], rows)


def config_table() -> str:
    """Fields of [`QCAConfig`] that a recipe may set."""
    described = meanings(QCAConfig)
    fields = {field.name: field for field in dataclasses.fields(QCAConfig)}
    rows = [
        [f"`{name}`", type_name(QCAConfig.__annotations__[name]), _default(fields[name]), described[name]]
        for name in QCAConfig.__annotations__
        if name in recipes.CONFIG_FIELDS and name in described
    ]
    return markdown_table(["key", "type", "default", "meaning"], rows)


def arguments_table() -> str:
    """Training arguments whose default differs from that of transformers."""
    originals = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    of_the_machine = ("dataloader_pin_memory", "use_cpu")
    rows = [
        [f"`{name}`", f"`{value}`", f"`{_plain(originals[name])}`", f"`{recipes.STREAMING_DEFAULTS.get(name, value)}`"]
        for name, value in recipes.ARGUMENT_DEFAULTS.items()
        if name not in of_the_machine
    ]
    return markdown_table(["key", "default", "in transformers", "with `streaming`"], rows)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return "" if field.default is None else f"`{field.default}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    return "required"


def page() -> str:
    """The whole page."""
    refused = ", ".join(f"`{name}`" for name in (*recipes.OUR_ARGUMENTS, *recipes.IGNORED_ARGUMENTS, "push_to_hub"))
    parts = [
        INTRODUCTION,
        f"## Recipe keys\n\n{recipe_table()}\n",
        f"## Model config\n\n{config_table()}\n",
        f"## Training arguments\n\n{ARGUMENTS}\n{arguments_table()}\n\n{REFUSED.format(refused)}\n",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is not current")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit(f"{PAGE} is not current: run `python scripts/reference.py`")


if __name__ == "__main__":
    main()
