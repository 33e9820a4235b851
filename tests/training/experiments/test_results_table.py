"""Files of tables: their rows and recipes, and what is refused."""

from pathlib import Path

import pytest

from modeling_qca import configuration
from modeling_qca.training.experiments.results_table import load_table

SHIPPED = sorted(Path(configuration.__file__).parent.glob("recipes/results/*.yaml"))
TABLE = """
recipe: recipe.yaml
seeds: [0, 1]
common: {attention_supervision: last_hop}
rows:
  reference model: {baseline: reference_model, attention_supervision: none, faithfulness_questions: 2}
  plain: {faithfulness_questions: 2}
  "budget 50 %, learned": {init_from: plain, token_budget: 32, token_budget_layer: 1}
  blind: {baseline: blank_images, num_attention_layers: 0, attention_supervision: none}
"""


@pytest.fixture
def table_file(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: qca-tiny\ndata: scenes\n")
    (tmp_path / "table.yaml").write_text(TABLE)
    return tmp_path / "table.yaml"


def test_rows_have_recipes_folders_and_seeds(table_file):
    table = load_table(table_file, {"learning_rate": "0.5"})
    assert (table.name, table.seeds, table.split_by_seed) == ("table", [0, 1], False)
    assert [row.folder for row in table.rows] == ["reference_model", "plain", "budget_50_learned", "blind"]
    assert [row.baseline for row in table.rows] == ["reference_model", None, None, "blank_images"]
    recipe = table.recipe(table.rows[2], 1, Path("out"))
    assert recipe.output_dir == Path("out/budget_50_learned/1") and recipe.model == "out/plain/1"
    assert recipe.config["token_budget"] == 32 and recipe.attention_supervision == "last_hop"
    assert recipe.arguments["seed"] == 1 and recipe.arguments["learning_rate"] == 0.5 and recipe.data_seed == 0


def test_each_seed_can_have_its_own_split(table_file):
    table_file.write_text(TABLE.replace("rows:", "split_by_seed: true\nrows:"))
    table = load_table(table_file)
    assert [table.recipe(table.rows[1], seed, Path("out")).data_seed for seed in table.seeds] == [0, 1]


def test_reads_keys_of_release_0_1_with_one_warning_each(table_file, caplog):
    old = TABLE.replace("init_from", "after").replace("baseline: reference_model", "control: document")
    table_file.write_text(old.replace("baseline", "control") + "  again: {after: plain}\n")
    table = load_table(table_file)
    assert [row.init_from for row in table.rows] == [None, None, "plain", None, "plain"]
    assert [row.baseline for row in table.rows] == ["reference_model", None, None, "blank_images", None]
    renamed = [("`after`", "`init_from`"), ("`control`", "`baseline`")]
    renamed.append(("`baseline: document`", "`baseline: reference_model`"))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    for old, new in renamed:
        assert sum(f"{old} is now called {new}" in message for message in messages) == 1


@pytest.mark.parametrize(
    ("replaced", "by", "message"),
    [
        ("init_from: plain", "init_from: later", "budget 50 %, learned: `init_from` names 'later'"),
        ("baseline: reference_model", "baseline: random", "reference model: `baseline` is 'random'"),
        (
            "baseline: blank_images, num_attention_layers: 0, attention_supervision: none",
            "baseline: blank_images, faithfulness_questions: 2",
            "blind: `faithfulness_questions` needs relevance maps",
        ),
        ("plain: {", "plain: {num_attention_layers: 0, ", "plain: `faithfulness_questions` needs relevance maps"),
        ("rows:", "lines:", "needs `recipe`, `common`, `seeds` and `rows`"),
        ("rows:", "split_by_seeds: true\nrows:", "no key `split_by_seeds`"),
        ("rows:", "split_by_seed: often\nrows:", "`split_by_seed` is 'often'"),
    ],
)
def test_refuses_an_invalid_table(table_file, replaced, by, message):
    table_file.write_text(TABLE.replace(replaced, by))
    with pytest.raises(ValueError, match=message):
        load_table(table_file)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_tables_are_valid(path, tmp_path):
    table = load_table(path, {"data": "elsewhere"})
    assert len(table.seeds) >= 3 and table.name == path.stem
    recipes = [table.recipe(row, 0, tmp_path) for row in table.rows]
    assert {recipe.data for recipe in recipes} == {"elsewhere"}
    assert len({recipe.output_dir for recipe in recipes}) == len(recipes)
