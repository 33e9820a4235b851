"""
Checkpoints and configs of release 0.1.

`fixtures/release_0_1` was made with release 0.1 (commit 43b158b), seed 0: a ViT and a BERT of 2 layers, width 16, 2
heads, `intermediate_size` 16 and `initializer_range` 0.2 (ViT: images of 16 pixels, patches of 8; BERT: 20 tokens, 8
positions), composed by `QCAConfig.from_vision_text_configs(vision, text, id2label={0: "no", 1: "yes", 2: "red"},
initializer_range=0.2)`. Every other field has the default of 0.1. `save_pretrained` wrote the model, without its code
files. `logits.json` has the logits of [`inputs`].
"""

import json
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering
from modeling_qca.legacy_qca import DEFAULTS_OF_0_1

RELEASE_0_1 = Path(__file__).parent / "fixtures" / "release_0_1"


def inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16).sin(),
    }


def stored() -> dict:
    return json.loads((RELEASE_0_1 / "config.json").read_text())


@pytest.mark.parametrize("omitted", [False, True], ids=["all_fields", "defaults_omitted"])
def test_checkpoint_of_0_1_gives_equal_logits(omitted, tmp_path):
    config = stored()
    assert "qca_version" not in config
    assert config.items() >= DEFAULTS_OF_0_1.items()
    if omitted:
        config = {name: value for name, value in config.items() if name not in DEFAULTS_OF_0_1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((RELEASE_0_1 / "model.safetensors").read_bytes())
    model, info = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    expected = torch.tensor(json.loads((RELEASE_0_1 / "logits.json").read_text()))
    torch.testing.assert_close(model(**inputs()).logits, expected, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path / "again")
    again = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**inputs()).logits, model(**inputs()).logits)
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["qca_version"] == "0.2"
    assert not {"attention_dropout", "answer_fusion"} & saved.keys()


@pytest.mark.parametrize(
    "field",
    [{"query_tokens": "all"}, {"patch_update": "gated"}, {"answer_fusion": "product"}, {"attention_dropout": 0.1}],
)
def test_removed_variant_names_the_release_that_reads_it(field, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(stored() | field))
    with pytest.raises(ValueError, match=rf'{next(iter(field))}.*pip install "modeling-qca<0\.2"'):
        QCAForVisualQuestionAnswering.from_pretrained(tmp_path)


def test_asked_is_read_as_initial_with_one_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging.get_logger("modeling_qca.legacy_qca"), "warning_once", warnings.append)
    config = QCAConfig.from_dict(stored() | {"answer_query": "asked"})
    assert config.answer_query == QCAConfig(answer_query="asked").answer_query == "initial"
    assert len(set(warnings)) == 1 and "`answer_query: initial`" in warnings[0]
    assert QCAConfig.from_dict(stored(), answer_query="asked").answer_query == "initial"
