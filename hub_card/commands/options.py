"""How options are spelled, and the options that several commands have in common."""

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

logger = logging.getLogger(__name__)

RENAMED_OPTIONS = {"--options": "--data-options"}

Checkpoint = Annotated[str, typer.Argument(help="A folder or a Hub id.")]
Image = Annotated[str, typer.Argument(help="A file or a URL.")]
Data = Annotated[str, typer.Argument(help="A folder, a file or a Hub data set, as in a recipe.")]
DataOptions = Annotated[
    str, typer.Option(help="Options of the data as YAML, as in a recipe: `{format: vqa_v2, images: photos}`.")
]
Split = Annotated[str, typer.Option(help="Split of the data.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of questions in a batch.")]
Threshold = Annotated[
    float | None, typer.Option(help="Give no answer whose probability is below this number, from 0 to 1.")
]
Coverage = Annotated[
    float | None, typer.Option(help="Answer this share of the questions, the surest; needs `qca calibrate` before.")
]
Method = Annotated[str, typer.Option(help="relevance, rollout or gradient.")]


def hyphenate(name: str) -> str:
    """The spelling of options and commands: `dry_run` and `dry-run` are the same."""
    return name.replace("_", "-")


class Command(TyperCommand):
    """A command that still reads options under their names of release 0.1, with one warning."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, [self._current_name(argument, known) for argument in args])

    def _current_name(self, argument: str, known: set[str]) -> str:
        name, equals, value = argument.partition("=")
        new = RENAMED_OPTIONS.get(name)
        if new not in known:
            return argument
        logger.warning("%s is now called %s", name, new)
        return f"{new}{equals}{value}"


class RecipeCommand(Command):
    """A command that also takes every key of a recipe as an option."""

    allow_extra_args = True
    ignore_unknown_options = True


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split `a.yaml b.yaml --key value --other-key=value` into paths and values of recipe keys.

    Raises:
        ValueError: if an option has no value.
    """
    paths, overrides = [], {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            paths.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        value = value if equals else next(rest, "")
        if not value:
            raise ValueError(f"{argument}: a value is missing; write `--{key} VALUE`")
        overrides[key.replace("-", "_")] = value
    return paths, overrides


def one_recipe(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """The one path among `arguments` and the values of recipe keys.

    Raises:
        ValueError: if there is no path or more than one.
    """
    paths, overrides = split_overrides(arguments)
    if len(paths) != 1:
        raise ValueError(f"this command takes one file, got {len(paths)}: {', '.join(paths) or 'none'}")
    return paths[0], overrides


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The mapping that an option gives as YAML.

    Raises:
        ValueError: if `text` is no YAML mapping.
    """
    from modeling_qca.training.files.safe_yaml import parse_yaml

    value = parse_yaml(text, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} takes a YAML mapping such as {{format: vqa_v2}}, got {text!r}")
    return value
