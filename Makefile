VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
PATHS = modeling_qca training hub_card tests examples

.PHONY: demo test test-slow quality style

demo: $(VENV)/ready
	$(BIN)/qca demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -q

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -q -m slow

quality: $(VENV)/ready
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/mypy
	$(BIN)/python -m modeling_qca.hub_card.readme README.md --check

style: $(VENV)/ready
	$(BIN)/python -m modeling_qca.hub_card.readme README.md
	$(BIN)/ruff check --fix $(PATHS)
	$(BIN)/ruff format $(PATHS)

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch -c constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@
