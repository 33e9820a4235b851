"""Recipes: flat, typed, and clear about what is wrong with them."""

from pathlib import Path

import pytest

from modeling_qca import configuration
from modeling_qca.training.fitting.recipe import load_recipe

RECIPES = sorted(Path(configuration.__file__).parent.glob("recipes/*.yaml"))


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_keys_find_the_recipe_the_model_and_the_trainer(tmp_path):
    path = write(tmp_path, "data: d\nmodel: qca-tiny\nnum_attention_layers: 3\nlearning_rate: 1e-4\nfreeze: [text]\n")
    recipe = load_recipe(path, {"num_train_epochs": "2", "learning_rates": "{vision: 1e-5}", "save_strategy": "no"})
    assert recipe.config == {"num_attention_layers": 3}
    assert recipe.arguments["learning_rate"] == 1e-4
    assert recipe.arguments["num_train_epochs"] == 2 and recipe.arguments["save_strategy"] == "no"
    assert recipe.learning_rates == {"vision": 1e-5}
    assert recipe.training_arguments().label_names == ["labels"]
    assert recipe.output_dir == Path("runs/recipe")


def test_a_recipe_extends_another_beside_it(tmp_path):
    write(tmp_path, "data: d\nmodel: qca-tiny\nseed: 1\nattention_supervision: last_hop\n", "base.yaml")
    recipe = load_recipe(write(tmp_path, "extends: base.yaml\nrelevance: every_hop\n"))
    assert recipe.attention_supervision == "every_hop" and recipe.arguments["seed"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: d\nmodel: m\nlearning_rat: 1\n", "no key `learning_rat`; the nearest is `learning_rate`"),
        ("data: d\nmodel: m\nnum_attention_layer: 1\n", "the nearest is `num_attention_layers`"),
        ("data: d\nmodel: m\nhub_token: secret\n", "`hub_token` must not stand in a recipe"),
        ("model: m\n", "`data` is missing"),
        ("data: d\n", "`model`, or both"),
        ("data: d\nvision_encoder: v\n", "`model`, or both"),
        (
            "data: d\nmodel: m\nattention_supervision: all\n",
            "`attention_supervision` is 'all', not one of none, last_hop, every_hop",
        ),
        ("data: d\nmodel: m\nquestions_per_image: many\n", "`questions_per_image` is 'many', not of type int"),
        ("data: d\nmodel: m\nfreeze: [visions]\n", "no parameter group 'visions'"),
        ("data: d\nmodel: m\ncache_image_features: true\n", "needs `vision` in `freeze`"),
        ("data: d\nmodel: m\nlora_rank: 4\nfreeze: [vision, text]\n", "`lora_rank` is of adapters in the encoders"),
        ("data: d\nmodel: m\nmoving_average: 1.5\n", "between 0 and 1"),
        ("data: d\nmodel: m\nearly_stopping_patience: 0\n", "`early_stopping_patience` is 1 or more, got 0"),
        ("data: d\nmodel: m\nearly_stopping_patience: 1\neval_strategy: no\n", "`eval_strategy` is `no`"),
        ("data: d\nmodel: m\nrestore_callback_states_from_checkpoint: true\n", "no key `restore_callback"),
        ("data: d\nmodel: m\nvocabulary: {min_count: 9}\n", "no `min_count`; it may have minimum_count or top_k"),
        ("data: d\nmodel: m\nvalidation_options: {images: i}\n", "of `validation_data`, and there is none"),
        ("data: d\nmodel: m\npush_to_hub: true\n", "`push_to_hub` is not for a recipe: `qca push`"),
        ("data: d\nmodel: m\nresume_from_checkpoint: c\n", "`resume_from_checkpoint` is not for a recipe: it trains"),
        (
            "data: d\nmodel: m\nattention_supervision: last_hop\nnum_attention_layers: 0\n",
            "`attention_supervision: last_hop` is for hops, and",
        ),
        ("data: d\nmodel: m\nbaselines: [random]\n", "no baseline 'random'"),
        ("data: [\n", "not valid YAML"),
        ("- data\n", "a mapping of keys"),
        ("data: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        load_recipe(write(tmp_path, text))
    assert message in str(error.value) and "recipe.yaml" in str(error.value)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_says_what_it_is_for(path):
    assert path.read_text().startswith("# ")
    recipe = load_recipe(path)
    assert recipe.training_arguments(output_dir="unused").remove_unused_columns is False
