"""`qca evaluate`: the results of a checkpoint on a data set, and the arguments that it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.data_files import answered_images, draw, write_json
from helpers.tiny import save_tiny_model, tiny_processor

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.training.evaluation.evaluation import evaluate_checkpoint
from modeling_qca.training.fitting.recipe import make_recipe
from modeling_qca.training.fitting.training_run import train


def test_scores_answers_by_the_rule_of_the_training_unless_given(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    answered_images(tmp_path / "data", [["red", "green", "blue", "yes", "no"]])  # a set of which all are right
    told = str(tmp_path / "checkpoint"), str(tmp_path / "data"), "validation"
    accuracies = [evaluate_checkpoint(*told, {}, tmp_path / "defaults", 0)["metrics"]["accuracy"]]
    recipe = {"answer_rule": "set", "normalize_answers": True}
    write_json(tmp_path / "checkpoint" / "results.json", {"recipe": recipe})
    for options in ({}, {"answer_rule": "consensus"}):
        out = tmp_path / f"out{len(options)}"
        accuracies.append(evaluate_checkpoint(*told, options, out, 0)["metrics"]["accuracy"])
    assert accuracies == pytest.approx([4 / 15, 1, 4 / 15])
    (tmp_path / "checkpoint" / "results.json").unlink()
    write_json(tmp_path / "checkpoint" / "_recipe.json", recipe)  # as in the folder of a baseline
    results = evaluate_checkpoint(*told, {}, tmp_path / "out0", 0)
    assert results["metrics"]["accuracy"] == 1 and results["data"]["answer_rule"] == "set"
    for content, message in (
        ("[]", r"_recipe\.json was written by no training"),
        ('{"normalize_answers": 1}', "`normalize_answers` is 1"),
    ):
        (tmp_path / "checkpoint" / "_recipe.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            evaluate_checkpoint(*told, {}, tmp_path / "out0", 0)


def test_normalizes_answers_only_if_the_option_says_so(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    model = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "checkpoint")
    answers = [f"night_{number}" for number in range(model.config.num_labels)]
    model.config.id2label, model.config.label2id = dict(enumerate(answers)), {a: n for n, a in enumerate(answers)}
    model.save_pretrained(tmp_path / "checkpoint")
    written = [f"Night {number}" for number in range(len(answers))]
    answered_images(tmp_path / "data", [written])  # each of them is right after normalization
    accuracy = [
        evaluate_checkpoint(
            str(tmp_path / "checkpoint"),
            str(tmp_path / "data"),
            "validation",
            {"answer_rule": "set", "normalize_answers": normalize},
            tmp_path / str(normalize),
            0,
        )["metrics"]["accuracy"]
        for normalize in (False, True)
    ]
    assert accuracy == [0, 1]


def test_reports_the_share_of_answers_that_the_vocabulary_lacks(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    answers = [["rouge"]] * 9 + [["red"]] + [["rouge"]] * 11  # rows are sorted: 9.png comes last
    answered_images(tmp_path / "data", answers)
    told = str(tmp_path / "checkpoint"), str(tmp_path / "data"), "validation"
    results = evaluate_checkpoint(*told, {}, tmp_path / "out", 0, batch_size=8)
    reach = results["data"]["vocabulary"]["validation"]
    assert reach["rows"] == 21 and reach["coverage"] == pytest.approx(1 / 21)


def test_warns_when_no_row_has_an_answer_of_the_model(tmp_path, caplog):
    save_tiny_model(tmp_path / "checkpoint")
    for name, answers in (("none", ["rouge", "bleu"]), ("one", ["rouge", "red"])):
        answered_images(tmp_path / name, [[answer] for answer in answers])
        evaluate_checkpoint(
            str(tmp_path / "checkpoint"), str(tmp_path / name), "validation", {}, tmp_path / "out" / name, 0
        )
    assert caplog.text.count("None of") == 1
    assert "None of 2 questions has an answer of the model (red, green, blue, ...): check the data" in caplog.text


@pytest.mark.parametrize(
    ("options", "metrics", "message"),
    [
        ({}, ["bleu"], "no metric 'bleu'"),
        ({"split": "test"}, [], "option 'split' does not belong"),
        ({"streaming": True}, [], "option 'streaming' does not belong"),
    ],
)
def test_refuses_invalid_arguments_before_loading_anything(tmp_path, options, metrics, message):
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoint("none", "none", "validation", options, tmp_path / "out", 0, metrics=metrics)


@pytest.mark.parametrize("crops", [False, True])
def test_does_not_measure_attention_if_the_image_processor_crops(tmp_path, caplog, crops):
    save_tiny_model(tmp_path / "checkpoint")
    crop_size = {"height": 32, "width": 32}
    tiny_processor(do_center_crop=crops, crop_size=crop_size).save_pretrained(tmp_path / "checkpoint")
    answered_images(tmp_path / "data", [["red"], ["blue"]])
    np.savez(tmp_path / "data" / "validation_relevance.npz", mask=np.eye(4)[None].repeat(2, axis=0))
    arguments = (str(tmp_path / "checkpoint"), str(tmp_path / "data"), "validation", {}, tmp_path / "out", 0)
    assert bool(evaluate_checkpoint(*arguments)["attention"]) == (not crops)
    assert ("set `do_center_crop=False`" in caplog.text) == crops


def test_refuses_an_unknown_answer_rule(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="`answer_rule` is 'sets', not one of consensus, set"):
        evaluate_checkpoint(
            str(tmp_path / "checkpoint"), str(tmp_path), "validation", {"answer_rule": "sets"}, tmp_path / "out", 0
        )
    assert not (tmp_path / "out").exists()


def test_refuses_a_split_without_answers(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    questions = {"questions": [{"image_id": 7, "question": "what is red", "question_id": 70}]}
    write_json(tmp_path / "vqa" / "v2_OpenEnded_mscoco_test2015_questions.json", questions)
    draw(tmp_path / "coco" / "test2015" / "COCO_test2015_000000000007.jpg")
    options = {"format": "vqa_v2", "images": tmp_path / "coco"}
    with pytest.raises(ValueError, match="no question of its test2015 split has an answer"):
        evaluate_checkpoint(
            str(tmp_path / "checkpoint"), str(tmp_path / "vqa"), "test2015", options, tmp_path / "out", 0
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training whose validation rows are cut from its data, image by image."""
    folder = tmp_path_factory.mktemp("run")
    lines = ["image_id,question,answer"]
    for row in range(24):
        draw(folder / "data" / "images" / f"image{row // 2}.png", shade=20 * (row // 2))
        answer = f"seldom {row}" if row % 4 == 3 else "red" if row % 3 else "blue"  # `red` in 12 of 24 rows
        lines.append(f"image{row // 2},what is {row},{answer}")
    (folder / "data" / "train.csv").write_text("\n".join(lines) + "\n")
    values = {"model": "qca-tiny", "max_steps": 1, "baselines": [], "attention_supervision": "none"}
    values |= {"validation_ratio": 0.4, "group_by": "image_id", "data_seed": 3, "disable_tqdm": True}
    train(make_recipe(values | {"data": str(folder / "data"), "output_dir": str(folder / "run")}, "test"))
    return folder


def test_evaluates_a_run_on_its_own_validation_rows(run, caplog):
    trained = json.loads((run / "run" / "results.json").read_text())
    results = evaluate_checkpoint(str(run / "run"), None, None, {}, run / "evaluation", 0)
    assert results["metrics"] == pytest.approx(trained["metrics"])
    assert results["baselines"]["majority"] == pytest.approx(trained["baselines"]["majority"])
    for entry in ("name", "split", "fingerprint"):
        assert results["data"][entry] == trained["data"][entry]
    reach = results["data"]["vocabulary"]["validation"]
    assert reach == trained["data"]["vocabulary"]["validation"] and 0 < reach["oracle_ceiling"] < 1
    assert results["data"]["images_trained_on"] == 0 and "trained on" not in caplog.text
    rows = [pd.read_parquet(folder / "questions.parquet") for folder in (run / "run", run / "evaluation")]
    pd.testing.assert_frame_equal(*rows, check_exact=False)


def test_warns_when_evaluation_images_were_trained_on(run, caplog):
    options = {"validation_ratio": 0.4, "group_by": "image_id", "seed": 4}  # another cut than the run's
    results = evaluate_checkpoint(str(run / "run"), str(run / "data"), None, options, run / "other cut", 0)
    seen = {
        name: set(pd.read_parquet(run / folder / "questions.parquet")["image_id"])
        for name, folder in (("own", "run"), ("other", "other cut"))
    }
    trained_on = len(seen["other"] - seen["own"])
    assert trained_on and results["data"]["images_trained_on"] == trained_on
    assert f"{trained_on} of the {len(seen['other'])} images" in caplog.text


def test_requires_data_for_a_checkpoint_that_remembers_none(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(ValueError, match=r"has no run\.json"):
        evaluate_checkpoint(str(tmp_path), None, None, {}, tmp_path / "out", 0)


@pytest.mark.parametrize(("split", "options"), [("test", {}), (None, {"group_by": "image_id"})])
def test_refuses_a_split_or_options_without_data(run, split, options):
    with pytest.raises(ValueError, match="name the data too"):
        evaluate_checkpoint(str(run / "run"), None, split, options, run / "out", 0)


def test_refuses_to_overwrite_the_results_of_something_else(run, tmp_path):
    before = (run / "run" / "results.json").read_text()
    with pytest.raises(ValueError, match="holds the results of something else"):
        evaluate_checkpoint(str(run / "run"), None, None, {}, run / "run", 0)
    assert (run / "run" / "results.json").read_text() == before
    for _ in range(2):  # the same evaluation may be repeated
        evaluate_checkpoint(str(run / "run"), None, None, {}, tmp_path / "out", 0)
    with pytest.raises(ValueError, match="choose another output folder"):
        evaluate_checkpoint(str(run / "run"), str(run / "data"), "train", {}, tmp_path / "out", 0)
