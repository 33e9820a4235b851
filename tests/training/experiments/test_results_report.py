"""Markdown tables, figure and card values of a summary whose numbers are written here."""

import copy

import pytest
from helpers.finished_runs import run_results

from modeling_qca.hub_card.row_card import row_results
from modeling_qca.training.evaluation.figures import rows_figure
from modeling_qca.training.experiments.results_report import data_sets_table, rows_table, short_rows_table

COST = {"trained_parameters": 1_230_000, "training_seconds": 12.0, "milliseconds_per_question": 4.0}
MEASURES = ("pointing", "energy", "iou", "spearman")


def spread(mean, std=0.01):
    return {"mean": mean, "std": std, "values": [mean - std, mean + std]}


def row(name, accuracy, pointing=None, **fields):
    attention = {}
    if pointing is not None:
        sources = {"model": spread(pointing), "center": spread(0.4), "uniform": spread(0.25)}
        attention = {measure: sources | {"shuffled_question": spread(0.3)} for measure in MEASURES}
        attention["maps"] = {"model": spread(1234), "shuffled_question": spread(1000)}
    return {
        "name": name,
        "seeds": [0, 1],
        "accuracy": {"all": spread(accuracy), "where": spread(accuracy / 2)},
        "attention": attention,
        "cost": COST,
        "recipe": {"data": "scenes"},
        "baseline": None,
    } | fields


@pytest.fixture
def summary():
    gain = {"mean": 0.25, "standard_error": 0.02, "values": [0.25, 0.25]}
    curves = {source: {"deletion": spread(0.5), "insertion": spread(0.7)} for source in ("relevance", "random")}
    areas = {"faithfulness": curves, "faithfulness_questions": 64}
    rows = [
        row("plain", 0.75, 0.8, gain=gain, metrics={"wups_0.9": spread(0.65)}, **areas),
        row("other", 0.7, 0.6, gain=gain, shuffled_questions=spread(0.35)),
        row("blind", 0.5, baseline="blank_images"),
    ]
    data = {"name": "scenes", "rows": 1646, "images": 105, "split": "validation", "fingerprint": "0"}
    shared = {"versions": {"torch": "2.0"}, "device": "a processor", "command": "qca results table.yaml"}
    return {"table": "table", "majority": 0.31, "data": data, **shared, "rows": rows}


def cells(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


def lines_of(text, name):
    return [line for line in text.splitlines() if line.startswith(f"| {name} |")]


def test_tables_show_accuracy_maps_and_faithfulness(summary):
    text = rows_table(summary)
    answers, maps, curves = lines_of(text, "plain")
    expected = ["plain", "2", "0.750 ± 0.010", "0.375 ± 0.010", "0.650 ± 0.010", "+0.250 (SE 0.020)"]
    assert answers == f"| {' | '.join(expected)} |  | 1.23 M | 12 | 4 |"
    assert maps == "| plain |" + " 0.800 ± 0.010 | 0.300 ± 0.010 |" * 4
    assert curves == "| plain |" + " 0.500 ± 0.010 |" * 2 + " 0.700 ± 0.010 |" * 2
    assert len(lines_of(text, "other")) == 2 and len(lines_of(text, "blind")) == 1
    assert text.endswith("over 2 seeds; trained and measured on a processor.")
    for note in ("1,646 questions about 105 images", "right for 0.310", "1,234 questions", "64 questions"):
        assert note in text


def test_leaves_cells_without_a_value_empty(summary):
    del summary["rows"][0]["accuracy"]["where"], summary["rows"][0]["faithfulness"]["random"]
    assert [line.count("|  |") for line in lines_of(rows_table(summary), "plain")] == [2, 0, 0]
    other = copy.deepcopy(summary["rows"][0]) | {"name": "second"}
    other["faithfulness"]["random"] = other["faithfulness"]["relevance"]
    summary["rows"].append(other)
    assert lines_of(rows_table(summary), "plain")[2] == "| plain | 0.500 ± 0.010 |  | 0.700 ± 0.010 |  |"


def test_one_seed_has_no_deviation(summary):
    for of in summary["rows"]:
        of["seeds"] = [0]
    text = rows_table(summary)
    assert lines_of(text, "blind")[0].startswith("| blind | 1 | 0.500 | 0.250 |") and "; one seed;" in text


def test_says_how_many_splits_there_are(summary):
    text = rows_table(summary | {"splits": 2})
    assert "in 2 development splits" in text and "(mean of the splits)" in text


def test_says_what_the_vocabulary_does_not_reach(summary):
    assert "vocabulary" not in rows_table(summary)
    summary["data"]["vocabulary"] = {"validation": {"coverage": 0.62, "oracle_ceiling": 0.6}}
    for text in (rows_table(summary), short_rows_table(summary)):
        assert "38.0% of the questions have no answer in the vocabulary" in text and "exceed 0.600" in text


def test_marks_rows_that_an_earlier_release_measured(summary):
    summary["rows"][1]["measured_with"] = "0.1"
    text = rows_table(summary)
    assert len(lines_of(text, "other †")) == 2 and "† Measured with release 0.1" in text
    assert "†" not in short_rows_table(summary, names=["plain"])


def test_short_table_shows_chosen_rows_and_columns_in_order(summary):
    titles = ["row", "all", "where", "wups 0.9", "gain over question only", "pointing", "pointing, shuffled question"]
    assert cells(short_rows_table(summary))[0] == titles
    chosen = short_rows_table(summary, ["blind", "plain"], ["pointing", "all"])
    assert lines_of(chosen, "plain") == ["| plain | 0.800 ± 0.010 | 0.750 ± 0.010 |"]
    assert [line[0] for line in cells(chosen)] == ["row", "---", "blind", "plain"]
    for names, columns, missing in ((["deaf"], [], "deaf"), ([], ["pointed"], "pointed")):
        with pytest.raises(ValueError, match=missing):
            short_rows_table(summary, names, columns)


def test_figure_shows_accuracy_and_pointing_of_each_row(summary):
    answered, looked = rows_figure(summary).axes
    assert [label.get_text() for label in answered.get_yticklabels()] == ["blind", "other", "plain"]
    means, places = answered.containers[0][0].get_data()
    assert places.tolist() == [0, 1, 2] and means.tolist() == [0.5, 0.7, 0.75]
    other, own = (container[0].get_data() for container in looked.containers)
    assert own[1].tolist() == other[1].tolist() == [1, 2]  # the row without images has no map
    assert own[0].tolist() == [0.6, 0.8] and other[0].tolist() == [0.3, 0.3]
    for container in looked.containers:
        assert [bar[1, 0] - bar[0, 0] for bar in container[2][0].get_segments()] == pytest.approx([0.02, 0.02])
    across = {line.get_label(): line.get_xdata()[0] for line in (*answered.lines, *looked.lines)}
    assert across["majority answer"] == 0.31 and across["map of the center"] == 0.4
    assert len(rows_figure(summary | {"rows": summary["rows"][2:]}).axes) == 1


def test_card_values_of_a_row_are_spreads_beside_the_row_without_images(summary):
    card = row_results(summary, "plain")
    assert card["metrics"]["accuracy"]["mean"] == 0.75 and card["metrics"]["wups_0.9"]["mean"] == 0.65
    assert card["baselines"]["majority"] == {"accuracy": 0.31}
    assert card["baselines"]["question_only"]["accuracy"]["mean"] == 0.5
    assert "question_only" not in row_results(summary, "blind")["baselines"]
    assert card["attention"]["maps"]["model"] == 1234 and card["cost"] == run_results(0.5)["cost"]
    summary["rows"][0]["seeds"] = [0]
    summary["rows"][0]["accuracy"]["all"]["values"] = [0.75]
    assert row_results(summary, "plain")["metrics"]["accuracy"] == 0.75


def test_table_of_data_sets_has_a_row_for_each():
    rooms = {
        "majority": 0.3,
        "rows": [row("question only", 0.4), row("image mean", 0.5), row("hops, twice", 0.7, 0.8)],
    }
    table = data_sets_table({"rooms": (rooms, "hops, twice"), "marked": (rooms, "image mean")})
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]] == [
        ["rooms", "hops, twice", "2", "0.300", "0.400 ± 0.010", "0.500 ± 0.010", "0.700 ± 0.010"]
        + ["0.800 ± 0.010", "0.300 ± 0.010"],
        ["marked", "image mean", "2", "0.300", "0.400 ± 0.010", "0.500 ± 0.010", "0.500 ± 0.010", "", ""],
    ]


def test_table_of_data_sets_names_a_missing_row():
    rooms = {"majority": 0.3, "rows": [row("question only", 0.4), row("hops", 0.7)]}
    with pytest.raises(ValueError, match="no row 'image mean'; rows: question only, hops"):
        data_sets_table({"rooms": (rooms, "hops")})
