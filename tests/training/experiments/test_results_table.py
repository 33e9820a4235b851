"""Tables of rows: each is trained from each seed, starts from the row it names, and is summed up over the seeds."""

import copy
import dataclasses
import json
import os
import shutil
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from safetensors.torch import load_file

from modeling_qca import configuration
from modeling_qca.hub_card.row_card import row_results, write_row_cards
from modeling_qca.training.evaluation.figures import rows_figure
from modeling_qca.training.experiments import results_table as module
from modeling_qca.training.experiments.results_report import rows_table, short_rows_table
from modeling_qca.training.experiments.results_table import load_table, paired_gain, run_table, summarize
from modeling_qca.training.files.run_files import format_value
from modeling_qca.training.fitting.training_run import load_splits
from modeling_qca.training.supervision.scenes import write_scenes

SHIPPED = sorted(Path(configuration.__file__).parent.glob("recipes/results/*.yaml"))
RECIPE = """
model: qca-tiny
output_dir: elsewhere
max_steps: 1
per_device_train_batch_size: 16
save_strategy: "no"
eval_strategy: "no"
disable_tqdm: true
"""
TABLE = """
recipe: recipe.yaml
seeds: [0, 1]
common: {attention_supervision: last_hop, metrics: [vqa_accuracy]}
rows:
  as documented: {baseline: reference_model, attention_supervision: none, faithfulness_questions: 2}
  plain: {faithfulness_questions: 2}
  "budget 50 %, learned": {init_from: plain, token_budget: 32, token_budget_layer: 1, freeze: [vision, text]}
  blind: {baseline: blank_images, num_attention_layers: 0, attention_supervision: none}
"""


@pytest.fixture
def table_file(tmp_path):
    write_scenes(tmp_path / "scenes", {"train": 6, "validation": 3}, seed=0)
    (tmp_path / "recipe.yaml").write_text(RECIPE + f"data: {tmp_path / 'scenes'}\n")
    (tmp_path / "table.yaml").write_text(TABLE)
    return tmp_path / "table.yaml"


def test_rows_are_trained_summed_up_and_not_trained_twice(table_file, tmp_path, caplog):
    table = load_table(table_file)
    first = run_table(table, tmp_path / "out", seeds=[0])
    assert [row["seeds"] for row in first["rows"]] == [[0]] * 4
    results = run_table(table, tmp_path / "out", after_run=lambda of: write_row_cards(table, of, tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert [row["name"] for row in results["rows"]] == ["as documented", "plain", "budget 50 %, learned", "blind"]
    runs = [json.loads((tmp_path / "out" / "plain" / seed / "results.json").read_text()) for seed in "01"]
    row = results["rows"][1]
    values = [run["metrics"]["accuracy"] for run in runs]
    assert row["accuracy"]["all"] == {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values),
        "values": values,
    }
    assert row["attention"]["pointing"]["model"]["mean"] == statistics.mean(
        run["attention"]["pointing"]["model"] for run in runs
    )
    looked = [json.loads((tmp_path / "out" / "plain" / seed / "faithfulness.json").read_text()) for seed in "01"]
    areas = [look["auc"]["random"]["deletion"]["positive"]["probability"] for look in looked]
    spread = {"mean": statistics.mean(areas), "std": statistics.stdev(areas), "values": areas}
    assert row["faithfulness"]["random"]["deletion"] == spread
    assert [look["seed"] for look in looked] == [0, 1] and row["faithfulness_questions"] == 2
    assert "faithfulness" not in results["rows"][2]
    documented = tmp_path / "out" / "as_documented" / "1"  # of the weights that were trained: as sure of its answers
    answered = pd.read_parquet(documented / "questions.parquet").set_index("question_id")
    asked = load_splits(table.recipe(table.rows[0], 1, tmp_path / "out"))[1].shuffle(seed=1)["question_id"][:2]
    curves = json.loads((documented / "faithfulness.json").read_text())["curves"]
    sure = answered.loc[asked, "confidence"].mean()
    assert curves["relevance"]["deletion"]["positive"]["probability"][0] == pytest.approx(sure, abs=1e-5)
    assert curves.keys() == {"relevance", "random", "cls_attention"}
    for file in ("faithfulness.json", "document.safetensors"):
        shutil.move(documented / file, tmp_path)
    with pytest.raises(ValueError, match=r"as_documented/1 has no document.safetensors.*remove it to train it anew"):
        run_table(table, tmp_path / "out", seeds=[1])
    shutil.move(tmp_path / "faithfulness.json", documented)
    assert row["cost"]["milliseconds_per_question"] > 0
    assert "shuffled_questions" not in results["rows"][3] and results["rows"][3]["attention"] == {}
    assert "gain" not in results["rows"][3]
    assert first["data"]["images"] == results["data"]["images"] == 3
    assert row["metrics"]["vqa_accuracy"]["mean"] == statistics.mean(run["metrics"]["vqa_accuracy"] for run in runs)
    assert row["gain"]["mean"] == pytest.approx(
        row["accuracy"]["all"]["mean"] - results["rows"][3]["accuracy"]["all"]["mean"]
    )
    plain, budget = (
        load_file(tmp_path / "out" / name / "1" / "model.safetensors") for name in ("plain", "budget_50_learned")
    )
    name = "qca.vision_encoder.backbone.embeddings.cls_token"  # frozen in the second, so what the first left
    assert plain[name].equal(budget[name])
    finished = [tmp_path / "out" / "plain" / "1" / name for name in ("results.json", "faithfulness.json")]
    before = [file.stat().st_mtime_ns for file in finished]
    assert run_table(table, tmp_path / "out") == results
    assert [file.stat().st_mtime_ns for file in finished] == before
    assert summarize(table, tmp_path / "out") | {"command": results["command"]} == results
    rendered = rows_table(results)
    assert (tmp_path / "out" / "results.md").read_text() == rendered + "\n"
    assert (tmp_path / "out" / "results.png").exists()
    answered, looked = rows_figure(results).axes
    assert [label.get_text() for label in answered.get_yticklabels()] == [row["name"] for row in results["rows"]][::-1]
    means, places = answered.containers[0][0].get_data()
    assert places.tolist() == [0, 1, 2, 3]
    assert means.tolist() == [row["accuracy"]["all"]["mean"] for row in results["rows"][::-1]]
    other, own = (container[0].get_data() for container in looked.containers)
    assert own[1].tolist() == other[1].tolist() == [1, 2, 3]  # the row without sight has no map
    pointing = [row["attention"]["pointing"] for row in results["rows"][2::-1]]
    assert own[0].tolist() == [sources["model"]["mean"] for sources in pointing]
    assert other[0].tolist() == [sources["shuffled_question"]["mean"] for sources in pointing]
    for container, source in zip(looked.containers, ("shuffled_question", "model"), strict=True):
        bars = [bar[1, 0] - bar[0, 0] for bar in container[2][0].get_segments()]
        assert bars == pytest.approx([2 * sources[source]["std"] for sources in pointing])
    across = {line.get_label(): line.get_xdata()[0] for line in (*answered.lines, *looked.lines)}
    assert across["majority answer"] == results["majority"]
    assert across["map of the center"] == pointing[0]["center"]["mean"]
    cards = {file.parent.name: file.read_text() for file in (tmp_path / "out").glob("*/README.md")}
    assert cards.keys() == {"plain", "budget_50_learned", "blind"}  # the reference model has no checkpoint
    assert "![Where the model looked](0/overlay.png)" in cards["plain"]
    spread, blind = (results["rows"][index]["accuracy"]["all"] for index in (1, 3))
    assert f"| accuracy | {format_value(spread)} | {results['majority']:.3f} | " in cards["plain"]
    assert f" | {format_value(blind)} |\n" in cards["plain"] and "question_only" not in cards["blind"]
    assert f"- trained parameters: {row['cost']['trained_parameters']:,}\n" in cards["plain"]
    assert "to compare with and not to use: `blank_images`" in cards["blind"]
    agreed = row_results(results, "plain")["baselines"]["question_only"]["vqa_accuracy"]
    assert agreed == results["rows"][3]["metrics"]["vqa_accuracy"]
    assert row_results(first, "plain")["metrics"]["accuracy"] == first["rows"][1]["accuracy"]["all"]["mean"]
    without_maps = results | {"rows": results["rows"][3:]}
    assert len(rows_figure(without_maps).axes) == 1
    assert runs[1]["device"] and rendered.endswith(f"over 2 seeds; trained and measured on {runs[1]['device']}.")
    shuffled = row["attention"]["pointing"]["shuffled_question"]
    counts = {source: count["mean"] for source, count in row["attention"]["maps"].items()}
    counted = f"are of the {counts['model']:.0f} questions with a map; shuffled, of {counts['shuffled_question']:.0f}."
    assert counted in rendered
    assert f"| {shuffled['mean']:.3f} ± {shuffled['std']:.3f} |\n| budget 50 %, learned |" in short_rows_table(results)
    deleted = row["faithfulness"]["relevance"]["deletion"]
    assert f"| plain | {deleted['mean']:.3f} ± {deleted['std']:.3f} |" in rendered
    gain = f"{row['gain']['mean']:+.3f} (SE {row['gain']['standard_error']:.3f})"
    lacking = copy.deepcopy(results)  # a kind that one split did not ask, an encoder without CLS token
    del lacking["rows"][0]["accuracy"]["exists"], lacking["rows"][0]["faithfulness"]["cls_attention"]
    empty = [line.count("|  |") for line in rows_table(lacking).splitlines() if line.startswith("| as documented |")]
    assert empty == [1, 0, 2]
    agreed = row["metrics"]["vqa_accuracy"]
    assert f" | {agreed['mean']:.3f} ± {agreed['std']:.3f} | " in rendered and f" | {gain} | " in rendered
    assert f"| plain | 2 | {row['accuracy']['all']['mean']:.3f} ± {row['accuracy']['all']['std']:.3f} |" in rendered

    assert "older" not in caplog.text
    os.utime(finished[0])  # as if it had been trained again
    before = finished[0].stat().st_mtime_ns
    table.rows[1] = dataclasses.replace(table.rows[1], faithfulness_questions=3)
    run_table(table, tmp_path / "out", seeds=[1])
    assert json.loads(finished[1].read_text())["questions"] == 3  # measured anew, the run itself was not
    assert finished[0].stat().st_mtime_ns == before
    assert "budget_50_learned/1 is older than" in caplog.text


def test_runs_of_another_recipe_are_left_out_and_what_they_left_behind_is_removed(table_file, tmp_path, caplog):
    table_file.write_text(TABLE.split("rows:")[0] + "rows: {plain: {faithfulness_questions: 2}}\n")
    out = tmp_path / "out"
    run_table(load_table(table_file), out)
    results = out / "plain" / "1" / "results.json"  # as if another machine had trained it
    run = json.loads(results.read_text())
    run["versions"]["torch"], run["device"] = "3.0", "another"
    results.write_text(json.dumps(run))
    summary = summarize(load_table(table_file), out)
    here = json.loads((out / "plain" / "0" / "results.json").read_text())
    assert summary["device"] == f"{here['device']}, another"
    assert summary["versions"] == here["versions"] | {"torch": f"{here['versions']['torch']}, 3.0"}
    table = load_table(table_file, {"learning_rate": "0.5"})
    assert "faithfulness" in summary["rows"][0] and (out / "plain" / "0" / "faithfulness.png").exists()
    table.rows[0] = dataclasses.replace(table.rows[0], faithfulness_questions=0)
    (out / "plain" / "0" / "document.safetensors").touch()  # as if it had been a baseline
    summary = run_table(table, out, seeds=[0])
    assert [row["seeds"] for row in summary["rows"]] == [[0]]
    assert "plain/1 is of another recipe: not in the table" in caplog.text
    assert "faithfulness" not in summary["rows"][0] and summary["device"] == here["device"]
    assert not list((out / "plain" / "0").glob("faithfulness*"))
    assert not (out / "plain" / "0" / "document.safetensors").exists()


def test_a_question_type_that_a_split_lacks_is_that_of_the_others():
    spreads = module._spreads([{"side": 0.5}, {"side": 0.7, "where": 0.2}])
    assert spreads["where"] == {"mean": 0.2, "std": 0.0, "values": [0.2]}
    assert spreads["side"]["mean"] == pytest.approx(0.6)


def test_the_gain_has_the_standard_error_of_images_drawn_at_random():
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


def test_each_seed_may_have_a_split_of_its_own(table_file, tmp_path):
    cut = "common: {validation_ratio: 0.5, group_by: image_id}\n"
    text = "recipe: recipe.yaml\nseeds: [0, 1]\nsplit_by_seed: true\n" + cut
    table_file.write_text(text + "rows:\n  plain:\n  blind: {baseline: blank_images, num_attention_layers: 0}\n")
    results = run_table(load_table(table_file), tmp_path / "out")
    asked, seen, majority = [], set(), []
    for seed in "01":
        run = tmp_path / "out" / "plain" / seed
        asked.append(set(parquet.read_table(run / "questions.parquet")["question_id"].to_pylist()))
        seen |= set(parquet.read_table(run / "questions.parquet")["image_id"].to_pylist())
        majority.append(json.loads((run / "results.json").read_text())["baselines"]["majority"]["accuracy"])
    assert asked[0] != asked[1]
    assert results["data"]["rows"] == len(asked[0] | asked[1]) and results["data"]["images"] == len(seen)
    assert results["splits"] == 2 and results["majority"] == pytest.approx(statistics.mean(majority))
    assert "images, in 2 development splits, one a seed; the majority" in rows_table(results)
    assert "questions with a map (mean of the splits); shuffled" in rows_table(results)
    write_row_cards(load_table(table_file), results, tmp_path / "out")
    card = (tmp_path / "out" / "plain" / "README.md").read_text()
    assert "images: split\n`2 splits, one a seed` of scenes.\n" in card
    assert f"- trained parameters: {results['rows'][0]['cost']['trained_parameters']:,}\n" in card
    assert results["data"].keys() == {"name", "rows", "images"}  # what else is known is of one seed alone
    with pytest.raises(ValueError, match="table has no seed 7, only 0, 1"):
        run_table(load_table(table_file), tmp_path / "out", seeds=[7])


@pytest.mark.parametrize(
    ("replaced", "by", "message"),
    [
        (
            "init_from: plain",
            "init_from: later",
            "budget 50 %, learned: `init_from` names 'later', which is no row above it",
        ),
        (
            "baseline: reference_model",
            "baseline: random",
            "as documented: `baseline` is 'random', not one of blank_images, ref",
        ),
        (
            "baseline: blank_images, num_attention_layers: 0, attention_supervision: none",
            "baseline: blank_images, faithfulness_questions: 2",
            "blind: `faithfulness_questions` are of maps; a row without sight",
        ),
        (
            "plain: {",
            "plain: {num_attention_layers: 0, attention_supervision: none, ",
            "plain: `faithfulness_questions` are of maps;",
        ),
        ("rows:", "lines:", "needs `recipe`, `common`, `seeds` and `rows`"),
        ("rows:", "split_by_seeds: true\nrows:", "a table has no key `split_by_seeds`"),
        ("rows:", "split_by_seed: often\nrows:", "`split_by_seed` is 'often', neither true nor false"),
        ("plain: {faithfulness_questions: 2}", "plain: {num_hops: 2}", "table: plain: there is no key `num_hops`"),
    ],
)
def test_a_table_that_cannot_be_trained_is_refused_before_anything_is(table_file, tmp_path, replaced, by, message):
    table_file.write_text(TABLE.replace(replaced, by))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        run_table(load_table(table_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_tables_are_tables(path, tmp_path):
    table = load_table(path, {"data": "elsewhere"})
    assert len(table.seeds) >= 3 and table.name == path.stem
    recipes = [table.recipe(row, 0, tmp_path) for row in table.rows]
    assert {recipe.data for recipe in recipes} == {"elsewhere"}
    assert len({recipe.output_dir for recipe in recipes}) == len(recipes)
