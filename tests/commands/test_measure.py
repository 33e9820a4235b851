"""`qca evaluate` and the other commands that measure."""

import json
import sys
from pathlib import Path

import datasets
import pytest
from helpers.data_files import answered_images
from helpers.tiny import save_tiny_model
from qca_cli import measure
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca.training import evaluation
from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.fitting.model_factory import CONFIGURATION


def test_a_batch_has_at_most_batch_size_questions(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "checkpoint")
    answered_images(tmp_path / "data", [["red"], ["blue"], ["green"]])
    sizes, plain = [], QuestionCollator.inputs
    monkeypatch.setattr(QuestionCollator, "inputs", lambda self, rows: sizes.append(len(rows)) or plain(self, rows))
    command = ["evaluate", str(tmp_path / "checkpoint"), str(tmp_path / "data"), "--batch-size", "2"]
    finished = CliRunner().invoke(app, [*command, "--output-dir", str(tmp_path / "out")])
    assert finished.exit_code == 0, finished.output
    assert sizes[:2] == [2, 1]


@pytest.mark.parametrize("hops", [0, 2])
def test_evaluate_writes_results_rows_and_a_page(tmp_path, hops):
    model = save_tiny_model(tmp_path / "checkpoint", num_attention_layers=hops)
    answered_images(tmp_path / "data", [["red"] * 3, ["blue"] * 3, ["red", "blue", "green"]])
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
    assert results["baselines"]["best_single_answer"]["accuracy"] == pytest.approx((1 + 1 / 3) / 3)
    assert [sorted(answers) for answers in details["expected_answers"]] == [
        sorted(given[q]) for q in details["question"]
    ]
    assert results["data"]["vocabulary"]["validation"]["coverage"] == 1
    assert "vqa_accuracy_other" in results["metrics"]
    assert f"vqa accuracy: {results['metrics']['vqa_accuracy']:.3f}" in finished.output
    assert "what is 2" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [("runs/demo/checkpoint", "demo-checkpoint"), ("runs/rooms", "rooms"), ("rooms", "rooms"), ("./a/b/", "a-b")],
)
def test_results_go_to_a_folder_named_after_the_checkpoint(checkpoint, folder, tmp_path, monkeypatch):
    folders = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "print_results", lambda results: None)
    monkeypatch.setattr(
        "modeling_qca.training.evaluation.evaluation.evaluate_checkpoint", lambda *given: folders.append(given[4])
    )
    (tmp_path / checkpoint).mkdir(parents=True)
    (tmp_path / checkpoint / "config.json").touch()
    finished = CliRunner().invoke(app, ["evaluate", checkpoint], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    assert folders == [Path("runs/evaluate") / folder]


@pytest.mark.parametrize("command", ["results", "faithfulness"])
def test_a_missing_matplotlib_is_reported_before_training_or_reading(command, tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    arguments = {
        "results": [str(CONFIGURATION / "recipes" / "results" / "rooms.yaml"), "--data", str(tmp_path)],
        "faithfulness": [str(tmp_path), str(tmp_path)],
    }
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "modeling_qca.training.evaluation.figures", raising=False)
    monkeypatch.delattr(evaluation, "figures", raising=False)
    monkeypatch.setattr(
        "modeling_qca.training.experiments.results_run.train", lambda *arguments: pytest.fail("trained")
    )
    with pytest.raises(ImportError, match=r"modeling-qca\[figures\]"):
        CliRunner().invoke(app, [command, *arguments[command]], catch_exceptions=False)


def test_bench_measures_the_chosen_cases_alone(tmp_path, monkeypatch):
    measured = {"preset": "qca-tiny", "photos": 1, "questions": 1, "preprocessing": 9.0, "model": 4.0, "predict": 3.0}
    monkeypatch.setattr(
        "modeling_qca.training.benchmark.speed.measure_prediction", lambda *arguments: {**measured, "ratio": 0.75}
    )
    command = ["bench", "--quick", "--output-dir", str(tmp_path / "bench"), "--cases"]
    finished = CliRunner().invoke(app, [*command, "prediction"], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    assert json.loads((tmp_path / "bench" / "benchmark.json").read_text())["cases"] == {}
    assert "reaches 75% of the model's own speed" in (tmp_path / "bench" / "benchmark.md").read_text()
    with pytest.raises(ValueError, match=r"no benchmark case two_pairs; the cases are one_pair, .*, prediction"):
        CliRunner().invoke(app, [*command, "prediction, two_pairs"], catch_exceptions=False)
