"""Two pretrained encoders become one model, and keep their weights and outputs."""

import pytest
import torch
from helpers.tiny import (
    ANSWERS,
    VISION_CONFIGS,
    same_weights,
    tiny_batch,
    tiny_config,
    tiny_model,
    tiny_text_config,
    tiny_vision_config,
)
from transformers import (
    AutoModel,
    BartConfig,
    BeitConfig,
    BeitForMaskedImageModeling,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    ViTModel,
)

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAModel


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_composed_encoders_keep_their_weights_and_outputs(vision, tmp_path):
    torch.manual_seed(1)
    encoder, reader = AutoModel.from_config(tiny_vision_config(vision)), BertModel(tiny_text_config())
    encoder.half().save_pretrained(tmp_path / "vision")  # encoders may be stored in float16
    reader.save_pretrained(tmp_path / "text")
    model = QCAForVisualQuestionAnswering.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), num_attention_heads=2, id2label=ANSWERS
    ).eval()
    assert model.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert same_weights(model.qca.vision_encoder.backbone, encoder.float())
    assert same_weights(model.qca.text_encoder, reader)
    pixels = torch.randn(2, 3, 32, 32)
    features = model.get_image_features(pixels).last_hidden_state
    stored = AutoModel.from_pretrained(tmp_path / "vision", dtype=torch.float32)  # `half` rounds rotary frequencies
    assert torch.equal(features, stored(pixels).last_hidden_state)
    assert model.qca.vision_encoder.shape.prefix == features.shape[1] - 16
    model.save_pretrained(tmp_path / "model")
    assert same_weights(model, QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "model"))


@pytest.mark.parametrize(("config", "model"), [(CLIPConfig, CLIPModel), (SiglipConfig, SiglipModel)])
def test_composes_the_towers_of_a_two_tower_checkpoint(config, model, tmp_path):
    text = {"vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    both = model(config(text_config=text | shape, vision_config=shape | {"image_size": 32, "patch_size": 8}))
    both.save_pretrained(tmp_path)
    composed = QCAForVisualQuestionAnswering.from_vision_text_pretrained(
        str(tmp_path), str(tmp_path), num_labels=3, question_pooling="last", attn_implementation="eager"
    )
    assert same_weights(composed.qca.vision_encoder.backbone, both.vision_model)
    assert same_weights(composed.qca.text_encoder, both.text_model)
    assert composed.config._attn_implementation == "eager"
    assert composed(
        **{name: value for name, value in tiny_batch().items() if name != "token_type_ids"}
    ).logits.shape == (3, 3)


def test_decoder_with_is_causal_false_may_pool_by_cls():
    config = tiny_config(question_pooling="cls")
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config.text_config = Qwen2Config(vocab_size=50, num_key_value_heads=2, is_causal=False, **shape)
    first = QCAModel(config).eval().text_encoder(torch.tensor([[5, 6, 7], [5, 8, 9]])).last_hidden_state[:, 0]
    assert not first[0].allclose(first[1], atol=1e-3)


@pytest.mark.parametrize("causal", ["clip", "decoder"])
def test_refuses_cls_pooling_of_a_causal_text_encoder(causal):
    """It has read nothing but itself, and would be the same for every question."""
    config = tiny_config(question_pooling="cls")
    if causal == "clip":
        shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        config.text_config = CLIPTextConfig(vocab_size=50, max_position_embeddings=16, **shape)
    else:
        config.text_config.is_decoder = True
    with pytest.raises(ValueError, match='pass `question_pooling="last"`'):
        QCAModel(config)
    config.question_pooling = "last"
    words = torch.tensor([[5, 6, 7], [5, 8, 9]])
    model = QCAModel(config).eval()
    first, last = (model.text_encoder(words).last_hidden_state[:, place] for place in (0, -1))
    assert first[0].allclose(first[1], atol=1e-6) and not last[0].allclose(last[1], atol=1e-3)


def test_refuses_encoders_without_their_weights(tmp_path):
    """Under names of another model transformers would start them anew, and only report it."""
    vision, text, both, part = (str(tmp_path / name) for name in ("vision", "text", "both", "part"))
    encoder = ViTModel(tiny_vision_config())
    encoder.save_pretrained(vision)
    BertModel(tiny_text_config()).save_pretrained(text)
    tiny_model().save_pretrained(both)
    whole = encoder.state_dict()
    encoder.save_pretrained(part, state_dict={name: whole[name] for name in whole if "layers.1" not in name})
    for folders, lacks in (((both, text), "vit"), ((vision, both), "bert"), ((part, text), "vit")):
        folder = both if both in folders else part
        with pytest.raises(ValueError, match=rf"{folder} lacks \d+ weights of a `{lacks}` encoder, such as \w+"):
            QCAModel.from_vision_text_pretrained(*folders, num_attention_heads=4)


def test_missing_pooler_is_accepted(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    encoder = BeitForMaskedImageModeling(BeitConfig(image_size=32, patch_size=8, vocab_size=8, **sizes))
    encoder.save_pretrained(tmp_path / "vision")
    BertModel(tiny_text_config()).save_pretrained(tmp_path / "text")
    model = QCAModel.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), num_attention_heads=4
    )
    loaded, saved = model.vision_encoder.backbone.state_dict(), encoder.beit.state_dict()
    assert len(saved) > 10 and all(torch.equal(weight, loaded[name]) for name, weight in saved.items())


def test_configs_of_encoders_stored_in_half_precision_compose_to_one_dtype():
    half = tiny_vision_config(dtype="float16"), tiny_text_config(dtype="bfloat16")
    model = QCAModel(QCAConfig.from_vision_text_configs(*half, num_attention_heads=4))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_subclass_may_take_more_arguments_than_a_config():
    class Named(QCAModel):
        def __init__(self, config, name):
            super().__init__(config)
            self.name = name

    assert Named(tiny_config(), "mine").name == "mine"


def test_composing_takes_a_dtype_for_the_whole_model(tmp_path):
    ViTModel(tiny_vision_config()).save_pretrained(tmp_path / "vision")
    BertModel(tiny_text_config()).save_pretrained(tmp_path / "text")
    folders = str(tmp_path / "vision"), str(tmp_path / "text")
    model = QCAModel.from_vision_text_pretrained(*folders, num_attention_heads=4, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="no field num_hops"):
        QCAModel.from_vision_text_pretrained(*folders, num_hops=2)


def test_refuses_an_encoder_decoder_as_text_encoder():
    config = tiny_config()
    config.text_config = BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=50)
    with pytest.raises(ValueError, match=r"text encoder \(bart\) is an encoder-decoder"):
        QCAModel(config)
