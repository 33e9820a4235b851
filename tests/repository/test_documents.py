"""Tests of the documents: tables, links, names, commands and Python in README.md and docs/."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import reference
from helpers.documents import ROOT, blocks, commands, prepare_desk, run_commands
from PIL import Image
from qca_cli.main import app
from qca_cli.options import RecipeCommand
from render_documents import render
from typer.main import get_command
from typer.testing import CliRunner

from modeling_qca import QCAConfig, configuration
from modeling_qca.training.fitting.recipe import ARGUMENT_FIELDS, CONFIG_FIELDS, OWN_FIELDS

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES = [document for document in DOCUMENTS if "card" not in document.parts]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
RUN = ("quickstart", "training", "explaining", "deployment", "hub", "data")  # in this order: some need a run before
SMALL = "--vision_feature_layers '[1, 2]' --hidden_size 64 --num_train_epochs 1 --bf16 false --disable_tqdm true"

each_page = pytest.mark.parametrize("name", TEXTS)


@each_page
def test_tables_are_rendered_from_the_results_files(name):
    assert render(TEXTS[name], ROOT) == TEXTS[name]


def test_tables_are_named_in_the_makefile():
    with_tables = {name for name, text in TEXTS.items() if "<!-- results:" in text}
    listed = re.search(r"^DOCUMENTS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert with_tables == set(listed)


def test_recipe_reference_is_current():
    assert reference.page() == TEXTS["docs/recipes.md"], "run `python scripts/reference.py`"


@each_page
def test_commands_exist_with_their_options(name):
    known_commands = get_command(app).commands
    for line in re.findall(r"^\s*qca ([a-z-]+.*)$", TEXTS[name].replace("\\\n", " "), re.MULTILINE):
        command = known_commands[line.split()[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        if isinstance(command, RecipeCommand):  # takes keys of a recipe too
            known |= {f"--{key}".replace("_", "-") for key in OWN_FIELDS | CONFIG_FIELDS | ARGUMENT_FIELDS}
        assert set(re.findall(r"--[a-z0-9_-]+", line)) <= known, line


@each_page
def test_links_and_files_exist(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked.read_text()), target
    for path in re.findall(
        r"`((?:configuration|docs|examples|scripts|tests|training|modeling_qca)/[\w/.-]+)`", TEXTS[name]
    ):
        assert (ROOT / path).exists(), path


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_page
def test_rows_named_in_sentences_are_in_a_results_file(name):
    rows = set()
    for path in (ROOT / "docs" / "results").glob("*.json"):
        content = json.loads(path.read_text())
        rows |= {row["name"] for row in content.get("rows", [])} | {"qca"}
        rows |= {row[0] for part in content.get("tables", []) for row in part["rows"]}
    text = " ".join(re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL).split())
    named = set()
    for listed in re.findall(r"\brows? (\*[^*]+\*(?:(?:,| and) \*[^*]+\*)*)", text):
        named |= set(re.findall(r"\*([^*]+)\*", listed))
    assert named <= rows


def test_model_page_has_every_config_field():
    table = TEXTS["docs/model.md"].split("## Config fields")[1].split("## Write your own")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    named = set(re.findall(r"`(\w+)`", " ".join(first_cells)))
    inherited = {"model_type", "keys_to_ignore_at_inference", "sub_configs_defaults"}
    assert named == QCAConfig.__annotations__.keys() - inherited


def test_make_evidence_runs_the_commands_of_the_results_pages():
    names = [f"{name}={name}" for name in ("ROOMS", "PHOTOS", "CLASSES", "DAQUAR", "VQA_RAD", "FACADES")]
    make = ["make", "-n", "-B", "-C", str(ROOT), "evidence", "BIN=bin"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    planned = subprocess.run([*make, *names], capture_output=True, text=True, check=True, env=outside).stdout
    made = [shlex.split(line) for line in re.findall(r"^bin/qca (.*)$", planned.replace("\\\n", " "), re.MULTILINE)]
    pages = ("index", "rooms", "daquar", "vqa_rad", "facades")
    told = [command for page in pages for command in commands(TEXTS[f"docs/results/{page}.md"])]
    made, told = (
        sorted([word.replace("_", "-") if word.startswith("--") else word for word in command] for command in listed)
        for listed in (made, told)
    )
    assert made == told
    lacking = subprocess.run([*make, *names[:-1]], capture_output=True, text=True, env=outside)
    assert lacking.returncode and "FACADES=... is missing" in lacking.stderr and "qca results" not in lacking.stdout
    tables = {Path(command[1]).stem for command in made if command[0] == "results"}
    assert tables == {path.stem for path in Path(configuration.__file__).parent.glob("recipes/results/*.yaml")}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return prepare_desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.slow
def test_commands_and_python_of_the_pages_run(desk, monkeypatch):
    pytest.importorskip("transformers.exporters", reason="qca export needs transformers 5.23")
    monkeypatch.chdir(desk)
    ran = set()
    for page in RUN:
        text = TEXTS[f"docs/{page}.md"]
        if page in ("deployment", "hub"):
            ran |= run_commands(text, SMALL)
        names: dict = {}
        for block in blocks(text, "python"):
            if "BitsAndBytes" not in block:
                exec(block, names)
        if page not in ("deployment", "hub", "data"):
            ran |= run_commands(text, SMALL)
    assert ran == {"ask", "train", "evaluate", "explain", "faithfulness", "export", "push"}
    trained, measured = (
        json.loads(Path(run, "results.json").read_text()) for run in ("runs/rooms", "runs/evaluate/rooms")
    )
    assert measured["data"]["fingerprint"] == trained["data"]["fingerprint"]
    assert measured["metrics"] == pytest.approx(trained["metrics"])
    assert Path("report.html").stat().st_size > 10_000
    maps = np.load("my_rooms/train_relevance.npz")
    assert maps["mask"].shape == (2, 16, 16)
    assert maps["mask"].max() == 1


def test_example_of_the_model_page_builds_a_model(desk, monkeypatch):
    monkeypatch.chdir(desk)
    names: dict = {}
    exec(blocks(TEXTS["docs/model.md"], "python")[0], names)
    assert names["model"].config.vision_feature_layers == [1, 2]


@pytest.mark.slow
def test_commands_of_the_generated_views_train_every_row(desk, tmp_path, monkeypatch):
    """From photos and label maps to the table, as docs/results/rooms.md says, on scenes with a bed and a lamp."""
    monkeypatch.chdir(tmp_path)
    for folder in ("configuration", "facebook", "sentence-transformers"):
        shutil.copytree(desk / folder, folder)
    for folder in ("PHOTOS", "ROOMS/labels"):
        Path(folder).mkdir(parents=True)
    places = np.random.default_rng(0)
    for number in range(60):
        labels = np.full((64, 64), 3, np.uint8)
        for label, left in zip((1, 2), places.permutation([0, 36]), strict=True):
            top = places.integers(0, 40)
            labels[top : top + 24, left : left + 16 + 8 * label] = label
        Image.fromarray(labels).save(f"ROOMS/labels/image{number}.png")
        Image.fromarray(80 * labels).convert("RGB").save(f"PHOTOS/image{number}.jpg")
    Path("CLASSES").write_text("bed\nlamp\nwall\n")
    table = Path("configuration/recipes/results/views.yaml")
    rows, counts = re.subn(r"(max_steps|faithfulness_questions): \d+", r"\1: 2", table.read_text())
    assert counts == 5
    table.write_text(rows)
    section = (ROOT / "docs" / "results" / "rooms.md").read_text().split("## Questions generated")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ")
    made = "qca make-questions PHOTOS ROOMS/labels CLASSES rooms"
    small = "--seeds 0 --output-dir runs --vision_feature_layers '[1, 2]' --hidden_size 64 --bf16 false --max_steps 2"
    for line in [made, *block.splitlines()]:
        command = shlex.split(line)[1:] + (shlex.split(small) if line.startswith("qca results") else [])
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (line, result.output, result.exception)
        if line == made:
            for name in ("train.csv", "train_relevance.npz"):
                shutil.copy(f"rooms/{name}", "ROOMS")
    results = json.loads(Path("runs/views/results.json").read_text())
    assert [row["seeds"] for row in results["rows"]] == [[0]] * 4
    assert all(row["faithfulness"] for row in results["rows"])
    assert "| end to end, from the bilinear scorer | 1 |" in Path("runs/views/results.md").read_text()
    accuracy = results["rows"][2]["accuracy"]["all"]["mean"]
    card = Path("runs/views/end_to_end_from_the_bilinear_scorer/README.md").read_text()
    assert f"| accuracy | {accuracy:.3f} | " in card  # one seed has no spread
