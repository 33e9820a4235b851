"""The notebook examples/quickstart.ipynb runs from its first cell to its last."""

import os
from pathlib import Path

import pytest
from helpers.tiny import tiny_model, tiny_processor
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_notebook_is_committed_without_outputs():
    nbformat = pytest.importorskip("nbformat", reason="nbclient is in the dev extra")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
