"""The model card: numbers of results.json, metadata that the Hub accepts, examples in Python."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.hub.card_validation import card_metadata as front_matter
from helpers.hub.card_validation import card_problems
from helpers.hub.checkpoint import example_results
from helpers.tiny import tiny_config
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_qca.hub_card import row_card
from modeling_qca.hub_card.card import Release, model_card
from modeling_qca.hub_card.results_file import read_results
from modeling_qca.training.files.run_files import format_value

RELEASE = Release(
    "user/qca-rooms", "v1", base_model=("facebook/dinov2-small", "sentence-transformers/all-MiniLM-L6-v2")
)


def render(results: dict[str, Any] | None, release: Release = RELEASE, **arguments: Any) -> str:
    return str(model_card(tiny_config(), results, release, **arguments))


def table(card: str, first_cell: str) -> list[list[str]]:
    """The cells of the Markdown table whose head begins with `first_cell`."""
    lines = card.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_cell} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [row for row in rows if set(row[1]) != {"-"}]


def test_metadata_has_the_fields_of_the_hub() -> None:
    metadata = front_matter(render(example_results()))
    assert {key: value for key, value in metadata.items() if key != "model-index"} == {
        "license": "apache-2.0",
        "language": "en",
        "library_name": "transformers",
        "pipeline_tag": "visual-question-answering",
        "tags": ["vqa", "query-conditioned-attention"],
        "base_model": list(RELEASE.base_model),
        "base_model_relation": "finetune",
        "metrics": ["accuracy", "wups_0.9"],
    }
    assert card_problems(render(example_results())) == ([], [])


def test_card_names_the_ceiling_of_the_answer_list() -> None:
    reach = {"rows": 1234, "coverage": 0.625, "oracle_ceiling": 0.6213}
    data = example_results()["data"] | {"vocabulary": {"answers": 5, "validation": reach}}
    card = " ".join(render(example_results(data=data)).split())
    assert "covers 0.625 of these questions. A perfect model would reach an accuracy of 0.621." in card
    assert "A perfect model" not in render(example_results())


def test_card_describes_only_the_parts_that_the_model_has() -> None:
    blind = str(model_card(tiny_config(num_attention_layers=0), example_results(baseline="blank_images"), RELEASE))
    for claim in ("shows where it looked", "hops of", "heat_maps", "A relevance map shows"):
        assert claim in render(example_results()) and claim not in blind
    assert "It has no relevance maps" in blind
    assert "control for comparisons and not for use: `blank_images`" in blind
    evaluated = example_results()
    del evaluated["recipe"]
    assert "Seeds: " in render(example_results()) and "Seeds: " not in render(evaluated)
    assert "## Evaluation\n\nEvaluated with\n" in render(evaluated)
    best, last = (render(example_results(recipe={"arguments": {"load_best_model_at_end": b}})) for b in (True, False))
    assert "on these same rows" in best and "on these same rows" not in last + render(evaluated)
    fields = {"answer_evidence": "hops_and_mean", "token_budget": 5, "token_budget_layer": 1}
    budget = " ".join(str(model_card(tiny_config(**fields, vision_conditioning_layers="late"), None, RELEASE)).split())
    plain = " ".join(render(None).split())
    for claim in (
        "also uses the mean of all",
        "After layer 1 the vision encoder keeps",
        "Layers of the vision encoder also attend",
    ):
        assert claim in budget and claim not in plain


def test_model_index_has_the_measured_values_after_loading() -> None:
    loaded: Any = ModelCard(render(example_results())).data
    measured = {result.metric_type: result.metric_value for result in loaded.eval_results}
    assert measured == {"accuracy": 0.7281, "wups_0.9": 0.7344}
    assert {(result.dataset_name, result.dataset_split) for result in loaded.eval_results} == {("Rooms", "dev")}
    assert loaded.model_name == "qca-rooms"


@pytest.mark.parametrize(
    "recipe, identifier",
    [
        ({"data": "owner/VQA", "format": "hub"}, "owner/VQA"),
        ({"data": "owner/VQA", "format": "table", "data_options": {"format": "hub"}}, "owner/VQA"),
        ({"data": "data/my_rooms", "format": "table", "data_options": {}}, None),
        ({"data": str(Path(__file__).parent), "format": "hub"}, None),
    ],
)
def test_only_data_on_the_hub_is_listed_under_datasets(recipe: dict[str, Any], identifier: str | None) -> None:
    metadata = front_matter(render(example_results(recipe=recipe)))
    assert metadata.get("datasets") == (identifier and [identifier])
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "rooms"  # of what was measured


def test_evaluation_on_hub_data_names_its_id() -> None:
    card = render(example_results(data=example_results()["data"] | {"name": "owner/VQA"}))
    measured = front_matter(card)["model-index"][0]["results"][0]["dataset"]
    assert (measured["type"], measured["name"]) == ("owner/VQA", "owner/VQA")
    assert "of owner/VQA (fingerprint" in card


def test_device_is_shown_if_known() -> None:
    assert "; on NVIDIA H200. All numbers" in render(example_results(device="NVIDIA H200"))
    assert "; on" not in render(example_results())


def test_results_table_has_the_baselines_and_a_dash_for_missing_values() -> None:
    assert table(render(example_results()), "metric") == [
        ["metric", "this model", "majority", "question_only"],
        ["accuracy", "0.728 ± 0.012", "0.210", "0.408"],
        ["wups_0.9", "0.734", "–", "0.400"],
    ]


def test_attention_table_has_its_controls() -> None:
    card = render(example_results())
    assert table(card[card.index("### Where it looks") :], "metric") == [
        ["metric", "model", "center", "uniform", "shuffled_question"],
        ["pointing_game", "0.817", "0.313", "0.253", "0.308"],
        ["energy", "0.641", "–", "0.253", "–"],
    ]


def test_card_explains_only_the_controls_that_were_measured() -> None:
    without = render(example_results(attention={"pointing": {"model": 0.8, "center": 0.3, "uniform": 0.2}}))
    assert "another question about the same image" not in without and "`maps` is" not in without
    counted = render(example_results(attention={"pointing": {"model": 0.8}, "maps": {"model": 1234}}))
    assert "`maps` is the number of maps" in counted and "| maps | 1,234 |" in counted
    assert "another question about the same image" in render(example_results())


def test_card_shows_question_types_recipe_cost_and_seeds() -> None:
    card = render(example_results())
    assert table(card, "question type") == [
        ["question type", "accuracy", "rows", "question_only"],
        ["where", "0.573", "310", "0.131"],
        ["side\\|which", "0.777", "924", "–"],
    ]
    assert "```yaml\nlearning_rate: 2.0e-05\nnum_train_epochs: 40\n```" in card
    for line in ("Seeds: 7, 8, 9.", "- milliseconds per question: 3.217", "- trained parameters: 71,845"):
        assert line in card
    assert "1,234 questions about 85 images" in card and "qca train recipes/rooms.yaml" in card


def test_every_decimal_number_of_the_card_is_in_the_results() -> None:
    results = example_results()
    body = ModelCard(render(results)).text
    shown = set(re.findall(r"(?<![\w.])\d+\.\d{3}(?![\w.])", body))
    leaves = [value for value in _leaves(results) if isinstance(value, float)]
    assert shown <= {f"{value:.3f}" for value in leaves} and len(shown) > 10


def _leaves(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if inner is None else [leaf for item in inner for leaf in _leaves(item)]


def test_card_without_results_has_no_numbers() -> None:
    card = render(None)
    assert "there are no measurements" in card and not re.search(r"\d\.\d{3}", ModelCard(card).text)
    assert "model-index" not in front_matter(card) and card_problems(card) == ([], [])


def test_examples_are_valid_python_for_the_repository_and_tag() -> None:
    blocks = re.findall(r"```python\n(.*?)```", render(example_results()), flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        ast.parse(block)
        assert '"user/qca-rooms", revision="v1"' in block
    assert "revision" not in render(example_results(), Release("user/qca-rooms"))


def test_base_models_are_the_encoders_of_the_recipe_by_default() -> None:
    recipe = {"vision_encoder": "facebook/dinov2-small", "text_encoder": "../encoders/minilm-l6"}
    results = example_results(recipe=recipe)
    assert front_matter(render(results, Release("user/model")))["base_model"] == ["facebook/dinov2-small"]
    assert front_matter(render(results))["base_model"] == list(RELEASE.base_model)
    assert "base_model" not in front_matter(render(example_results(), Release("user/model")))


def test_example_picture_is_shown_if_given() -> None:
    assert "(overlay.png)" in render(None, example_picture="overlay.png") and "(overlay.png)" not in render(None)


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)


@settings(deadline=None, max_examples=40)
@given(NAMES, st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3))
def test_metadata_and_tables_survive_any_name(name: str, metrics: dict[str, float]) -> None:
    data = example_results()["data"] | {"name": name}
    card = render(example_results(metrics=metrics, per_question_type={name: {"accuracy": 0.5}}, data=data))
    index = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---"))["model-index"]
    assert index[0]["results"][0]["dataset"]["name"] == name
    assert {entry["type"]: entry["value"] for entry in index[0]["results"][0]["metrics"]} == metrics
    assert [len(row) for row in table(card, "question type")] == [2, 2]


@pytest.mark.parametrize(
    "value, text",
    [
        (0.72849, "0.728"),
        (12345, "12,345"),
        ({"mean": 0.5, "std": 0.01, "seeds": 3}, "0.500 ± 0.010"),
        (None, "–"),
        ("CPU", "CPU"),
        (True, "True"),
    ],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize("further", [{}, {"baseline": None}, {"baseline": "blank_images"}])
def test_results_are_read_as_written(tmp_path: Path, further: dict[str, Any]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(example_results(**further)))
    assert read_results(path) == example_results(**further)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"metrics": None}, "'metrics' must be a dict"),
        ({"metrics": {}}, "'metrics' is empty"),
        ({"metrics": {"accuracy": float("nan")}}, "'metrics.accuracy' is nan"),
        ({"baselines": {"majority": 0.2}}, "'baselines.majority' must be a mapping"),
        ({"data": {"name": "Rooms"}}, "'data.split' is missing"),
        ({"accuracy": 0.7}, "unknown entry 'accuracy'"),
    ],
)
def test_wrong_entry_of_a_results_file_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(example_results(**changed)))
    with pytest.raises(ValueError, match=f"results.json: {re.escape(message)}"):
        read_results(path)


def test_incomplete_or_invalid_results_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({key: value for key, value in example_results().items() if key != "seeds"}))
    with pytest.raises(ValueError, match=r"results.json: 'seeds' is missing"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"results.json is not valid JSON"):
        read_results(path)


def test_committed_card_is_up_to_date_with_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = Path(__file__).parents[2] / "docs"
    shutil.copytree(documents / "card", tmp_path / "card")
    results = json.loads((documents / "results" / "views.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(results))
    name = "end to end, from the bilinear scorer"
    arguments = [
        "row_card",
        "--repo-id",
        "you/qca-rooms",
        str(tmp_path / "card"),
        str(tmp_path / "results.json"),
        name,
    ]
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    row_card.main()
    row = next(row for row in results["rows"] if row["name"] == name)
    row["accuracy"]["all"]["mean"] = 0.123
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=r"README\.md is not the card of"):
        row_card.main()
    monkeypatch.setattr("sys.argv", arguments)
    row_card.main()
    spread = f"{row['accuracy']['all']['std']:.3f}"
    assert f"| accuracy | 0.123 ± {spread} | 0.305 |" in (tmp_path / "card" / "README.md").read_text()
    monkeypatch.setattr("sys.argv", [*arguments[:-1], "two hops"])
    with pytest.raises(SystemExit, match="views has no row 'two hops'; its rows are: step by step, generated views, "):
        row_card.main()
