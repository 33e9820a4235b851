"""Tests run offline, on one thread, and without progress bars."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
if "QCA_TEST_CUDA" not in os.environ:  # `make test-cuda` sets it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.utils import logging

collect_ignore = (
    ["hub_card/test_export.py"] if Version(transformers.__version__) < Version("5.23") else []
)  # no ExportedModel

torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
