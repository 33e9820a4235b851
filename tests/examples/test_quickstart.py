"""The notebook examples/quickstart.ipynb runs from its first cell to its last."""

from pathlib import Path

import pytest
from helpers.tiny import save_tiny_model, tiny_image

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbclient")


def test_notebook_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_notebook_runs_on_a_tiny_checkpoint(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    save_tiny_model(tmp_path / "checkpoint")
    tiny_image().save(tmp_path / "photo.png")
    monkeypatch.setenv("QCA_CHECKPOINT", str(tmp_path / "checkpoint"))
    monkeypatch.setenv("QCA_IMAGE", str(tmp_path / "photo.png"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(NOTEBOOK.parent))
    printed = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in printed)
    assert not [output for output in printed if output.output_type == "error"]
