"""Batches: each image once, padded questions, maps on the model's grid, and labels."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ConvNextImageProcessorPil

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.training.data import collator as collator_module
from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.data.text_features import TextFeatureCache
from modeling_qca.training.fitting.model_factory import CONFIGURATION


@pytest.fixture(scope="module")
def processor():
    return QCAProcessor.from_pretrained(CONFIGURATION / "qca-tiny")


def config(**fields):
    answers = fields.pop("answers", ("red", "blue"))
    return QCAConfig.from_pretrained(
        CONFIGURATION / "qca-tiny",
        label2id={answer: index for index, answer in enumerate(answers)},
        id2label=dict(enumerate(answers)),
        **fields,
    )


def row(path, image_id, question="is it red", answers=(("red", 1),), relevance=None):
    return {
        "image": {"path": str(path), "bytes": None},
        "image_id": image_id,
        "question": question,
        "question_id": f"{image_id}-{question}",
        "question_type": "",
        "answers": [{"answer": answer, "count": count} for answer, count in answers],
        "relevance": relevance,
    }


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("a", "b")]
    for shade, path in enumerate(paths):
        Image.new("RGB", (200, 100), (90 * shade, 10, 10)).save(path)
    return paths


def test_batch_has_each_image_once_with_an_index(processor, pictures):
    rows = [row(pictures[0], "a"), row(pictures[1], "b", "how many circles are there"), row(pictures[0], "a", "red")]
    batch = QuestionCollator(processor, config())(rows)
    assert batch["pixel_values"].shape == (2, 3, 160, 160)
    assert batch["image_index"].tolist() == [0, 1, 0]
    assert next(iter(batch)) == "input_ids" and len(batch["input_ids"]) == 3
    assert batch["attention_mask"].sum(1).tolist() == [6, 7, 3]  # "it" is two word pieces
    model = QCAForVisualQuestionAnswering(config()).eval()
    assert model(**batch).logits.shape == (3, 2)


def test_maps_are_averaged_onto_the_grid_and_normalized(processor, pictures):
    fine = np.zeros((10, 10), dtype=np.float32)
    fine[0:2, 0:2] = 1  # cell (0, 0) of a 5 x 5 grid
    fine[0, 2] = 1  # a quarter of cell (0, 1)
    rows = [row(pictures[0], "a", relevance=[fine.tolist()] * 2), row(pictures[0], "a", "red")]
    labels = QuestionCollator(processor, config(), attention_supervision="every_hop")(rows)["target_relevance"]
    expected = torch.zeros(25)
    expected[0], expected[1] = 4 / 5, 1 / 5
    torch.testing.assert_close(labels[0], expected.expand(2, 25))
    assert labels[1].abs().sum() == 0
    final = QuestionCollator(processor, config(), attention_supervision="last_hop")(rows)["target_relevance"]
    torch.testing.assert_close(final[0], expected)


def test_one_map_is_used_for_every_hop_and_other_counts_are_refused(processor, pictures):
    one, three = [np.eye(5).tolist()], [np.eye(5).tolist()] * 3
    collator = QuestionCollator(processor, config(), attention_supervision="every_hop")
    labels = collator([row(pictures[0], "a", relevance=one)])["target_relevance"]
    assert torch.equal(labels[0, 0], labels[0, 1])
    with pytest.raises(ValueError, match=r"a-is it red has 3 relevance maps for 2 hops"):
        collator([row(pictures[0], "a", relevance=three)])


def test_labels_are_majority_answers_or_soft_scores(processor, pictures):
    rows = [
        row(pictures[0], "a", answers=(("blue", 2), ("red", 8))),
        row(pictures[0], "a", answers=(("green", 1),)),
    ]
    assert QuestionCollator(processor, config())(rows)["labels"].tolist() == [0, -100]
    soft = QuestionCollator(processor, config(problem_type="multi_label_classification"))(rows)["labels"]
    torch.testing.assert_close(soft, torch.tensor([[1.0, 0.6], [0.0, 0.0]]))  # 2 of 10 matches score 0.6


def test_decoded_images_give_the_same_batch(processor, pictures):
    stored = [row(pictures[0], "a"), row(pictures[1], "b")]
    decoded = [one | {"image": Image.open(one["image"]["path"])} for one in stored]
    batches = [QuestionCollator(processor, config())(rows) for rows in (stored, decoded)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    with pytest.raises(ValueError, match="Image a of question a-is it red cannot be read"):
        QuestionCollator(processor, config())([stored[0] | {"image": Image.new("RGB", (0, 4))}])


def test_too_long_question_is_named(processor, pictures):
    rows = [row(pictures[0], "a"), row(pictures[0], "a", "red " * 600)]
    with pytest.raises(ValueError, match=r"Question a-red .*, 'red red .*has 602 tokens, the text encoder reads at"):
        QuestionCollator(processor, config())(rows)


def test_unreadable_image_is_named_with_its_question(processor, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg of question a-is it red cannot be read"):
        QuestionCollator(processor, config())([row(broken, "a")])


def test_refuses_supervision_with_center_crop():
    processor = QCAProcessor.from_pretrained(CONFIGURATION / "qca-tiny")
    processor.image_processor.do_center_crop = True
    with pytest.raises(ValueError, match="do_center_crop"):
        QuestionCollator(processor, config(), attention_supervision="last_hop")
    processor.image_processor = ConvNextImageProcessorPil(size={"shortest_edge": 224})
    with pytest.raises(ValueError, match="`ViTImageProcessorPil` with the same numbers"):
        QuestionCollator(processor, config(), attention_supervision="last_hop")


def test_labels_match_raw_answers_of_the_model_after_normalization(processor, pictures):
    """A model with raw answers and rows with normalized ones: every label was -100 and the loss 0."""
    answers = ("The Sun", "T-shirt", "Two", "A")
    rows = [row(pictures[0], "a", answers=((answer, 1),)) for answer in ("the sun", "T-Shirt", "2", "A", "moon")]
    labels = QuestionCollator(processor, config(answers=answers))(rows)["labels"]
    assert labels.tolist() == [0, 1, 2, 3, -100]
    soft = QuestionCollator(processor, config(answers=answers, problem_type="multi_label_classification"))(rows)
    torch.testing.assert_close(soft["labels"], torch.cat([torch.eye(4), torch.zeros(1, 4)]))
    raw = QuestionCollator(processor, config(answers=answers), normalize_answers=False)(rows)["labels"]
    assert raw.tolist() == [-100, -100, -100, 3, -100]


def test_refuses_answers_of_the_model_that_normalization_merges(processor):
    with pytest.raises(ValueError, match=r"'-5' and '5' of the model are both '5'.*normalize_answers=False"):
        QuestionCollator(processor, config(answers=("-5", "5")))
    QuestionCollator(processor, config(answers=("-5", "5")), normalize_answers=False)


def test_refuses_rows_without_any_answer_of_the_model(processor, pictures):
    rows = [row(pictures[0], "a", answers=(("rouge", 1),))] * 8
    collator = QuestionCollator(processor, config())
    assert set(collator(rows)["labels"].tolist()) == {-100}
    with pytest.raises(ValueError, match=r"None of 16 questions has an answer of the model.*build_vocabulary"):
        collator(rows)
    unlabeled = [row(pictures[0], "a", answers=())] * 16
    assert set(QuestionCollator(processor, config())(unlabeled)["labels"].tolist()) == {-100}


def test_plain_columns_give_the_same_batch(processor, pictures):
    stored = [row(pictures[0], "a"), row(pictures[1], "b", answers=(("blue", 1),)), row(pictures[0], "a", "red")]
    plain = [
        {"image": Image.open(one["image"]["path"]), "question": one["question"], "answer": one["answers"][0]["answer"]}
        for one in stored
    ]
    paths = [one | {"image": stored[index]["image"]["path"]} for index, one in enumerate(plain)]
    expected = QuestionCollator(processor, config())(stored)
    for rows in (plain, paths):
        batch = QuestionCollator(processor, config())(rows)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_each_row_is_converted_once(processor, pictures, monkeypatch):
    converted, plain = [], collator_module._schema_rows
    monkeypatch.setattr(collator_module, "_schema_rows", lambda row, at: converted.append(row) or plain(row, at))
    rows = [{"image": str(pictures[0]), "question": "is it red", "answer": "red"}] * 2
    collator = QuestionCollator(processor, config())
    for batch in (collator, collator.inputs):
        converted.clear()
        batch(rows)
        assert converted == rows


def test_relevance_argument_of_0_1_is_read_with_one_warning(processor):
    with pytest.warns(FutureWarning, match="attention_supervision") as caught:
        collator = QuestionCollator(processor, config(), relevance="final")
    assert collator.attention_supervision == "last_hop" and len(caught) == 1
    with pytest.raises(ValueError, match="none, last_hop or every_hop, not 'final'"):
        QuestionCollator(processor, config(), attention_supervision="final")


def test_cached_text_features_replace_the_tokens(processor, pictures):
    model = QCAForVisualQuestionAnswering(config()).eval()
    model.qca.text_encoder.requires_grad_(False)
    rows = [row(pictures[0], "a"), row(pictures[1], "b", "red"), row(pictures[1], "b")]
    fresh = QuestionCollator(processor, config())(rows)
    cache = TextFeatureCache(model, [processor(text=[one["question"] for one in rows])])
    batch = QuestionCollator(processor, config(), text_features=cache)(rows)
    assert next(iter(batch)) == "question_index" and batch["question_index"].tolist() == [0, 1, 0]
    assert "input_ids" not in batch and batch["text_features"].shape[:2] == (2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, model(**fresh).logits, rtol=1e-4, atol=1e-5)
    unknown = [*rows, row(pictures[0], "a", "how many circles are there")]
    assert "input_ids" in QuestionCollator(processor, config(), text_features=cache)(unknown)


def test_indices_are_there_only_where_needed(processor, pictures):
    model = QCAForVisualQuestionAnswering(config()).eval()
    model.qca.text_encoder.requires_grad_(False)
    rows = [row(pictures[0], "a", "red"), row(pictures[1], "b", "how many circles are there")]
    cache = TextFeatureCache(model, [processor(text=[one["question"] for one in rows])])
    for features, first in ((None, "input_ids"), (cache, "text_features")):
        batch = QuestionCollator(processor, config(), text_features=features)(rows)
        assert not {"image_index", "question_index"} & batch.keys() and next(iter(batch)) == first
        assert {len(value) for value in batch.values()} == {2}
        alone = [QuestionCollator(processor, config())([one]) for one in rows]
        with torch.no_grad():
            expected = torch.cat([model(**one).logits for one in alone])
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-5)
