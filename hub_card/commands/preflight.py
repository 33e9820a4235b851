"""Checks that need no torch: they find a wrong key or a missing file in a fraction of a second.

The functions that run a command check everything again and more. These checks only answer earlier.
"""

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

MAXIMUM_CHARACTERS = 200_000  # of a YAML file that is read here
MAXIMUM_DEPTH = 20  # of recipes that extend one another
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff", ".webp"}
CHECKPOINT_FILES = ("config.json", "adapter_config.json")
REMOTE = ("http://", "https://", "data:", "hf://")
# source files whose annotated class fields are keys of a recipe
FIELDS = {
    "Recipe": ("modeling_qca", "training/fitting/recipe.py"),
    "QCAConfig": ("modeling_qca", "configuration_qca.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}
# source files whose dictionary of this name has keys of release 0.1, which are still read
OLD_KEYS = {
    "RENAMED_KEYS": ("modeling_qca", "training/fitting/recipe.py"),
    "REMOVED_FIELDS": ("modeling_qca", "legacy_qca.py"),
}


def check_recipes(paths: Iterable[str], overrides: Mapping[str, str]) -> None:
    """
    Check recipes before anything heavy is imported.

    Raises:
        ValueError: for a missing file, an unknown key (with the nearest known one) or missing data.
    """
    known = known_keys()
    for path in paths:
        values = _read_recipe(Path(path))
        if values is None:
            continue
        values |= {key: _parse(text) for key, text in overrides.items()}
        _check_keys(values, known, path)
        if values.get("data") is None:
            raise ValueError(f"{path}: `data` is missing: the folder, file or Hub data set to train on")
        if _exists(f"{values.get('output_dir') or Path('runs') / Path(path).stem}/results.json"):
            continue  # the run may be finished; then the command only shows its results
        _check_recipe_data(values)
        for key in ("vision_encoder", "text_encoder", "model"):
            if isinstance(values.get(key), str) and "/" in values[key] and _is_missing(values[key]):
                raise ValueError(f"{path}: `{key}` is {values[key]}, and there is no such folder")


def check_table(path: str, overrides: Mapping[str, str]) -> None:
    """
    Check a table of rows before anything heavy is imported.

    Raises:
        ValueError: as [`check_recipes`], for the keys that all rows share.
    """
    table = _read_recipe(Path(path)) or {}
    recipe, common = table.get("recipe"), table.get("common")
    shared = _read_recipe(Path(path).parent / recipe) if isinstance(recipe, str) else None
    if shared is None or not isinstance(common, dict):
        return
    shared |= common
    shared |= {key: _parse(text) for key, text in overrides.items()}
    _check_keys(shared, known_keys(), path)
    _check_recipe_data(shared)


def check_data(data: str, options: str = "{}") -> None:
    """Raise a ValueError if `data` is neither a file nor a folder, and `options` do not name the Hub."""
    parsed = _parse(options)
    if isinstance(parsed, dict) and parsed.get("format") == "hub":
        return
    if not _exists(data):
        raise ValueError(f"{data}: no such folder or file. For a data set of the Hub, pass the option `format: hub`.")


def check_data_keys(data: str, overrides: Mapping[str, str]) -> None:
    """Raise a ValueError if there is no such data, or `overrides` has an unknown key of a recipe."""
    values = {"data": data, **{key: _parse(text) for key, text in overrides.items()}}
    _check_keys(values, known_keys(), data)
    _check_recipe_data(values)


def check_checkpoint(checkpoint: str) -> None:
    """Raise a ValueError if `checkpoint` can be neither a folder with a checkpoint nor a Hub id."""
    folder = Path(checkpoint)
    if not _exists(checkpoint):
        if "/" not in checkpoint or _is_missing(checkpoint):
            raise ValueError(f"{checkpoint}: no such checkpoint. Pass its folder, or a Hub id owner/name.")
        return
    if not any((folder / name).exists() for name in CHECKPOINT_FILES):
        inside = sorted(file.parent for name in CHECKPOINT_FILES for file in folder.glob(f"*/{name}"))
        hint = f" Did you mean {inside[0]}?" if inside else ""
        raise ValueError(f"{checkpoint}: no checkpoint there; it has no {' or '.join(CHECKPOINT_FILES)}.{hint}")


def check_abstention(threshold: float | None, coverage: float | None) -> None:
    """Raise a ValueError if both are given, or one is out of range."""
    if threshold is not None and coverage is not None:
        raise ValueError("--threshold and --coverage are given: choose one of them")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold is a probability between 0 and 1, got {threshold}")
    if coverage is not None and not 0 < coverage <= 1:
        raise ValueError(f"--coverage is a share of the questions above 0 and at most 1, got {coverage}")


def check_image(image: str) -> None:
    """Raise a ValueError if `image` is neither an existing file nor a URL."""
    if image.startswith(REMOTE):
        return
    if not _exists(image):
        raise ValueError(f"{image}: no such image. Pass an image file or a URL.")
    if Path(image).is_dir():
        raise ValueError(f"{image} is a folder. Pass one image file or a URL.")


def check_questions(questions: list[str]) -> None:
    """Raise a ValueError if a question is the name of a file, an option, or part of a question without quotes."""
    for question in questions:
        is_name = not any(letter.isspace() for letter in question)
        if question.startswith(REMOTE) or _exists(question) or (is_name and _suffix(question) in IMAGE_SUFFIXES):
            raise ValueError(
                f"{question} is a file, not a question. The command takes one image, then its questions: "
                'CHECKPOINT IMAGE "QUESTION" "QUESTION". Run it once for each image.'
            )
        if question.startswith("-"):
            raise ValueError(f"{question} is an option, not a question. Remove it, or see the command's --help.")
    if len(questions) > 1 and all(question.isascii() and " " not in question for question in questions):
        raise ValueError(f'each question needs quotes: "{" ".join(questions)}"')


def known_keys() -> set[str]:
    """The keys of a recipe, read from the source files that define them."""
    keys = {"problem_type"}
    for name, (package, file) in FIELDS.items():
        for node in _parsed(package, file).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                keys |= set(_fields(node))
    for name, (package, file) in OLD_KEYS.items():
        for node in _parsed(package, file).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                keys |= set(ast.literal_eval(node.value))
    return keys - {"config", "arguments"}


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Names of the annotated fields of a dataclass that its constructor takes."""
    for item in node.body:
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and "init=False" not in ast.unparse(item)
        ):
            yield item.target.id


def _parsed(package: str, file: str) -> ast.Module:
    """A source file of a package that is not imported; `training` lies beside `modeling_qca` in a checkout."""
    folder = Path(find_spec(package).origin).parent
    source = folder / file if (folder / file).exists() else folder.parent / file
    return ast.parse(source.read_text(encoding="utf-8"))


def _check_keys(values: Mapping[str, Any], known: set[str], name: str) -> None:
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: there is no key `{key}`; the nearest is `{nearest}`")


def _check_recipe_data(values: Mapping[str, Any]) -> None:
    options = values.get("data_options")
    named = values.get("format") or (options.get("format") if isinstance(options, dict) else None)
    if isinstance(values.get("data"), str) and named != "hub":
        check_data(values["data"])
    if isinstance(values.get("validation_data"), str):
        check_data(values["validation_data"], yaml.safe_dump(values.get("validation_options")))


def _read_recipe(path: Path, depth: int = 0) -> dict[str, Any] | None:
    """The keys of a recipe and of those it extends; None if the full check must say what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no such recipe ({error})") from error
    values = _parse(text)
    if not isinstance(values, dict) or depth > MAXIMUM_DEPTH:
        return None
    parent = values.pop("extends", None)
    if parent is None:
        return values
    inherited = _read_recipe(path.parent / parent, depth + 1) if isinstance(parent, str) else None
    return None if inherited is None else inherited | values


def _parse(text: str) -> Any:
    """The value of YAML text; None if the full check must say what is wrong."""
    try:
        return yaml.safe_load(text) if len(text) <= MAXIMUM_CHARACTERS else None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _is_missing(name: str) -> bool:
    """Whether `name` means a local folder that does not exist, and cannot be a Hub id `owner/name`."""
    path = Path(name)
    local = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) != 2 or path.parent.is_dir()
    return local and not _exists(name)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower() if len(name) < 256 else ""
