"""The config: strict fields that must fit each other, composed of two encoders' configs."""

import json

import pytest
import torch
from helpers.tiny import (
    ANSWERS,
    VISION_CONFIGS,
    tiny_config,
    tiny_model,
    tiny_text_config,
    tiny_vision_config,
)
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, BertConfig, ViTConfig, VivitConfig

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering


def test_defaults_are_a_vit_and_a_bert_of_the_vision_encoders_width():
    config = QCAConfig()
    assert isinstance(config.vision_config, ViTConfig)
    assert isinstance(config.text_config, BertConfig)
    assert config.hidden_size == config.vision_config.hidden_size == 768
    assert (
        QCAConfig(vision_config={"model_type": "vit", "hidden_size": 64, "num_attention_heads": 4}).hidden_size == 64
    )


@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_saving_and_loading_gives_the_same_config(vision, tmp_path):
    config = tiny_config(
        vision,
        question_pooling="mean",
        query_tokens="attended",
        relevance_scorer="additive",
        num_attention_layers=3,
        patch_update="broadcast",
        answer_evidence="hops_and_mean",
        answer_query="updated",
        vision_conditioning_layers=[1, 2],
        vision_conditioning="shared_projections",
        token_budget=[2, 8],
        token_budget_layer=1,
        token_budget_mass=0.8,
        token_budget_selection="spread",
        relevance_loss_weight=0.5,
        evidence_dropout=0.3,
        num_classifier_layers=3,
        problem_type="multi_label_classification",
    )
    config.save_pretrained(tmp_path)
    for loaded in (QCAConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is QCAConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert type(loaded.vision_config) is VISION_CONFIGS[vision]
        assert loaded.id2label == ANSWERS
        assert loaded.label2id == {answer: index for index, answer in ANSWERS.items()}
        assert loaded.num_labels == 5


def test_saved_config_names_its_code_and_pipeline(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_qca.QCAConfig",
        "AutoModel": "modeling_qca.QCAModel",
        "AutoModelForVisualQuestionAnswering": "modeling_qca.QCAForVisualQuestionAnswering",
        "AutoProcessor": "processing_qca.QCAProcessor",
    }
    assert saved["custom_pipelines"]["visual-question-answering"]["impl"].startswith("pipeline_qca.")


def test_refuses_an_unknown_field():
    with pytest.raises(ValueError, match="QCAConfig has no field relevence_scorer"):
        tiny_config(relevence_scorer="additive")


def test_num_labels_numbers_the_answers():
    config = QCAConfig.from_vision_text_configs(tiny_vision_config(), tiny_text_config(), num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_composing_does_not_change_the_configs_of_the_encoders():
    vision, text = tiny_vision_config(), tiny_text_config()
    before = vision.to_dict(), text.to_dict()
    config = QCAConfig.from_vision_text_configs(vision, text, num_attention_heads=2)
    config.vision_config.hidden_size = 4
    config.vision_config.dropout_of_ours = 0.5
    assert (vision.to_dict(), text.to_dict()) == before
    assert QCAConfig.from_vision_text_configs(vision, text).text_config.to_dict() == before[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("question_pooling", "max"),
        ("query_tokens", "some"),
        ("relevance_scorer", "cosine"),
        ("patch_update", "concat"),
        ("answer_evidence", "mean"),
        ("answer_query", "first"),
        ("vision_conditioning_layers", "middle"),
        ("vision_conditioning", "film"),
        ("token_budget_scorer", "gradient"),
        ("token_budget_selection", "every"),
        ("num_attention_layers", "two"),
        ("num_attention_heads", 2.5),
        ("hidden_size", "wide"),
        ("token_budget", 0.5),
        ("initializer_range", "small"),
    ],
)
def test_names_a_field_of_a_wrong_type(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        tiny_config(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 30}, r"`hidden_size` \(30\) is not a multiple of `num_attention_heads` \(4\)"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, got 0"),
        ({"num_attention_layers": -1}, "`num_attention_layers` must be at least 0, got -1"),
        ({"num_classifier_layers": 0}, "`num_classifier_layers` must be at least 1, got 0"),
        ({"hidden_size": 0}, "`hidden_size` must be at least 1, got 0"),
        ({"evidence_dropout": 1.5}, r"`evidence_dropout` must be in \[0, 1\), got 1.5"),
        ({"classifier_dropout": -0.1}, r"`classifier_dropout` must be in \[0, 1\), got -0.1"),
        ({"relevance_loss_weight": -1}, "`relevance_loss_weight` must not be negative, got -1"),
        ({"initializer_range": -0.02}, "`initializer_range` must not be negative, got -0.02"),
        ({"vision_conditioning_layers": [0, 3]}, r"`vision_conditioning_layers` \[3\] outside the encoder's 3 layers"),
        (
            {"vision_conditioning_layers": -1},
            r"`vision_conditioning_layers` must be a positive number of layers, got -1",
        ),
        ({"vision_conditioning_layers": 4}, r"`vision_conditioning_layers`.*outside the encoder's 3 layers"),
        ({"token_budget": 4, "token_budget_layer": 3}, r"`token_budget_layer` must be in \[0, 3\), got 3"),
        ({"token_budget": 0, "token_budget_layer": 1}, "`token_budget` must be a positive count"),
        ({"token_budget": [4, 2], "token_budget_layer": 1}, r"`token_budget` must be .*\[4, 2\]"),
        ({"token_budget": [1, 2, 3], "token_budget_layer": 1}, r"`token_budget` must be .*\[1, 2, 3\]"),
        ({"token_budget": [2, 4], "token_budget_layer": 1, "token_budget_mass": 0.0}, "`token_budget_mass`.*got 0.0"),
        ({"problem_type": "regression"}, "`problem_type` must be .*got 'regression'"),
    ],
)
def test_names_fields_that_contradict_each_other(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**fields)


def test_saving_checks_the_config_again(tmp_path):
    config = tiny_config()
    config.num_attention_heads = 5
    with pytest.raises(StrictDataclassClassValidationError, match="num_attention_heads"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_budget": [12, 6], "token_budget_layer": 1}, "`token_budget` must be a positive count or"),
        ({"relevance_loss_weight": -1.0}, "`relevance_loss_weight` must not be negative"),
        ({"vision_feature_layers": [99]}, "`vision_feature_layers` must name layers 1 to 3"),
        ({"num_attention_heads": 5}, "is not a multiple of `num_attention_heads`"),
        ({"num_attention_layers": 10**9}, "`num_attention_layers` must be at most"),
    ],
)
def test_checks_the_fields_passed_to_from_pretrained(fields, message, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises((StrictDataclassClassValidationError, ValueError), match=message):
        QCAConfig.from_pretrained(tmp_path, **fields)
    with pytest.raises((StrictDataclassClassValidationError, ValueError), match=message):
        QCAConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **fields)


def test_refuses_to_condition_an_encoder_without_layout():
    with pytest.raises(StrictDataclassClassValidationError, match="a `swin` encoder takes neither"):
        QCAConfig(vision_config={"model_type": "swin", "embed_dim": 24}, vision_conditioning_layers="late")


def test_refuses_a_vision_encoder_without_a_patch_grid():
    with pytest.raises(ValueError, match="A `vivit` model gives no grid of patches for an image alone"):
        QCAConfig.from_vision_text_configs(VivitConfig(hidden_size=24, num_hidden_layers=1), tiny_text_config())


def test_cls_attention_needs_a_cls_token():
    with pytest.raises(StrictDataclassClassValidationError, match="siglip_vision_model has none"):
        tiny_config("siglip_vision_model", token_budget=4, token_budget_layer=1, token_budget_scorer="cls_attention")


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        (None, 12, []),
        ([5, 2, 2], 12, [2, 5]),
        (3, 12, [9, 10, 11]),
        ("early", 12, [0, 1, 2, 3, 4, 5]),
        ("late", 12, [6, 7, 8, 9, 10, 11]),
        ("sparse", 12, [1, 3, 5, 7, 9, 11]),
        ("all", 4, [0, 1, 2, 3]),
        ("early", 5, [0, 1]),
        ("late", 5, [2, 3, 4]),
        ("sparse", 5, [0, 2, 4]),
    ],
)
def test_named_layers(layers, depth, expected):
    vision = tiny_vision_config(num_hidden_layers=depth)
    config = QCAConfig.from_vision_text_configs(vision, tiny_text_config(), vision_conditioning_layers=layers)
    assert config.conditioned_layers == expected


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({}, None),
        ({"vision_conditioning_layers": "late"}, 1),
        ({"token_budget": 4, "token_budget_layer": 2}, 2),
        ({"token_budget": 4, "token_budget_layer": 2, "vision_conditioning_layers": [1]}, 1),
        ({"token_budget": 4, "token_budget_layer": 0, "vision_conditioning_layers": [1]}, 0),
    ],
)
def test_first_question_layer(fields, first):
    assert tiny_config(**fields).first_question_layer == first


def test_grid_of_patches_of_a_non_square_image():
    vision = tiny_vision_config()
    vision.image_size, vision.patch_size = [48, 32], [8, 16]
    config = QCAConfig.from_vision_text_configs(vision, tiny_text_config())
    assert config.patch_size == (8, 16)
    assert config.image_grid == (6, 2)
    assert tiny_config().image_grid == (4, 4)


def test_saved_config_has_no_local_folders(tmp_path):
    vision, text = ViTConfig(), BertConfig()
    vision._name_or_path = text._name_or_path = "/home/someone/encoders"
    QCAConfig.from_vision_text_configs(vision, text).save_pretrained(tmp_path)
    assert "someone" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    "labels",
    [
        {"id2label": {0: "no", 1: "yes"}},
        {"id2label": {"0": "no", "1": "yes"}},
        {"id2label": {1: "yes", 0: "no"}},
        {"label2id": {"no": 0, "yes": 1}},
        {"label2id": {"yes": "1", "no": "0"}},
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": "0", "yes": "1"}},
        {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "num_labels": 2},
    ],
)
@pytest.mark.parametrize("how", ["constructor", "from_pretrained", "model"])
def test_labels_are_complete_in_both_directions(labels, how, tmp_path):
    if how == "constructor":
        config = QCAConfig(**labels)
    elif how == "from_pretrained":
        tiny_config().save_pretrained(tmp_path)
        config = QCAConfig.from_pretrained(tmp_path, **labels)
    else:
        tiny_model().save_pretrained(tmp_path)
        loaded = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **labels)
        config = loaded.config
        assert loaded.classifier[-1].out_features == 2
    config.save_pretrained(tmp_path)
    for each in (config, QCAConfig.from_pretrained(tmp_path)):
        assert each.id2label == {0: "no", 1: "yes"}
        assert each.label2id == {"no": 0, "yes": 1}
        assert each.num_labels == 2


def test_num_labels_replaces_the_stored_answers(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config = QCAConfig.from_pretrained(tmp_path, num_labels=3)
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert QCAConfig.from_pretrained(tmp_path, num_labels=5).id2label == ANSWERS


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 1, "yes": 0}},
            "answer 0 is 'no' in `id2label` and 'yes'",
        ),
        ({"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0}}, "answer 1 is 'yes' in `id2label` and missing"),
        ({"id2label": {1: "no", 2: "yes"}}, "`id2label` must number its 2 answers from 0"),
        ({"label2id": {"no": 0, "yes": 2}}, "`label2id` must number its 2 answers from 0"),
        ({"label2id": {"no": 0, "yes": "0"}}, "`label2id` has two answers with the id 0"),
        ({"id2label": {0: "no", 1: "no"}}, "`id2label` has the answer 'no' twice, as 0 and 1"),
        ({"id2label": {"no": 0}}, "`id2label` must number the answers with integers from 0, got 'no'"),
        ({"id2label": {0: "no"}, "num_labels": 3}, "`num_labels` is 3, but `id2label` has 1"),
    ],
)
def test_refuses_labels_that_contradict_each_other(labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        QCAConfig(**labels)
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        QCAConfig.from_pretrained(tmp_path, **labels)


def test_defaults_are_the_recommended_model():
    config = QCAConfig()
    assert (config.question_pooling, config.relevance_scorer, config.answer_query) == ("mean", "bilinear", "initial")
    assert (config.num_attention_heads, config.num_classifier_layers) == (4, 1)
    assert (config.classifier_dropout, config.evidence_dropout) == (0.2, 0.3)


def test_dtype_auto_keeps_the_stored_dtype(tmp_path):
    tiny_config(dtype="bfloat16").save_pretrained(tmp_path)
    for loader in (QCAConfig, AutoConfig):
        assert loader.from_pretrained(tmp_path, dtype="auto").dtype is torch.bfloat16
