"""Keys and names of results files of release 0.1."""

import json
from pathlib import Path

from rename_results_keys import renamed

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_renames_keys_and_values_of_0_1():
    recipe = {"relevance": "final", "moving_average": 0.9, "config": {"answer_query": "asked"}}
    row = {"name": "source document's stack", "control": "document", "recipe": recipe}
    old = {"rows": [row | {"attention": {"pointing": {"centre": 1}}, "faithfulness": {"relevance": {"deletion": 1}}}]}
    (new,) = renamed(old)["rows"]
    assert (new["name"], new["baseline"]) == ("reference model", "reference_model")
    assert new["recipe"] == {
        "attention_supervision": "last_hop",
        "ema_decay": 0.9,
        "config": {"answer_query": "initial"},
    }
    assert new["attention"] == {"pointing": {"center": 1}} and new["faithfulness"] == {"relevance": {"deletion": 1}}
    (case,) = renamed({"cases": {"one_pair": [{"model": "document", "label": "document float32"}]}})["cases"][
        "one_pair"
    ]
    assert case == {"model": "reference", "label": "reference float32"}


def test_committed_results_files_have_todays_names():
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        assert renamed(content) == content, path.name
