"""A fork: a checkpoint whose copy of the files was changed, loaded where the package is installed."""

from pathlib import Path

import pytest
from helpers import fresh_process
from helpers.tiny import save_tiny_model

LOAD = """
import sys
import torch
import modeling_qca
from transformers import AutoModelForVisualQuestionAnswering, pipeline

inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "pixel_values": torch.randn(1, 3, 32, 32)}
own = modeling_qca.QCAForVisualQuestionAnswering.from_pretrained("checkpoint")
fork = AutoModelForVisualQuestionAnswering.from_pretrained("fork", trust_remote_code=True)
print(type(own).__module__, type(fork).__module__.split(".")[0])
print(torch.equal(fork(**inputs).logits, 2 * own(**inputs).logits))
fork.save_pretrained("saved")
again = AutoModelForVisualQuestionAnswering.from_pretrained("saved", trust_remote_code=True)
print(torch.equal(again(**inputs).logits, fork(**inputs).logits))
"""


def replace_once(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, (file.name, old)
    file.write_text(text.replace(old, new))


@pytest.mark.slow  # starts a process
def test_a_fork_with_a_model_type_of_its_own_runs_its_own_code_beside_the_installed_package(tmp_path):
    for name in ("checkpoint", "fork"):
        save_tiny_model(tmp_path / name)
    fork = tmp_path / "fork"
    replace_once(fork / "modeling_qca.py", "self.classifier(", "self.config.logit_factor * self.classifier(")
    replace_once(fork / "configuration_qca.py", 'model_type = "qca"', 'model_type = "my_qca"')
    replace_once(
        fork / "configuration_qca.py", "    question_pooling:", "    logit_factor: float = 2.0\n    question_pooling:"
    )
    replace_once(fork / "config.json", '"model_type": "qca"', '"model_type": "my_qca"')
    quiet = "from transformers.utils import logging; logging.set_verbosity_error(); logging.disable_progress_bar()\n"
    printed = fresh_process.run(quiet + LOAD, folder=tmp_path)
    assert printed.splitlines() == ["modeling_qca.modeling_qca transformers_modules", "True", "True"]
