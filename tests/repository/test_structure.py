"""The shape of the code: imports point one way, folders and functions stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# a package may import those before it
ORDER = (
    *("files", "data", "metrics", "supervision", "confidence", "evaluation", "prediction"),
    *("inspection", "fitting", "experiments", "benchmark"),
)
ALLOWED = "qca_cli.serving"  # `hub_card/serving` is below `hub_card`: it imports no torch
FOLDERS = ("modeling_qca", "training", "hub_card", "scripts")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAXIMUM_MODULES, MAXIMUM_LINES, LONG = 15, 60, 40


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, also those inside functions."""
    package = path.relative_to(ROOT).parts[:-1]
    if package[0] != "modeling_qca":
        package = ("modeling_qca", *package)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{module}.{item.name}" for item in node.names)


def forbidden(path: Path) -> tuple[str, ...]:
    """Beginnings of the module names that a file must not import."""
    room, *inside = path.relative_to(ROOT).parts
    if room == "modeling_qca":
        return ("modeling_qca.training", "modeling_qca.hub_card", "qca_cli")
    if room == "training":
        above = ORDER[ORDER.index(inside[0]) + 1 :] if len(inside) > 1 else ()
        return ("modeling_qca.hub_card", "qca_cli", *(f"modeling_qca.training.{name}" for name in above))
    return () if inside[0] == "commands" or room == "scripts" else ("qca_cli",)  # but see ALLOWED


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of each function of a file, without its docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", lines


def test_every_package_of_training_has_its_place_in_the_order():
    assert {path.parent.name for path in (ROOT / "training").glob("*/__init__.py")} == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    upward = [
        name
        for name in imported_modules(path)
        for above in forbidden(path)
        if f"{name}.".startswith(f"{above}.") and not f"{name}.".startswith(f"{ALLOWED}.")
    ]
    assert not upward


def test_folders_have_at_most_fifteen_modules():
    """`modeling_qca` stays flat, because transformers copies only siblings to the Hub."""
    folders = {path.parent for path in SOURCES} - {ROOT / "modeling_qca"}
    sizes = {
        str(folder.relative_to(ROOT)): sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for folder in folders
    }
    assert {folder: size for folder, size in sizes.items() if size > MAXIMUM_MODULES} == {}


def test_functions_are_short():
    lengths = dict(measured for path in SOURCES for measured in functions(path))
    assert {name: lines for name, lines in lengths.items() if lines > MAXIMUM_LINES} == {}
    long = {name: lines for name, lines in lengths.items() if lines > LONG}
    assert len(long) <= len(lengths) / 100, long
