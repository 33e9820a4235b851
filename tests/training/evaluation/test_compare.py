"""`qca compare`: paired differences, and the questions whose answers changed."""

import csv
import json

import numpy as np
import pytest
from helpers.data_files import answered_images, draw
from helpers.tiny import save_tiny_model
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca.training.evaluation.compare import compare_checkpoints, paired_differences, short_names
from modeling_qca.training.evaluation.evaluation import evaluate_checkpoint


def test_paired_difference_has_the_interval_of_its_standard_error():
    generator = np.random.default_rng(0)
    first, change = generator.random(800), generator.normal(0.1, 0.2, 800)
    table = paired_differences(first, first + change, [str(n) for n in range(800)], ["side"] * 400 + [""] * 400)
    assert table["all"]["difference"] == pytest.approx(change.mean())
    low, high = table["all"]["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * change.std() / 800**0.5, rel=0.1)
    assert table["side"]["questions"] == 400 and table["side"]["difference"] == pytest.approx(change[:400].mean())
    assert table.keys() == {"all", "side"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    for seed in (0, 1):
        save_tiny_model(folder / str(seed) / "checkpoint", seed=seed)
    lines = []
    for number in range(12):
        draw(folder / "data" / "images" / f"{number // 2}.png", shade=40 * number)
        row = {"image": f"{number // 2}.png", "question": f"what is {['red', 'blue', 'big'][number % 3]}"}
        lines.append(json.dumps(row | {"answer": ("red", "blue")[number % 2], "kind": ("color", "size")[number % 2]}))
    (folder / "data" / "validation.jsonl").write_text("\n".join(lines) + "\n")
    np.savez(folder / "data" / "validation_relevance.npz", mask=np.eye(4)[None].repeat(12, axis=0))
    return folder


def test_compare_agrees_with_two_evaluations_and_lists_the_changed_questions(compared, tmp_path):
    runs = [str(compared / str(seed) / "checkpoint") for seed in (0, 1)]
    data = str(compared / "data")
    arguments = ["compare", *runs, data, "--output-dir", str(tmp_path / "out")]
    finished = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert finished.exit_code == 0 and "difference" in finished.output
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    results = [evaluate_checkpoint(run, data, None, {}, tmp_path / str(n), 0) for n, run in enumerate(runs)]
    for place, of in zip(("first", "second"), results, strict=True):
        assert comparison["measures"]["accuracy"]["all"][place] == pytest.approx(of["metrics"]["accuracy"])
        assert comparison["measures"]["pointing"]["all"][place] == pytest.approx(of["attention"]["pointing"]["model"])
        for kind, values in of["per_question_type"].items():
            assert comparison["measures"]["accuracy"][kind][place] == pytest.approx(values["accuracy"])
    import pandas as pd

    answers = [pd.read_parquet(tmp_path / str(n) / "questions.parquet").set_index("question_id") for n in (0, 1)]
    different = answers[0].index[answers[0]["answer"] != answers[1]["answer"]]
    with (tmp_path / "out" / "changed.csv").open(newline="") as file:
        changed = list(csv.DictReader(file))
    assert 0 < len(changed) == comparison["changed"]["questions"]
    assert {row["question_id"] for row in changed} == set(different)
    for row in changed:
        assert row["second_answer"] == answers[1].loc[row["question_id"], "answer"]


def test_without_data_or_a_run_the_data_must_be_named(compared, tmp_path):
    runs = [str(compared / str(seed) / "checkpoint") for seed in (0, 1)]
    with pytest.raises(ValueError, match="name the data to evaluate on"):
        compare_checkpoints(*runs, None, None, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_warns_when_no_row_has_an_answer_of_a_model(compared, tmp_path, caplog):
    data = answered_images(tmp_path / "data", [["rouge"], ["bleu"]])
    runs = [str(compared / str(seed) / "checkpoint") for seed in (0, 1)]
    compare_checkpoints(*runs, str(data), None, {}, tmp_path / "out")
    assert caplog.text.count("None of 2 questions has an answer of the model (red, green, blue, ...)") == 2


def test_names_are_as_long_as_it_takes_to_tell_them_apart():
    assert short_names("runs/a", "runs/b") == ["a", "b"]
    assert short_names("runs/a/0", "runs/b/0") == ["a/0", "b/0"]
    assert short_names("same", "same") == ["first", "second"]
