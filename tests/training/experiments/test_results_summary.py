"""The summary of finished runs: spreads over seeds, what the runs share, and gains. No run is trained."""

import json
import statistics

import numpy as np
import pytest
from helpers.finished_runs import run_results, write_run

from modeling_qca.training.experiments import results_summary
from modeling_qca.training.experiments.results_summary import paired_gain, summarize
from modeling_qca.training.experiments.results_table import ResultsRow, ResultsTable

ROWS = [ResultsRow("plain", {}), ResultsRow("blind", {}, baseline="blank_images")]
SCORES = {"a1": 1.0, "a2": 0.0, "b1": 1.0, "b2": 1.0}


@pytest.fixture
def table(monkeypatch):
    """Every run that has a `results.json` counts as finished."""

    def read(recipe, baseline):
        file = recipe.output_dir / "results.json"
        return json.loads(file.read_text()) if file.exists() else None

    monkeypatch.setattr(results_summary, "finished_results", read)
    return ResultsTable("table", [0, 1], {"model": "qca-tiny", "data": "scenes"}, ROWS)


def spread(first, second):
    return {"mean": (first + second) / 2, "std": statistics.stdev([first, second]), "values": [first, second]}


def test_values_are_spreads_over_seeds_and_costs_are_medians(table, tmp_path):
    slow = {"trained_parameters": 1_230_000, "training_seconds": 20.0, "milliseconds_per_question": 8.0}
    baselines = {"majority": {"accuracy": 0.5}, "shuffled_questions": {"accuracy": 0.2}}
    metrics = {"accuracy": 0.6, "wups_0.9": 0.7}
    write_run(tmp_path / "plain" / "0", run_results(0.4, 0.8, metrics={"accuracy": 0.4, "wups_0.9": 0.5}), area=0.1)
    second = run_results(0.6, 0.6, cost=slow, baselines=baselines, metrics=metrics)
    write_run(tmp_path / "plain" / "1", second, area=0.3)
    summary = summarize(table, tmp_path)
    (row,) = summary["rows"]
    assert (summary["table"], row["name"], row["seeds"]) == ("table", "plain", [0, 1])
    assert row["accuracy"] == {"all": spread(0.4, 0.6), "side": spread(0.2, 0.3)}
    assert row["attention"]["pointing"]["model"] == spread(0.8, 0.6)
    assert row["attention"]["maps"]["shuffled_question"]["mean"] == 8
    assert row["metrics"] == {"wups_0.9": spread(0.5, 0.7)}
    assert row["shuffled_questions"] == {"mean": 0.2, "std": 0.0, "values": [0.2]}
    assert row["faithfulness"]["random"]["deletion"] == spread(0.1, 0.3) and row["faithfulness_questions"] == 2
    assert row["cost"]["training_seconds"] == 16 and row["cost"]["milliseconds_per_question"] == 6
    assert summary["majority"] == 0.4 and "gain" not in row


def test_leaves_out_faithfulness_that_a_run_lacks_and_rows_without_runs(table, tmp_path):
    write_run(tmp_path / "plain" / "0", run_results(0.4), area=0.1)
    write_run(tmp_path / "plain" / "1", run_results(0.4))
    (row,) = summarize(table, tmp_path)["rows"]
    assert "faithfulness" not in row and "metrics" not in row and row["attention"] == {}


def test_question_type_that_a_split_lacks_is_averaged_over_the_others(table, tmp_path):
    write_run(tmp_path / "plain" / "0", run_results(0.4, per_question_type={"side": {"accuracy": 0.5}}))
    kinds = {"side": {"accuracy": 0.7}, "where": {"accuracy": 0.2}}
    write_run(tmp_path / "plain" / "1", run_results(0.4, per_question_type=kinds))
    accuracy = summarize(table, tmp_path)["rows"][0]["accuracy"]
    assert accuracy["where"] == {"mean": 0.2, "std": 0.0, "values": [0.2]}
    assert accuracy["side"]["mean"] == pytest.approx(0.6)


def test_joins_devices_and_versions_that_differ(table, tmp_path):
    write_run(tmp_path / "plain" / "0", run_results(0.4))
    write_run(tmp_path / "plain" / "1", run_results(0.4, device="another", versions={"torch": "3.0", "peft": "1"}))
    summary = summarize(table, tmp_path)
    assert summary["device"] == "a processor, another"
    assert summary["versions"] == {"torch": "2.0, 3.0", "peft": "none, 1"}


def test_gain_is_over_the_row_without_images_on_the_seeds_of_both(table, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "plain" / str(seed), run_results(0.75), SCORES)
    write_run(tmp_path / "blind" / "1", run_results(0.25), dict.fromkeys(SCORES, 0.0))
    plain, blind = summarize(table, tmp_path)["rows"]
    assert plain["gain"]["mean"] == 0.75 and plain["gain"]["values"] == [0.75] and "gain" not in blind


def test_counts_rows_and_images_of_all_splits(table, tmp_path):
    table = ResultsTable(table.name, table.seeds, table.values, table.rows, split_by_seed=True)
    write_run(tmp_path / "plain" / "0", run_results(0.4), {"a1": 1.0, "b1": 0.0})
    data = run_results(0.4)["data"]
    data["vocabulary"]["validation"] = {"rows": 2, "coverage": 0.5, "oracle_ceiling": 0.4}
    write_run(tmp_path / "plain" / "1", run_results(0.4, data=data), {"b1": 1.0, "c1": 0.0})
    summary = summarize(table, tmp_path)
    reach = {"coverage": 0.75, "oracle_ceiling": 0.7}
    expected = {"name": "scenes", "rows": 3, "images": 3, "vocabulary": {"validation": reach}}
    assert summary["data"] == expected and summary["splits"] == 2


def test_gain_has_the_standard_error_of_resampled_images():
    """Against the spread of the gain over many draws of the images, each with all its questions."""
    draw = np.random.default_rng(0)
    images = np.repeat(np.arange(40), draw.integers(1, 12, size=40))
    easy = draw.random(40)[images]

    def run(level: float) -> dict[str, list]:
        ids = [str(question) for question in range(len(images))]
        right = draw.random(len(images)) < level * easy
        return {"question_id": ids, "image_id": list(images.astype(str)), "score": list(right.astype(float))}

    def first(given: dict[str, list], count: int) -> dict[str, list]:
        return {name: values[:count] for name, values in given.items()}

    ours, theirs = [run(1.0), run(1.0)], [run(0.6), run(0.6)]
    for counts in ([len(images)] * 2, [len(images), len(images) // 2]):  # the second seed has a split of its own
        pairs = [(first(a, n), first(b, n)) for a, b, n in zip(ours, theirs, counts, strict=True)]
        gain = paired_gain(*zip(*pairs, strict=True))
        differences = np.concatenate([np.subtract(a["score"], b["score"]) for a, b in pairs])
        of = np.concatenate([images[:n] for n in counts])
        of_image = [differences[of == image] for image in range(40)]
        drawn = [np.concatenate([of_image[i] for i in draw.integers(40, size=40)]).mean() for _ in range(4000)]
        assert gain["mean"] == pytest.approx(differences.mean())
        assert gain["values"] == pytest.approx([np.mean(a["score"]) - np.mean(b["score"]) for a, b in pairs])
        assert gain["standard_error"] == pytest.approx(np.std(drawn), rel=0.08)
    theirs[0]["question_id"].reverse()
    with pytest.raises(ValueError, match="different questions"):
        paired_gain(ours, theirs)
