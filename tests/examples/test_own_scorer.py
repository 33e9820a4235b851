"""The steps of "Write your own scorer" in docs/model.md, from the file to a fresh process that loads it."""

import re
import textwrap
from pathlib import Path

import pytest
from helpers import fresh_process
from helpers.encoders import save_encoders

PAGE = (Path(__file__).parents[2] / "docs" / "model.md").read_text().split("## Write your own scorer")[1]
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^ +```python\n(.*?)^ +```", PAGE, re.DOTALL | re.MULTILINE)]
INPUTS = """
import torch
torch.manual_seed(0)
inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "pixel_values": torch.randn(1, 3, *size)}
"""
COMPOSED = (
    """
size = [model.config.vision_config.image_size] * 2
model.eval()
"""
    + INPUTS
    + """
torch.save(model(**inputs).logits, "logits.pt")
print(type(model.qca.hops.layers[0].attention.scorer).__name__)
"""
)
LOADED = (
    """
size = [model.config.vision_config.image_size] * 2
"""
    + INPUTS
    + """
scorer = model.qca.hops.layers[0].attention.scorer
print(type(scorer).__name__, type(scorer).__module__.startswith("transformers_modules."))
print(torch.allclose(model(**inputs).logits, torch.load("logits.pt"), rtol=0, atol=1e-6))
"""
)
BESIDE = """
import modeling_qca
from transformers import AutoModelForVisualQuestionAnswering
for trust in (True, False):
    try:
        AutoModelForVisualQuestionAnswering.from_pretrained("cosine-qca", trust_remote_code=trust)
    except ValueError as error:
        print(error)
import sys
sys.path.insert(0, ".")
from cosine import CosineQCA
print(type(CosineQCA.from_pretrained("cosine-qca").qca.hops.layers[0].attention.scorer).__name__)
"""


@pytest.mark.slow  # starts processes
def test_own_scorer_saves_its_code_and_loads_in_a_fresh_process(tmp_path):
    scorer, composing, loading = BLOCKS
    (tmp_path / "cosine.py").write_text(scorer)
    save_encoders(tmp_path)
    quiet = (
        "import sys; sys.path.insert(0, '.')\nfrom transformers.utils import logging; logging.set_verbosity_error()\n"
    )
    assert fresh_process.run(quiet + composing + COMPOSED, folder=tmp_path) == "CosineScorer\n"
    (tmp_path / "cosine.py").rename(tmp_path / "elsewhere.py")
    quiet = quiet.split("\n")[1] + "\n"
    assert fresh_process.run(quiet + loading + LOADED, folder=tmp_path) == "CosineScorer True\nTrue\n"
    (tmp_path / "elsewhere.py").rename(tmp_path / "cosine.py")
    first, second, name = fresh_process.run(quiet + BESIDE, folder=tmp_path).splitlines()
    assert first == second and "`cosine.CosineQCA`" in first and "`from_pretrained`" in first
    assert name == "CosineScorer"
