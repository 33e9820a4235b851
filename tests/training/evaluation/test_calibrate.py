"""`qca calibrate`, and what uses its files: abstention in `qca ask` and `qca evaluate`, and `qca push`."""

import json
import shutil

import numpy as np
import pytest
from helpers.data_files import draw
from helpers.tiny import save_tiny_model, tiny_image
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering
from modeling_qca.training.confidence.calibration_error import calibration_error
from modeling_qca.training.confidence.temperature import fit_temperature
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.evaluation.calibrate import (
    calibrate_checkpoint,
    cross_fit,
    embed_questions,
    read_familiarity,
)
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.evaluation.evaluation import evaluate_checkpoint
from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.training_run import train

RECIPE = {"model": "qca-tiny", "max_steps": 1, "attention_supervision": "none", "disable_tqdm": True}
RECIPE |= {"validation_ratio": 0.4, "group_by": "image_id", "abstain_answer": "unsure"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    lines = ["image_id,question,answer"]
    for row in range(48):
        draw(folder / "data" / "images" / f"image{row // 2}.png", shade=10 * (row // 2))
        lines.append(f"image{row // 2},what is {row % 7},{('red', 'blue', 'unsure')[row % 3]}")
    (folder / "data" / "train.csv").write_text("\n".join(lines) + "\n")
    recipe = RECIPE | {"data": str(folder / "data"), "output_dir": str(folder / "run")}
    train(make_recipe(recipe, "test"))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained / "run", tmp_path / "run")


def test_temperature_is_stored_and_divides_the_logits_of_probabilities_alone(run):
    before = QCAForVisualQuestionAnswering.from_pretrained(run)
    content = calibrate_checkpoint(str(run))
    model = QCAForVisualQuestionAnswering.from_pretrained(run)
    assert before.config.temperature == 1 != content["temperature"] == model.config.temperature
    stored = json.loads((run / "calibration.json").read_text())
    assert stored == content and len(stored["thresholds"]) == 100 and stored["abstain_answer"] == "unsure"
    assert len(stored["folds"]) == 5 and stored["data"]["rows"] == len(load_rows(**_validation(run)))
    assert "confidence_qca" in (run / "processing_qca.py").read_text() and (run / "confidence_qca.py").exists()


def _validation(run):
    known = json.loads((run / "run.json").read_text())
    cut = {"validation_ratio": 0.4, "group_by": "image_id", "seed": known["data_seed"]}
    return {"data": known["data"], "split": "validation", **cut}


@pytest.mark.parametrize("apart", [False, True])
def test_folds_keep_the_groups_of_a_run_with_its_own_validation_file(tmp_path, apart):
    for split, first in (("train", 0), ("validation", 24)):
        lines = ["image_id,question,answer,street"]
        for row in range(24):
            name = f"image{first + row // 2}"
            draw(tmp_path / split / "images" / f"{name}.png", shade=2 * (first + row))
            lines.append(f"{name},what is {row % 7},{('red', 'blue')[row % 2]},{split} {row // 6}")
        folder = (
            tmp_path / split if apart else shutil.copytree(tmp_path / split, tmp_path / "data", dirs_exist_ok=True)
        )
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    places = {"data": str(tmp_path / "data")}
    if apart:
        places = {"data": str(tmp_path / "train"), "validation_data": str(tmp_path / "validation")}
    own = {"validation_ratio": None, "group_by": "street", "output_dir": str(tmp_path / "run"), "abstain_answer": None}
    train(make_recipe(RECIPE | own | places, "test"))
    content = calibrate_checkpoint(str(tmp_path / "run"))
    assert content["group_by"] == "street" and len(content["folds"]) == 4


def test_each_fold_is_measured_at_the_temperature_of_the_others():
    generator = np.random.default_rng(0)
    logits, folds = 4 * generator.normal(size=(300, 4)), np.arange(300) % 3
    scores = (generator.random(300) < 0.4).astype(float)
    content = cross_fit(logits, scores, np.zeros(300, bool), [str(n) for n in range(300)], folds, False, 0)
    sure = np.zeros(300)
    for fold in range(3):
        here = folds == fold
        scaled = logits / fit_temperature(logits[~here], scores[~here])
        sure[here] = (np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)).max(axis=1)[here]
    assert content["after"]["calibration"]["ece"] == pytest.approx(calibration_error(sure, scores))
    assert content["after"]["calibration"]["ece"] < 0.5 * content["before"]["calibration"]["ece"]
    assert content["temperature"] == fit_temperature(logits, scores) not in content["folds"]


def test_refuses_rows_of_images_that_the_run_was_trained_on(run, trained):
    options = {"validation_ratio": 0.4, "group_by": "image_id", "seed": 9}  # another cut than the run's
    with pytest.raises(ValueError, match=r"was trained on \d+ of the \d+ images"):
        calibrate_checkpoint(str(run), str(trained / "data"), None, options)
    assert not (run / "calibration.json").exists() and QCAConfig.from_pretrained(run).temperature == 1


def test_evaluation_warns_of_images_that_the_temperature_was_fitted_on(run, tmp_path, caplog):
    every_answer = {"abstain_answer": None}
    calibrate_checkpoint(str(run), options=every_answer)
    results = evaluate_checkpoint(str(run), None, None, every_answer, tmp_path / "out", 0, coverage=0.8)
    assert results["data"]["images_calibrated_on"] == results["data"]["images"] > 0
    assert "images to evaluate on were calibrated on" in caplog.text
    stored = json.loads((run / "calibration.json").read_text())
    assert results["calibration"]["temperature"] == stored["temperature"]
    assert results["selective"]["chosen"]["threshold"] == pytest.approx(stored["thresholds"][79])
    one_row = 1 / results["data"]["rows"]  # the row at the threshold may fall below it by rounding
    assert results["selective"]["chosen"]["coverage"] >= 0.8 - one_row - 1e-9


def test_an_answer_that_means_no_answer_counts_as_abstaining_in_an_evaluation(run, tmp_path):
    results = evaluate_checkpoint(str(run), None, None, {}, tmp_path / "out", 0, report=tmp_path / "page.html")
    import pandas as pd

    details = pd.read_parquet(tmp_path / "out" / "questions.parquet")
    assert (details["abstained"] == (details["answer"] == "unsure")).all()
    assert results["selective"]["answered"] == pytest.approx((details["answer"] != "unsure").mean())
    assert "chosen" not in results["selective"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "Expected calibration error" in page


def test_ask_gives_no_answer_below_the_threshold_and_flags_an_unfamiliar_question(run, tmp_path):
    calibrate_checkpoint(str(run))
    assert read_familiarity(run) is not None
    tiny_image().save(tmp_path / "image.png")
    given = ["ask", str(run), str(tmp_path / "image.png"), "what is 1", "serendipity quickly ate my homework"]
    asked = CliRunner().invoke(app, [*given, "--threshold", "1"], catch_exceptions=False)
    assert asked.output.count("no answer: the probability") + asked.output.count("the model says 'unsure'") == 2
    assert asked.output.count("unlike the questions it was trained on: distance") == 1
    refused = CliRunner().invoke(app, [*given, "--threshold", "1", "--coverage", "0.5"])
    assert isinstance(refused.exception, ValueError) and "choose one of them" in str(refused.exception)


def test_embeddings_are_those_of_each_question_alone_in_the_order_asked(run):
    pipeline = load_pipeline(str(run))
    questions = ["what is 3", "is there a big red ball in the picture", "what is 3", "what is"]
    together = embed_questions(pipeline.model, pipeline.processor, questions)
    for question, embedding in zip(questions, together, strict=True):
        alone = pipeline.model.get_text_features(**pipeline.processor(text=question)).pooler_output[0]
        assert embedding == pytest.approx(alone.detach().numpy(), abs=1e-5)


def test_training_from_a_calibrated_checkpoint_starts_at_temperature_one(run, trained, tmp_path):
    calibrate_checkpoint(str(run))
    recipe = RECIPE | {"data": str(trained / "data"), "output_dir": str(tmp_path / "next"), "model": str(run)}
    train(make_recipe(recipe, "test"))
    assert QCAConfig.from_pretrained(tmp_path / "next").temperature == 1


def test_calibrate_command_prints_the_error_before_and_after(run):
    finished = CliRunner().invoke(app, ["calibrate", str(run)], catch_exceptions=False)
    assert finished.exit_code == 0
    for text in ("temperature: ", "before", "after", "calibration error", "questions farther than"):
        assert text in finished.output


def test_refuses_a_checkpoint_of_the_hub_and_rows_of_one_image(tmp_path):
    with pytest.raises(ValueError, match="pass the local folder of a whole model"):
        calibrate_checkpoint("owner/name", str(tmp_path))
    save_tiny_model(tmp_path / "checkpoint")
    draw(tmp_path / "data" / "images" / "0.png")
    rows = [json.dumps({"image": "0.png", "question": f"what is {n}", "answer": "red"}) for n in range(3)]
    (tmp_path / "data" / "validation.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="3 questions in one group"):
        calibrate_checkpoint(str(tmp_path / "checkpoint"), str(tmp_path / "data"))
