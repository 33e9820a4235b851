"""The predictor: batch in, batch out, equal to the pipeline; each image and each question is encoded once."""

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.calibration import write_calibration
from helpers.tiny import save_tiny_model, tiny_image

from modeling_qca.training.confidence.familiarity import fit_familiarity
from modeling_qca.training.data.images import blank_image
from modeling_qca.training.evaluation.calibrate import embed_questions
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.files.run_files import RUN_KEYS, TRAINED_QUESTIONS
from modeling_qca.training.prediction import predictor as module
from modeling_qca.training.prediction.predictor import Predictor
from modeling_qca.training.prediction.regions import peak_and_box

QUESTIONS = ["what is the color of the ball", "where is it", "how many"]
VARIANTS = [
    {},
    {"problem_type": "multi_label_classification"},
    {"token_budget": [3, 8], "token_budget_layer": 2, "vision_conditioning_layers": [1, 2]},
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        tiny_image(seed, (40, 30)).save(folder / f"{seed}.png")
    return [str(folder / f"{seed}.png") for seed in range(3)]


@pytest.mark.parametrize("fields", VARIANTS, ids=["plain", "several_answers", "in_vision_encoder"])
def test_answers_equal_those_of_the_pipeline_one_pair_at_a_time(tmp_path, photos, fields):
    save_tiny_model(tmp_path, **fields)
    found = Predictor(str(tmp_path), QUESTIONS, top_k=3)({"image": photos, "number": np.arange(3)})
    ask = load_pipeline(str(tmp_path))
    assert found["question"].tolist() == QUESTIONS * 3 and found["number"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    for row, (image, question) in enumerate(zip(found["image"], found["question"], strict=True)):
        expected = ask(image, question, top_k=3)
        assert found["answer"][row] == expected[0]["answer"] and found["error"][row] == ""
        assert found["answers"][row] == [each["answer"] for each in expected]
        assert found["probabilities"][row] == pytest.approx([each["score"] for each in expected], abs=1e-6)
        assert found["probability"][row] == found["probabilities"][row][0]


def test_question_only_checkpoint_answers_as_with_blank_images(tmp_path, photos):
    save_tiny_model(tmp_path)
    plain = Predictor(str(tmp_path), QUESTIONS)
    expected = plain({"image": [blank_image()["bytes"]]})["probability"].tolist()
    save_run(tmp_path, blank_images=True)
    predictor = Predictor(str(tmp_path), QUESTIONS)
    found = predictor({"image": [*photos, b"damaged"]})
    assert found["probability"][:9] == pytest.approx(expected * 3, abs=1e-6)
    assert plain({"image": photos})["probability"] != pytest.approx(expected * 3, abs=1e-6)
    assert all(found["error"][9:]) and len(pickle.dumps(predictor)) < 1000


def save_run(folder: Path, **known: object) -> None:
    scoring = {"answer_rule": "consensus", "normalize_answers": True}
    (folder / "run.json").write_text(json.dumps(dict.fromkeys(RUN_KEYS) | scoring | known))


def test_encodes_each_image_and_each_question_once(tmp_path, photos, monkeypatch):
    save_tiny_model(tmp_path)
    predictor, images, texts = Predictor(str(tmp_path)), [], []
    get_image_features, get_text_features = predictor.model.get_image_features, predictor.model.get_text_features
    monkeypatch.setattr(
        predictor.model, "get_image_features", lambda x: images.append(len(x)) or get_image_features(x)
    )
    monkeypatch.setattr(
        predictor.model,
        "get_text_features",
        lambda **words: texts.append(len(words["input_ids"])) or get_text_features(**words),
    )
    first, second = photos[:2]
    batch = {"image": [first, second, first, first], "question": ["how many", "where", "where", "how many"]}
    whole = predictor(batch)
    assert (images, texts) == ([2], [2])
    again = predictor({name: values[:1] for name, values in batch.items()})
    assert (images, texts) == ([2, 1], [2])  # the question was known
    assert again["answer"][0] == whole["answer"][0]
    assert again["probability"][0] == pytest.approx(whole["probability"][0], abs=1e-6)


def test_many_questions_about_one_image_are_answered_in_several_passes(tmp_path, photos, monkeypatch):
    save_tiny_model(tmp_path)
    predictor = Predictor(str(tmp_path), QUESTIONS)
    whole = predictor({"image": photos})
    monkeypatch.setattr(module, "MAXIMUM_PAIRS", 2)
    monkeypatch.setattr(module, "MAXIMUM_QUESTIONS", 1)
    found = predictor({"image": photos})
    assert found["answer"].tolist() == whole["answer"].tolist()
    np.testing.assert_allclose(found["probability"], whole["probability"], atol=1e-6)
    assert len(predictor._questions) == 1


def test_is_small_when_pickled_and_answers_the_same_afterwards(tmp_path, photos):
    save_tiny_model(tmp_path)
    predictor = Predictor(str(tmp_path), QUESTIONS, regions=True)
    before = predictor({"image": photos})
    sent = pickle.dumps(predictor)
    assert len(sent) < 2000
    after = pickle.loads(sent)({"image": photos})
    assert before.keys() == after.keys()
    assert all(before[name].tolist() == after[name].tolist() for name in before)


def test_an_unreadable_image_gets_an_error_and_the_others_their_answers(tmp_path, photos):
    save_tiny_model(tmp_path)
    buffer = io.BytesIO()
    tiny_image(0, (40, 30)).save(buffer, "PNG")
    images = [photos[0], str(tmp_path / "none.jpg"), buffer.getvalue(), b"text", None]
    found = Predictor(str(tmp_path), ["where"], top_k=2, regions=True)({"image": images})
    assert "image" not in found
    assert [bool(error) for error in found["error"]] == [False, True, False, True, True]
    assert np.isnan(found["probability"]).tolist() == [False, True, False, True, True]
    assert "No such file" in found["error"][1] and "looks like text" in found["error"][3]
    assert found["answer"][2] == found["answer"][0] != "" == found["answer"][3] and found["box"][4] == []
    with_null = Predictor(str(tmp_path), ["where"])({"image": [photos[0], None]})
    assert list(with_null["image"]) == [photos[0], None]  # a block of rows has the columns of the others
    nothing = Predictor(str(tmp_path), ["where"])({"image": [b"text"]})
    assert nothing["answer"].tolist() == [""]


@pytest.mark.parametrize("given", [{"threshold": 0.5}, {"coverage": 0.5}])
def test_below_the_threshold_the_row_stays_without_an_answer(tmp_path, photos, given):
    save_tiny_model(tmp_path)
    plain = Predictor(str(tmp_path), QUESTIONS, top_k=2)({"image": [*photos, b"damaged"]})
    sure = plain["probability"][:9]
    median, best = float(np.median(sure)), plain["answer"][np.argmax(sure)]
    write_calibration(tmp_path, [median] * 100, abstain_answer=best)
    if "threshold" in given:
        given = {"threshold": median}
    found = Predictor(str(tmp_path), QUESTIONS, top_k=2, **given)({"image": [*photos, b"damaged"]})
    below, unanswerable = sure < median, plain["answer"][:9] == best
    assert 0 < below.sum() < 9 and (unanswerable & ~below).any()
    assert found["answer"].tolist() == np.where(below, "", plain["answer"][:9]).tolist() + [""] * 3
    assert found["abstained"].tolist() == (below | unanswerable).tolist() + [False] * 3
    np.testing.assert_array_equal(found["probability"], plain["probability"])
    assert [list(each) for each in found["answers"]] == [list(each) for each in plain["answers"]]
    assert "abstained" not in plain
    assert "abstained" in Predictor(str(tmp_path), QUESTIONS)({"image": photos})  # an answer that abstains is known


def test_flags_the_questions_unlike_those_trained_on(tmp_path, photos):
    save_tiny_model(tmp_path)
    pipeline = load_pipeline(str(tmp_path))
    embeddings = embed_questions(pipeline.model, pipeline.processor, QUESTIONS)
    distances = fit_familiarity(embeddings[:2], embeddings[:2]).distances(embeddings)
    fitted = replace(fit_familiarity(embeddings[:2], embeddings[:2]), threshold=float(np.sort(distances)[-2:].mean()))
    fitted.write(tmp_path / TRAINED_QUESTIONS)
    found = Predictor(str(tmp_path), QUESTIONS)({"image": [photos[0], b"damaged"]})
    assert found["unfamiliar"].tolist() == (distances > fitted.threshold).tolist() + [False] * 3
    assert found["unfamiliar"].sum() == 1


def test_the_answer_that_abstains_is_that_of_the_training_before_that_of_the_calibration(tmp_path, photos):
    save_tiny_model(tmp_path)
    plain = Predictor(str(tmp_path), QUESTIONS)({"image": photos})
    best = plain["answer"][0]
    write_calibration(tmp_path, [0.0] * 100, abstain_answer="another")
    save_run(tmp_path, abstain_answer=best)
    found = Predictor(str(tmp_path), QUESTIONS)({"image": photos})
    assert found["abstained"].tolist() == (plain["answer"] == best).tolist()
    assert found["answer"].tolist() == plain["answer"].tolist()


def test_a_coverage_needs_a_calibration(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(ValueError, match="run `qca calibrate`"):
        Predictor(str(tmp_path), QUESTIONS, coverage=0.5).fields  # noqa: B018


def test_refuses_columns_questions_and_settings_that_do_not_fit(tmp_path):
    save_tiny_model(tmp_path / "run")
    predictor = Predictor(str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"no column 'question'.* or give the predictor `questions`"):
        predictor({"image": []})
    with pytest.raises(ValueError, match="row 1: the question is empty"):
        predictor({"image": [b"text"] * 2, "question": ["where", None]})
    with pytest.raises(ValueError, match="has a column 'answer', as the results have"):
        predictor({"image": [b"text"], "question": ["where"], "answer": ["left"]})
    with pytest.raises(ValueError, match="has a column 'question', as the results have"):
        Predictor(str(tmp_path / "run"), ["where"])({"image": [b"text"], "question": ["what"]})
    with pytest.raises(ValueError, match="Question row 9, 'red"):
        predictor.check_questions([("row 9", "red " * 30)])
    with pytest.raises(ValueError, match="at least one question"):
        Predictor("run", [])
    save_tiny_model(tmp_path / "no_hops", num_attention_layers=0)
    with pytest.raises(ValueError, match="no relevance maps"):
        Predictor(str(tmp_path / "no_hops"), regions=True).model  # noqa: B018


def test_peak_is_the_maximum_and_the_box_its_connected_region():
    relevance = np.zeros((4, 8))
    relevance[1, 2:5] = [0.3, 0.4, 0.25]
    relevance[3, 7] = 0.39  # high, but elsewhere
    relevance[2, 2] = 0.19  # connected, but low
    peak, box = peak_and_box(relevance, (10.0, 0.0, 90.0, 40.0))
    assert peak == [45.0, 15.0]
    assert box == [30.0, 10.0, 60.0, 20.0]


def test_peak_is_where_the_map_of_the_pipeline_has_its_maximum(tmp_path, photos):
    save_tiny_model(tmp_path)
    found = Predictor(str(tmp_path), QUESTIONS, regions=True)({"image": photos})
    ask = load_pipeline(str(tmp_path))
    for row in range(len(found["peak"])):
        relevance = ask.look(found["image"][row], found["question"][row]).relevance[-1]
        y, x = divmod(int(torch.argmax(relevance)), relevance.shape[1])
        width, height = 40 / relevance.shape[1], 30 / relevance.shape[0]
        assert found["peak"][row] == pytest.approx([(x + 0.5) * width, (y + 0.5) * height], abs=0.06)
        left, top, right, bottom = found["box"][row]
        assert left <= found["peak"][row][0] <= right and top <= found["peak"][row][1] <= bottom


def test_loads_the_checkpoint_when_it_is_first_needed():
    predictor = Predictor("nobody/nothing", ["where"])
    assert Path(predictor.checkpoint).name == "nothing"
