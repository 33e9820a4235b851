"""Every text encoder of the compatibility table is right about padding, batches, words and lengths, or refused."""

import pytest
from compatibility_checks import TEXT_CHECKS, text_model
from compatibility_encoders import text_encoders

from modeling_qca.layouts_qca import REFUSED_TEXT

ENCODERS = dict(text_encoders())
ENCODER_DECODERS = ("bart",)
REFUSED = [*REFUSED_TEXT, *ENCODER_DECODERS]
QUICK = ("bert", "clip_text_model", "modernbert", "mra", "qwen3", "roberta", "t5", "umt5")
ACCEPTED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS if name not in REFUSED
]


@pytest.mark.parametrize("name", ACCEPTED)
def test_text_encoder_is_right(name):
    model = text_model(ENCODERS[name]())
    assert {check: fault(model) for check, fault in TEXT_CHECKS.items()} == dict.fromkeys(TEXT_CHECKS)


@pytest.mark.parametrize("name", REFUSED)
def test_text_encoder_is_refused_with_an_alternative(name):
    with pytest.raises(ValueError, match=rf"`?{name}`?.* text encoder|text encoder \({name}\)") as refused:
        text_model(ENCODERS[name]())
    assert "bert" in str(refused.value).lower()
