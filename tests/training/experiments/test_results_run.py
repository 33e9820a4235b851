"""Running a table: a table trained once, and what a second call trains, measures and warns of."""

import dataclasses
import json
import os
import shutil

import pandas as pd
import pytest
from helpers.finished_runs import run_results, write_run
from safetensors.torch import load_file

from modeling_qca.hub_card.row_card import write_row_cards
from modeling_qca.training.experiments import results_run, results_summary
from modeling_qca.training.experiments.results_report import rows_table
from modeling_qca.training.experiments.results_run import run_table
from modeling_qca.training.experiments.results_table import ResultsRow, ResultsTable, load_table
from modeling_qca.training.fitting.splits import load_splits
from modeling_qca.training.supervision.scenes import write_scenes

RECIPE = """
model: qca-tiny
max_steps: 1
per_device_train_batch_size: 16
save_strategy: "no"
eval_strategy: "no"
disable_tqdm: true
"""
TABLE = """
recipe: recipe.yaml
seeds: [0, 1]
common: {attention_supervision: last_hop}
rows:
  reference model: {baseline: reference_model, attention_supervision: none, faithfulness_questions: 1}
  plain: {faithfulness_questions: 1}
  "budget 50 %, learned": {init_from: plain, token_budget: 32, token_budget_layer: 1, freeze: [vision, text]}
  blind: {baseline: blank_images, num_attention_layers: 0, attention_supervision: none}
"""
STALE = ("faithfulness.json", "faithfulness.png", "reference_model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The table, its folder, and the summary after the first of its two seeds."""
    folder = tmp_path_factory.mktemp("table")
    write_scenes(folder / "scenes", {"train": 6, "validation": 2}, seed=0)
    (folder / "recipe.yaml").write_text(RECIPE + f"data: {folder / 'scenes'}\n")
    (folder / "table.yaml").write_text(TABLE)
    table, out = load_table(folder / "table.yaml"), folder / "out"
    (out / "budget_50_learned" / "0").mkdir(parents=True)
    for name in STALE:  # of another model that was in this folder
        (out / "budget_50_learned" / "0" / name).touch()
    return table, out, run_table(table, out, [0], after_run=lambda summary: write_row_cards(table, summary, out))


def test_writes_summary_tables_figure_and_cards(trained):
    table, out, summary = trained
    assert [(row["name"], row["seeds"]) for row in summary["rows"]] == [(row.name, [0]) for row in table.rows]
    assert json.loads((out / "results.json").read_text()) == summary
    assert (out / "results.md").read_text() == rows_table(summary) + "\n" and (out / "results.png").exists()
    run = json.loads((out / "plain" / "0" / "results.json").read_text())
    row = summary["rows"][1]
    assert row["accuracy"]["all"]["mean"] == run["metrics"]["accuracy"]
    assert row["attention"]["pointing"]["model"]["mean"] == run["attention"]["pointing"]["model"]
    assert summary["majority"] == run["baselines"]["majority"]["accuracy"]
    assert row["cost"]["milliseconds_per_question"] > 0 and row["faithfulness_questions"] == 1
    assert "gain" in row and "faithfulness" not in summary["rows"][2]
    cards = {file.parent.name for file in out.glob("*/README.md")}
    assert cards == {"plain", "budget_50_learned", "blind"}  # the reference model has no checkpoint


def test_row_starts_from_the_checkpoint_that_it_names(trained):
    _, out, _ = trained
    plain, budget = (load_file(out / row / "0" / "model.safetensors") for row in ("plain", "budget_50_learned"))
    frozen = "qca.vision_encoder.backbone.embeddings.cls_token"
    assert plain[frozen].equal(budget[frozen])


def test_removes_what_was_measured_of_a_replaced_model(trained):
    _, out, summary = trained
    assert not any((out / "budget_50_learned" / "0" / name).exists() for name in STALE)
    assert "faithfulness" not in summary["rows"][2]


def test_faithfulness_of_the_reference_model_is_of_its_trained_weights(trained):
    table, out, _ = trained
    folder = out / "reference_model" / "0"
    (asked,) = load_splits(table.recipe(table.rows[0], 0, out))[1].shuffle(seed=0)["question_id"][:1]
    confidence = pd.read_parquet(folder / "questions.parquet").set_index("question_id").loc[asked, "confidence"]
    curves = json.loads((folder / "faithfulness.json").read_text())["curves"]
    assert curves.keys() == {"relevance", "random", "cls_attention"}
    first = curves["relevance"]["deletion"]["positive"]["probability"][0]
    assert first == pytest.approx(confidence, abs=1e-5)


def test_finished_runs_are_neither_trained_nor_measured_again(trained):
    table, out, summary = trained
    files = [file for file in out.glob("*/0/*.json") if file.name in ("results.json", "faithfulness.json")]
    before = [file.stat().st_mtime_ns for file in files]
    again = run_table(table, out, [0])
    assert again | {"command": summary["command"]} == summary and len(files) == 6
    assert [file.stat().st_mtime_ns for file in files] == before


def test_requires_the_weights_of_a_reference_model_to_measure_it(trained, tmp_path):
    table, out, _ = trained
    folder = out / "reference_model" / "0"
    for file in ("faithfulness.json", "reference_model.safetensors"):
        shutil.move(folder / file, tmp_path)
    with pytest.raises(ValueError, match=r"reference_model/0 has no .*remove the folder"):
        run_table(table, out, [0])
    for file in ("faithfulness.json", "reference_model.safetensors"):
        shutil.move(tmp_path / file, folder)


@pytest.fixture
def stubbed(monkeypatch):
    """Training writes a fixed result, and faithfulness its number of questions; the calls are recorded."""
    calls = []

    def train(recipe, baseline):
        if not (recipe.output_dir / "results.json").exists():
            calls.append((recipe.output_dir.parent.name, recipe.output_dir.name))
            write_run(recipe.output_dir, run_results(0.5, recipe={"seed": recipe.arguments["seed"]}))

    def read(recipe, baseline):
        file = recipe.output_dir / "results.json"
        results = json.loads(file.read_text()) if file.exists() else None
        return results if results and results["recipe"] == {"seed": recipe.arguments["seed"]} else None

    monkeypatch.setattr(results_run, "train", train)
    for module in (results_run, results_summary):
        monkeypatch.setattr(module, "finished_results", read)
    rows = [ResultsRow("first", {}), ResultsRow("second", {}, init_from="first")]
    return ResultsTable("table", [0, 1], {"model": "qca-tiny", "data": "scenes"}, rows), calls


def test_trains_seed_by_seed_and_row_by_row(stubbed, tmp_path):
    table, calls = stubbed
    summaries = []
    run_table(table, tmp_path, after_run=summaries.append)
    assert calls == [("first", "0"), ("second", "0"), ("first", "1"), ("second", "1")]
    assert [[row["seeds"] for row in summary["rows"]] for summary in summaries] == [
        [[0]],
        [[0], [0]],
        [[0, 1], [0]],
        [[0, 1], [0, 1]],
    ]
    run_table(table, tmp_path, after_run=summaries.append)
    assert len(calls) == 4 and len(summaries) == 5  # a table of finished runs is written once


def test_refuses_an_unknown_seed(stubbed, tmp_path):
    table, calls = stubbed
    with pytest.raises(ValueError, match="no seed 7; its seeds are 0, 1"):
        run_table(table, tmp_path, seeds=[7])
    assert not calls


def test_refuses_an_unknown_recipe_key_before_training(stubbed, tmp_path):
    table, calls = stubbed
    rows = [*table.rows, ResultsRow("third", {"num_hops": 2})]
    with pytest.raises(ValueError, match="table: third: there is no key `num_hops`"):
        run_table(dataclasses.replace(table, rows=rows), tmp_path)
    assert not calls


def test_warns_of_a_run_of_another_recipe_and_leaves_it_out(stubbed, tmp_path, caplog):
    table, _ = stubbed
    write_run(tmp_path / "first" / "1", run_results(0.9, recipe={"seed": "another"}))
    summary = run_table(table, tmp_path, seeds=[0])
    assert [row["seeds"] for row in summary["rows"]] == [[0], [0]]
    assert "first/1 is of another recipe" in caplog.text


def test_warns_of_a_run_older_than_the_one_it_starts_from(stubbed, tmp_path, caplog):
    table, calls = stubbed
    run_table(table, tmp_path, seeds=[1])
    assert "older" not in caplog.text
    file = tmp_path / "first" / "1" / "results.json"
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime + 60))  # as if it had been trained again
    run_table(table, tmp_path, seeds=[1])
    assert "second/1 is older than" in caplog.text and len(calls) == 2


def test_measures_faithfulness_again_for_another_number_of_questions(stubbed, tmp_path, monkeypatch):
    table, calls = stubbed
    measured = []

    def measure(model, processor, rows, folder, questions, seed):
        measured.append((questions, seed))
        curves = {curve: {"positive": {"probability": 0.5}} for curve in ("deletion", "insertion")}
        content = {"auc": {"relevance": curves}, "questions": questions}
        (folder / "faithfulness.json").write_text(json.dumps(content))

    class Model:
        device = results_run.torch.device("cpu")

        def to(self, device):
            return self

    monkeypatch.setattr(results_run, "measure_faithfulness", measure)
    monkeypatch.setattr(results_run, "load_splits", lambda recipe: (None, range(9)))
    monkeypatch.setattr(results_run, "load_checkpoint", lambda folder: Model())
    monkeypatch.setattr(results_run.QCAProcessor, "from_pretrained", lambda folder: None)
    for questions in (2, 2, 3):
        rows = [ResultsRow("first", {}, faithfulness_questions=questions)]
        summary = run_table(dataclasses.replace(table, rows=rows), tmp_path, seeds=[1])
    assert measured == [(2, 1), (3, 1)] and calls == [("first", "1")]
    assert summary["rows"][0]["faithfulness_questions"] == 3
