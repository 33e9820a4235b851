"""Batches: each image once, questions padded, maps on the model's grid, labels as the answers score."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.fitting.model_factory import CONFIGURATION

ANSWERS = {"red": 0, "blue": 1}


@pytest.fixture(scope="module")
def processor():
    return QCAProcessor.from_pretrained(CONFIGURATION / "qca-tiny")


def config(**fields):
    return QCAConfig.from_pretrained(
        CONFIGURATION / "qca-tiny", label2id=ANSWERS, id2label={0: "red", 1: "blue"}, **fields
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


def test_an_image_is_read_once_and_its_questions_point_at_it(processor, pictures):
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


def test_one_map_serves_every_hop_and_other_numbers_are_refused(processor, pictures):
    one, three = [np.eye(5).tolist()], [np.eye(5).tolist()] * 3
    collator = QuestionCollator(processor, config(), attention_supervision="every_hop")
    labels = collator([row(pictures[0], "a", relevance=one)])["target_relevance"]
    assert torch.equal(labels[0, 0], labels[0, 1])
    with pytest.raises(ValueError, match=r"a-is it red has 3 relevance maps for 2 hops"):
        collator([row(pictures[0], "a", relevance=three)])


def test_labels_are_the_majority_answer_or_soft_scores(processor, pictures):
    rows = [
        row(pictures[0], "a", answers=(("blue", 2), ("red", 8))),
        row(pictures[0], "a", answers=(("green", 1),)),
    ]
    assert QuestionCollator(processor, config())(rows)["labels"].tolist() == [0, -100]
    soft = QuestionCollator(processor, config(problem_type="multi_label_classification"))(rows)["labels"]
    torch.testing.assert_close(soft, torch.tensor([[1.0, 0.6], [0.0, 0.0]]))  # 2 of 10 matches score 0.6


def test_pictures_that_are_decoded_already_give_the_same_batch(processor, pictures):
    stored = [row(pictures[0], "a"), row(pictures[1], "b")]
    decoded = [one | {"image": Image.open(one["image"]["path"])} for one in stored]
    batches = [QuestionCollator(processor, config())(rows) for rows in (stored, decoded)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    with pytest.raises(ValueError, match="Image a of question a-is it red cannot be read"):
        QuestionCollator(processor, config())([stored[0] | {"image": Image.new("RGB", (0, 4))}])


def test_a_question_that_is_too_long_is_named(processor, pictures):
    rows = [row(pictures[0], "a"), row(pictures[0], "a", "red " * 600)]
    with pytest.raises(ValueError, match=r"Question a-red .*, 'red red .*has 602 tokens, the text encoder reads at"):
        QuestionCollator(processor, config())(rows)


def test_an_image_that_cannot_be_read_is_named_with_its_question(processor, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg of question a-is it red cannot be read"):
        QuestionCollator(processor, config())([row(broken, "a")])


def test_maps_of_cropped_pictures_are_refused():
    processor = QCAProcessor.from_pretrained(CONFIGURATION / "qca-tiny")
    processor.image_processor.do_center_crop = True
    with pytest.raises(ValueError, match="do_center_crop"):
        QuestionCollator(processor, config(), attention_supervision="last_hop")
