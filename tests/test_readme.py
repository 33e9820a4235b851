"""The documents keep their promises: their tables are those of the results files, their commands and files exist."""

import re
from pathlib import Path

from typer.main import get_command

from modeling_qca.hub_card.cli import app
from modeling_qca.hub_card.readme import render

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_tables_are_rendered_from_the_results_files():
    documents = [ROOT / name for name in re.findall(r"^DOCUMENTS = (.*)$", MAKEFILE, re.MULTILINE)[0].split()]
    assert len(documents) == 3
    for text in (document.read_text() for document in documents):
        assert "<!-- results:" in text and render(text, ROOT) == text
    assert render(README.replace("| majority |", "| minority |"), ROOT) == README


def test_commands_exist_with_their_options():
    commands = get_command(app).commands
    mentioned = set(re.findall(r"^qca ([a-z-]+)", README, re.MULTILINE))
    assert mentioned and mentioned <= commands.keys()
    for line in re.findall(r"^qca (?!train)([a-z-]+ .*)$", README, re.MULTILINE):
        known = {option for parameter in commands[line.split()[0]].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z_-]+", line)) <= known, line


def test_files_it_names_exist():
    for path in re.findall(r"!\[.*?\]\((\S+?)\)", README) + re.findall(r"configuration/recipes/\S+\.yaml", README):
        assert (ROOT / path).exists(), path
