"""The example that fine-tunes with the plain Trainer (examples/finetune.py)."""

import runpy
import sys
from pathlib import Path

from helpers.encoders import save_encoders

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.training.supervision.scenes import write_scenes

FILE = Path(__file__).parents[2] / "examples" / "finetune.py"


def test_trains_evaluates_saves_and_answers(tmp_path, monkeypatch, capsys):
    write_scenes(tmp_path / "scenes", {"train": 12}, seed=0)
    vision, text = save_encoders(tmp_path)
    data = [str(tmp_path / "scenes"), str(tmp_path / "scenes" / "images")]
    output = tmp_path / "run"
    options = ["--vision", vision, "--text", text, "--output-dir", str(output), "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *data, *options])
    runpy.run_path(str(FILE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "accuracy: 0." in printed and "[{'answer':" in printed
    model = QCAForVisualQuestionAnswering.from_pretrained(output)
    assert model.config.num_labels > 1


def test_is_short():
    lines = [line for line in FILE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 66
