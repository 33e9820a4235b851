"""The confidence of a checkpoint in its answers to rows."""

import json

import datasets
import pytest
from helpers.data_files import answered_images
from helpers.tiny import save_tiny_model

from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.evaluation.confidence import question_confidence
from modeling_qca.training.files.run_files import RUN_KEYS


@pytest.mark.parametrize("blank", [False, True])
def test_question_only_checkpoint_is_asked_about_blank_images(tmp_path, blank):
    save_tiny_model(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(dict.fromkeys(RUN_KEYS) | {"blank_images": blank}))
    data = answered_images(tmp_path / "data", [["red"]] * 3)
    table = (data / "validation.jsonl").read_text()
    for number in range(3):
        table = table.replace(f"what is {number}", "what is red")
    (data / "validation.jsonl").write_text(table)
    rows = load_rows(data, split="validation").cast_column("image", datasets.Image(decode=False))
    confidence = question_confidence(str(tmp_path / "run"), rows, tmp_path / "confidence.json")
    assert (confidence == pytest.approx([confidence[0]] * 3, abs=1e-6)) == blank
