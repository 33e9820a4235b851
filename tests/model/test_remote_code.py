"""A saved checkpoint carries its own code: it loads where the package cannot be imported."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import fresh_process
from helpers.tiny import save_tiny_model, tiny_batch, tiny_image, tiny_processor
from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_qca

PACKAGE = Path(modeling_qca.__file__).parent
REMOTE_FILES = sorted(PACKAGE.glob("*_qca.py"))
ALLOWED = {"huggingface_hub", "numpy", "PIL", "torch", "transformers"}  # what transformers itself needs, and PIL
EVERYTHING = {
    "query_tokens": "attended",
    "relevance_scorer": "additive",
    "patch_update": "broadcast",
    "vision_conditioning_layers": [1],
    "token_budget": 8,
    "token_budget_layer": 2,
}

ALL_AUTO_CLASSES = """
    import sys
    import torch
    from PIL import Image
    from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor

    folder, again = sys.argv[1:]
    trust = {"trust_remote_code": True}
    model, info = AutoModelForVisualQuestionAnswering.from_pretrained(folder, output_loading_info=True, **trust)
    body = AutoModel.from_pretrained(folder, **trust)
    config = AutoConfig.from_pretrained(folder, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)
    assert not any(info.values()), info
    batch, expected = torch.load("batch.pt"), torch.load("expected.pt")
    saved = expected["weights"]
    assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())
    assert all(torch.equal(weight, saved["qca." + name]) for name, weight in body.state_dict().items())
    assert config.to_dict().keys() == model.config.to_dict().keys()
    for part in (model, body, config, processor):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    with torch.no_grad():
        outputs = model(**batch)
        features = body.get_image_features(batch.pop("pixel_values"))
        cached = model(**batch, image_features=features.last_hidden_state)
    for found in (outputs, cached):
        assert (found.logits - expected["logits"]).abs().max() < 1e-5
        assert (found.relevance - expected["relevance"]).abs().max() < 1e-5
    inputs = processor(images=Image.open("image.png"), text=["what is red ?", "no"])
    assert all(torch.equal(values, expected["inputs"][name]) for name, values in inputs.items())
    model.save_pretrained(again)
    processor.save_pretrained(again)
    print("modeling_qca" in sys.modules and sys.modules["modeling_qca"] is not None)
"""

OF_THE_SECOND_GENERATION = """
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    model = AutoModelForVisualQuestionAnswering.from_pretrained(again, **trust)
    assert type(model).__module__.startswith("transformers_modules.again."), type(model)
    AutoProcessor.from_pretrained(again, **trust)
    print((model(**torch.load("batch.pt")).logits - expected["logits"]).abs().max().item() < 1e-5)
    try:
        AutoModel.from_pretrained(again, trust_remote_code=False)
    except ValueError as error:
        print("trust_remote_code" in str(error))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint in `model`, and what it answers."""
    folder = tmp_path_factory.mktemp("remote")
    model, batch = save_tiny_model(folder / "model", **EVERYTHING), tiny_batch()
    tiny_image(size=(50, 30)).save(folder / "image.png")
    with torch.no_grad():
        outputs = model(**batch)
    inputs = dict(tiny_processor()(images=tiny_image(size=(50, 30)), text=["what is red ?", "no"]))
    torch.save(batch, folder / "batch.pt")
    expected = {"logits": outputs.logits, "relevance": outputs.relevance, "inputs": inputs}
    torch.save(expected | {"weights": model.state_dict()}, folder / "expected.pt")
    return folder


def test_auto_classes_load_without_the_package_and_save_a_copy_that_loads(folder):
    program = ALL_AUTO_CLASSES + OF_THE_SECOND_GENERATION
    printed = fresh_process.run(program, "model", "again", folder=folder, without_package=True)
    assert printed == "False\nTrue\nTrue\n"
    code = {path.name: path.read_text() for path in (folder / "model").glob("*.py")}
    assert {path.name: path.read_text() for path in (folder / "again").glob("*.py")} == code


@pytest.mark.parametrize("trust", [False, True])
def test_installed_package_is_preferred_to_remote_code(folder, trust):
    for auto in (AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor):
        loaded = auto.from_pretrained(folder / "model", trust_remote_code=trust)
        assert type(loaded).__module__.startswith("modeling_qca."), auto


def test_checkpoint_carries_exactly_the_needed_code(folder):
    saved = {path.name for path in (folder / "model").glob("*.py")}
    needed = {name for path in REMOTE_FILES for name in imported_siblings(path)}
    entries = {"configuration_qca.py", "modeling_qca.py", "processing_qca.py"}
    assert saved == {f"{name}.py" for name in needed} | entries
    assert {path.name for path in REMOTE_FILES} == saved
    for name in saved:
        assert (folder / "model" / name).read_bytes() == (PACKAGE / name).read_bytes()


def imported_siblings(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level}


@pytest.mark.parametrize("path", REMOTE_FILES, ids=lambda path: path.name)
def test_files_import_one_another_only_as_from_sibling_import_name(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, ast.unparse(node)
            assert re.fullmatch(r"\w+", node.module or ""), f"{ast.unparse(node)}: name one sibling"
            assert (PACKAGE / f"{node.module}.py").exists(), ast.unparse(node)
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert "modeling_qca" not in {module.split(".")[0] for module in modules}, ast.unparse(node)


@pytest.mark.parametrize("path", REMOTE_FILES, ids=lambda path: path.name)
def test_transformers_finds_the_imports_that_python_finds(path):
    """transformers finds imports by a regular expression, which also sees the text of docstrings."""
    found = re.findall(r"^\s*(?:import\s+\.(\S+)\s*$|from\s+\.(\S+)\s+import)", path.read_text(), flags=re.MULTILINE)
    assert {name for pair in found for name in pair if name} == imported_siblings(path)
    for sibling in get_relative_import_files(str(path)):
        assert Path(sibling).exists(), sibling


@pytest.mark.parametrize("path", REMOTE_FILES, ids=lambda path: path.name)
def test_files_import_only_the_allowed_packages(path):
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(str(node.module).split(".")[0])
    assert modules - set(sys.stdlib_module_names) <= ALLOWED
