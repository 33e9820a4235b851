"""What `from_vision_text_pretrained` takes beside config fields: revisions, dtype, devices, code of an encoder."""

import json
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import fresh_process
from helpers.tiny import same_weights, tiny_text_config, tiny_vision_config
from transformers import BertModel, T5Config, T5EncoderModel, T5ForConditionalGeneration, ViTModel

from modeling_qca import QCAModel, composition_qca

CODE = """
from transformers import BertConfig, BertModel


class MineConfig(BertConfig):
    model_type = "mine"


class MineModel(BertModel):
    config_class = MineConfig
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A vision encoder in bfloat16 and a text encoder in float16."""
    ViTModel(tiny_vision_config()).bfloat16().save_pretrained(tmp_path / "vision")
    BertModel(tiny_text_config()).half().save_pretrained(tmp_path / "text")
    return str(tmp_path / "vision"), str(tmp_path / "text")


def compose(folders: tuple[str, str], **fields) -> QCAModel:
    return QCAModel.from_vision_text_pretrained(*folders, num_attention_heads=4, **fields)


def test_dtype_auto_holds_the_weights_of_both_encoders(folders):
    vision = folders[0]
    assert compose(folders, dtype="auto").dtype == torch.float32  # neither 16-bit type holds the other
    ViTModel(tiny_vision_config()).half().save_pretrained(vision)
    assert compose(folders, dtype="auto").dtype == torch.float16
    assert compose(folders).dtype == torch.float32


def test_options_reach_every_download_of_an_encoder(folders, monkeypatch):
    seen = []

    def record(owner, name):
        original = getattr(owner, name)

        def call(source, *args, **kwargs):
            seen.append((Path(source).name, kwargs.get("revision"), kwargs.get("cache_dir")))
            return original(source, *args, **kwargs | {"revision": None})

        monkeypatch.setattr(owner, name, call)

    record(composition_qca, "cached_file")
    record(composition_qca.AutoConfig, "from_pretrained")
    record(ViTModel, "from_pretrained")
    record(BertModel, "from_pretrained")
    compose(folders, revision=("v1", "v2"), cache_dir="cache")
    assert {place[1:] for place in seen if place[0] == "vision"} == {("v1", "cache")}
    assert {place[1:] for place in seen if place[0] == "text"} == {("v2", "cache")}
    assert len(seen) == 5  # config and weights of both, and the pooling of the text encoder
    seen.clear()
    compose(folders, revision="v3")
    assert {place[1] for place in seen} == {"v3"}


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu")])
def test_device_map_places_the_composed_model(device_map, folders):
    model = compose(folders, device_map=device_map)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


def test_device_map_of_several_devices_is_dispatched(folders, monkeypatch):
    dispatched = []
    monkeypatch.setattr(composition_qca, "accelerate_dispatch", lambda *args: dispatched.append(args))
    devices = {"vision_encoder": "cpu", "": 0}
    model = compose(folders, device_map=devices)
    assert dispatched[0][0] is model and dispatched[0][2] == devices


def pooled(folder: Path, **stored) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24} | stored))


@pytest.mark.parametrize(
    ("stored", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken", "include_prompt": True}, "last"),
    ],
)
def test_sentence_transformers_folder_decides_the_pooling(stored, pooling, folders):
    pooled(Path(folders[1]), **stored)
    assert compose(folders).config.question_pooling == pooling
    assert compose(folders, question_pooling="last").config.question_pooling == "last"


@pytest.mark.parametrize(
    "stored",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
)
def test_warns_of_a_pooling_that_the_model_does_not_have(stored, folders, monkeypatch):
    warned = []
    monkeypatch.setattr(composition_qca.logger, "warning", warned.append)
    pooled(Path(folders[1]), **stored)
    assert compose(folders).config.question_pooling == "mean"
    assert "1_Pooling/config.json" in warned[0] and "question_pooling" in warned[0]


@pytest.mark.parametrize("kind", [T5ForConditionalGeneration, T5EncoderModel])
def test_composes_the_encoder_of_a_t5(kind, folders):
    config = T5Config(d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, vocab_size=60, decoder_start_token_id=0)
    whole = kind(config)
    whole.save_pretrained(folders[1])
    model = compose(folders)
    assert same_weights(model.text_encoder.encoder, whole.encoder)
    words = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    mask = (words != 0).long()
    read = model.eval().get_text_features(words, mask).last_hidden_state
    assert torch.equal(read, whole.eval().encoder(words, mask).last_hidden_state)
    model.save_pretrained(folders[0])
    assert same_weights(QCAModel.from_pretrained(folders[0]), model)


def test_code_of_an_encoder_runs_only_if_trusted(tmp_path):
    """In a process of its own, because the Auto classes remember what they were told."""
    program = f"""
        from pathlib import Path
        from helpers.tiny import *
        from transformers import BertModel, ViTModel
        from modeling_qca import QCAModel
        ViTModel(tiny_vision_config()).save_pretrained("vision")
        Path("text").mkdir()
        Path("text/modeling_mine.py").write_text({CODE!r})
        reader = BertModel(tiny_text_config())
        reader.save_pretrained("text")
        config = Path("text/config.json")
        auto = '"auto_map": {{"AutoConfig": "modeling_mine.MineConfig", "AutoModel": "modeling_mine.MineModel"}},'
        config.write_text(config.read_text().replace('"model_type": "bert"', auto + '"model_type": "mine"'))
        try:
            QCAModel.from_vision_text_pretrained("vision", "text", num_attention_heads=4, trust_remote_code=False)
        except ValueError as error:
            print("trust_remote_code" in str(error))
        model = QCAModel.from_vision_text_pretrained("vision", "text", num_attention_heads=4, trust_remote_code=True)
        print(type(model.text_encoder).__name__, same_weights(model.text_encoder, reader))
        model.save_pretrained("both")
        print(same_weights(QCAModel.from_pretrained("both"), model))
    """
    prefix = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    printed = fresh_process.run(prefix + textwrap.dedent(program), folder=tmp_path)
    assert printed == "True\nMineModel True\nTrue\n"
