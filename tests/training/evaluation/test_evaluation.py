"""`qca evaluate`: what it measures of a checkpoint on a data set, and what it refuses."""

import io
import json

import datasets
import numpy as np
import pytest
from helpers.data_files import draw, write_json
from helpers.tiny import save_tiny_model, tiny_image, tiny_model, tiny_processor
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.evaluation.evaluation import (
    attention_table,
    compute_metrics,
    evaluate_checkpoint,
    milliseconds_per_question,
    shuffle_questions,
)


def write_rows(folder, answers):
    lines = []
    for number, given in enumerate(answers):
        draw(folder / "images" / f"{number}.png", shade=40 * number)
        lines.append(json.dumps({"image": f"{number}.png", "question": f"what is {number}", "answers": given}))
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")


def test_the_official_accuracy_stands_beside_the_plain_one():
    answers = [[{"answer": "yes", "count": 10}], [{"answer": "2", "count": 2}, {"answer": "3", "count": 8}]]
    rows = datasets.Dataset.from_dict({"answers": answers})
    measured = compute_metrics(["vqa_accuracy"], ["yes", "2"], rows)
    two_of_ten = (8 * 2 / 3 + 2 * 1 / 3) / 10  # the subsets that leave one annotator out
    assert measured["vqa_accuracy_yes/no"] == 1 and measured["vqa_accuracy_number"] == pytest.approx(two_of_ten)
    assert measured["vqa_accuracy"] == pytest.approx((1 + two_of_ten) / 2)
    with pytest.raises(ValueError, match="no metric 'bleu'; the metrics are vqa_accuracy, wups"):
        compute_metrics(["bleu"], ["yes", "2"], rows)


def test_only_questions_whose_image_has_others_are_shuffled():
    rows = datasets.Dataset.from_dict({"image_id": ["a", "b", "a", "c"], "question": ["1", "2", "3", "4"]})
    shuffled, indices = shuffle_questions(rows, seed=0)
    assert (indices, shuffled["image_id"][:], shuffled["question"][:]) == ([0, 2], ["a", "a"], ["3", "1"])


def test_maps_of_shuffled_questions_are_compared_with_the_targets_they_do_not_belong_to():
    corner, other = np.zeros((2, 4, 4), np.float32)
    corner[0, 0] = other[3, 3] = 1
    rows = datasets.Dataset.from_dict({"relevance": [[corner], [other], [corner]]})
    maps = [corner[None], other[None], corner[None]]
    pointing = attention_table(maps, rows, {0: other[None], 1: other[None]})["pointing"]
    assert (pointing["model"], pointing["shuffled_question"]) == (1, 0.5)
    table = attention_table(maps, rows, {1: other[None]})
    assert table["pointing"]["shuffled_question"] == 1
    assert table["maps"] == {"model": 3, "center": 3, "uniform": 3, "shuffled_question": 1}
    assert set(attention_table(maps, rows, {})["pointing"]) == {"model", "center", "uniform"}


def test_answers_are_scored_by_the_rules_of_the_training_unless_told(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    write_rows(tmp_path / "data", [["red", "green", "blue", "yes", "no"]])  # a set of which all are right
    told = str(tmp_path / "checkpoint"), str(tmp_path / "data"), "validation"
    accuracies = [evaluate_checkpoint(*told, {}, tmp_path / "out", 0)["metrics"]["accuracy"]]
    recipe = {"answer_rule": "set", "normalize_answers": True}
    write_json(tmp_path / "checkpoint" / "results.json", {"recipe": recipe})
    for options in ({}, {"answer_rule": "consensus"}):
        accuracies.append(evaluate_checkpoint(*told, options, tmp_path / "out", 0)["metrics"]["accuracy"])
    assert accuracies == pytest.approx([4 / 15, 1, 4 / 15])
    (tmp_path / "checkpoint" / "results.json").unlink()
    write_json(tmp_path / "checkpoint" / "_recipe.json", recipe)  # as in the folder of a baseline
    results = evaluate_checkpoint(*told, {}, tmp_path / "out", 0)
    assert results["metrics"]["accuracy"] == 1 and results["data"]["answer_rule"] == "set"
    for content, message in (
        ("[]", r"_recipe\.json is of no training"),
        ('{"normalize_answers": 1}', "is 1, neither"),
    ):
        (tmp_path / "checkpoint" / "_recipe.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            evaluate_checkpoint(*told, {}, tmp_path / "out", 0)


def test_no_more_questions_are_answered_at_once_than_told(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "checkpoint")
    write_rows(tmp_path / "data", [["red"], ["blue"], ["green"]])
    sizes, plain = [], QuestionCollator.__call__
    monkeypatch.setattr(QuestionCollator, "__call__", lambda self, rows: sizes.append(len(rows)) or plain(self, rows))
    command = ["evaluate", str(tmp_path / "checkpoint"), str(tmp_path / "data"), "--batch-size", "2"]
    finished = CliRunner().invoke(app, [*command, "--output-dir", str(tmp_path / "out")])
    assert finished.exit_code == 0, finished.output
    assert sizes[:2] == [2, 1]


@pytest.mark.parametrize("hops", [0, 2])
def test_the_command_writes_results_rows_and_a_page(tmp_path, hops):
    model = save_tiny_model(tmp_path / "checkpoint", num_attention_layers=hops)
    write_rows(tmp_path / "data", [["red"] * 3, ["blue"] * 3, ["red", "blue", "green"]])
    arguments = ["evaluate", str(tmp_path / "checkpoint"), str(tmp_path / "data"), "--metrics", "vqa_accuracy"]
    outputs = ["--output-dir", str(tmp_path / "out"), "--report", str(tmp_path / "page.html")]
    finished = CliRunner().invoke(app, arguments + outputs)
    assert finished.exit_code == 0, finished.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    details = datasets.Dataset.from_parquet(str(tmp_path / "out" / "questions.parquet"))
    assert set(details["answer"]) <= set(model.config.id2label.values())
    given = {
        "what is 0": {"red": 1},
        "what is 1": {"blue": 1},
        "what is 2": dict.fromkeys(("red", "blue", "green"), 1 / 3),
    }
    scores = [given[row["question"]].get(row["answer"], 0.0) for row in details]
    assert details["score"][:] == pytest.approx(scores)
    assert results["metrics"]["accuracy"] == pytest.approx(sum(scores) / 3)
    assert results["baselines"]["majority"]["accuracy"] == pytest.approx((1 + 1 / 3) / 3)
    assert "vqa_accuracy_other" in results["metrics"]
    assert f"vqa accuracy: {results['metrics']['vqa_accuracy']:.3f}" in finished.output
    assert "what is 2" in (tmp_path / "page.html").read_text()


def test_answers_are_normalized_only_where_the_checkpoint_was_trained_so(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    model = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "checkpoint")
    answers = [f"night_{number}" for number in range(model.config.num_labels)]
    model.config.id2label, model.config.label2id = dict(enumerate(answers)), {a: n for n, a in enumerate(answers)}
    model.save_pretrained(tmp_path / "checkpoint")
    write_rows(tmp_path / "data", [answers])  # any of them is right
    accuracy = [
        evaluate_checkpoint(
            str(tmp_path / "checkpoint"),
            str(tmp_path / "data"),
            "validation",
            {"answer_rule": "set", "normalize_answers": normalize},
            tmp_path / "out",
            0,
        )["metrics"]["accuracy"]
        for normalize in (False, True)
    ]
    assert accuracy == [1, 0]


@pytest.mark.parametrize(
    ("options", "metrics", "message"),
    [
        ({}, ["bleu"], "no metric 'bleu'"),
        ({"split": "test"}, [], "option 'split' does not belong"),
        ({"streaming": True}, [], "option 'streaming' does not belong"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(tmp_path, options, metrics, message):
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoint("none", "none", "validation", options, tmp_path / "out", 0, metrics=metrics)


@pytest.mark.parametrize("crops", [False, True])
def test_maps_of_a_crop_are_not_compared_with_targets_of_the_whole_picture(tmp_path, caplog, crops):
    save_tiny_model(tmp_path / "checkpoint")
    crop_size = {"height": 32, "width": 32}
    tiny_processor(do_center_crop=crops, crop_size=crop_size).save_pretrained(tmp_path / "checkpoint")
    write_rows(tmp_path / "data", [["red"], ["blue"]])
    np.savez(tmp_path / "data" / "validation_relevance.npz", mask=np.eye(4)[None].repeat(2, axis=0))
    arguments = (str(tmp_path / "checkpoint"), str(tmp_path / "data"), "validation", {}, tmp_path / "out", 0)
    assert bool(evaluate_checkpoint(*arguments)["attention"]) == (not crops)
    assert ("set `do_center_crop=False`" in caplog.text) == crops


def test_a_question_is_timed_with_an_image_of_its_own():
    """Where all are about one image, as where it is blank, the vision encoder would run once for all of them."""
    model, seen, png = tiny_model(), [], io.BytesIO()
    tiny_image().save(png, "PNG")
    picture = {"path": None, "bytes": png.getvalue()}
    answers = [{"answer": "red", "count": 1}]
    row = {"image": picture, "image_id": "blank", "question": "red", "answers": answers}
    rows = datasets.Dataset.from_list([row] * 3).cast_column("image", datasets.Image(decode=False))
    model.register_forward_pre_hook(lambda _, args, inputs: seen.append(len(inputs["pixel_values"])), with_kwargs=True)
    assert milliseconds_per_question(model, rows, QuestionCollator(tiny_processor(), model.config), rounds=1) > 0
    assert set(seen) == {3}


def test_an_answer_rule_there_is_none_of_is_refused(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="`answer_rule` is 'sets', not one of consensus, set"):
        evaluate_checkpoint(
            str(tmp_path / "checkpoint"), str(tmp_path), "validation", {"answer_rule": "sets"}, tmp_path / "out", 0
        )
    assert not (tmp_path / "out").exists()


def test_a_split_without_answers_is_named(tmp_path):
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
