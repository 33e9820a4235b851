"""Recipes: keys, types, old names, and errors that name the file and the key."""

from pathlib import Path

import pytest

from modeling_qca import configuration
from modeling_qca.training.fitting.recipe import load_recipe

RECIPES = sorted(Path(configuration.__file__).parent.glob("recipes/*.yaml"))


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_keys_go_to_the_recipe_the_model_or_the_trainer(tmp_path):
    path = write(tmp_path, "data: d\nmodel: qca-tiny\nnum_attention_layers: 3\nlearning_rate: 1e-4\nfreeze: [text]\n")
    recipe = load_recipe(path, {"num_train_epochs": "2", "learning_rates": "{vision: 1e-5}", "save_strategy": "no"})
    assert recipe.config == {"num_attention_layers": 3}
    assert recipe.arguments["learning_rate"] == 1e-4
    assert recipe.arguments["num_train_epochs"] == 2 and recipe.arguments["save_strategy"] == "no"
    assert recipe.learning_rates == {"vision": 1e-5}
    assert recipe.training_arguments().label_names == ["labels"]
    assert recipe.output_dir == Path("runs/recipe")


def test_recipe_extends_another_recipe(tmp_path):
    write(tmp_path, "data: d\nmodel: qca-tiny\nseed: 1\nattention_supervision: last_hop\n", "base.yaml")
    recipe = load_recipe(write(tmp_path, "extends: base.yaml\nrelevance: every_hop\n"))
    assert recipe.attention_supervision == "every_hop" and recipe.arguments["seed"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: d\nmodel: m\nlearning_rat: 1\n", "no key `learning_rat`; the nearest is `learning_rate`"),
        ("data: d\nmodel: m\nnum_attention_layer: 1\n", "the nearest is `num_attention_layers`"),
        ("data: d\nmodel: m\nhub_token: secret\n", "`hub_token` must not be in a recipe"),
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
        ("data: d\nmodel: m\nobject_words: [bed]\n", "set `attention_supervision: every_hop`"),
        (
            "data: d\nmodel: m\nobject_words: [bed]\nattention_supervision: every_hop\n",
            "needs `cache_image_features: true`",
        ),
        ("data: d\nmodel: m\nlora_rank: 4\nfreeze: [vision, text]\n", "`lora_rank` trains adapters in the encoders"),
        ("data: d\nmodel: m\nema_decay: 1.5\n", "between 0 and 1"),
        ("data: d\nmodel: m\nearly_stopping_patience: 0\n", "`early_stopping_patience` is 1 or more, got 0"),
        ("data: d\nmodel: m\nearly_stopping_patience: 1\neval_strategy: no\n", "`eval_strategy` is `no`"),
        ("data: d\nmodel: m\nrestore_callback_states_from_checkpoint: true\n", "no key `restore_callback"),
        ("data: d\nmodel: m\nvocabulary: {min_count: 9}\n", "no `min_count`; it may have minimum_count or top_k"),
        ("data: d\nmodel: m\nvalidation_options: {images: i}\n", "of `validation_data`, and there is none"),
        ("data: d\nmodel: m\npush_to_hub: true\n", "`push_to_hub` is not for a recipe: push"),
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
def test_errors_name_the_file_and_the_key(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        load_recipe(write(tmp_path, text))
    assert message in str(error.value) and "recipe.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("old", "key", "value"),
    [
        ("relevance: every_hop", "attention_supervision", "every_hop"),
        ("relevance: final", "attention_supervision", "last_hop"),
        ("attention_supervision: final", "attention_supervision", "last_hop"),
        ("moving_average: 0.9", "ema_decay", 0.9),
    ],
)
def test_keys_and_values_of_an_earlier_release_are_read_with_a_warning(tmp_path, caplog, old, key, value):
    recipe = load_recipe(write(tmp_path, f"data: d\nmodel: m\n{old}\n"))
    assert getattr(recipe, key) == value
    assert all(key in record.getMessage() for record in caplog.records) and caplog.records
    name, text = old.split(": ")
    caplog.clear()
    assert getattr(load_recipe(write(tmp_path, "data: d\nmodel: m\n"), {name: text}), key) == value
    assert "the command line" in caplog.text


def test_fields_of_a_model_of_an_earlier_release_are_read(tmp_path):
    text = "data: d\nmodel: m\nanswer_query: asked\nattention_dropout: 0.0\n"
    assert load_recipe(write(tmp_path, text)).config == {"answer_query": "initial"}
    with pytest.raises(ValueError, match="attention_dropout"):
        load_recipe(write(tmp_path, "data: d\nmodel: m\nattention_dropout: 0.1\n"))


def test_refuses_an_old_and_a_new_name_of_one_key_together(tmp_path):
    with pytest.raises(ValueError, match="`relevance` is the old name of `attention_supervision`"):
        load_recipe(write(tmp_path, "data: d\nmodel: m\nrelevance: none\nattention_supervision: none\n"))


@pytest.mark.parametrize(
    ("line", "place", "value"),
    [
        ("learning_rate: 1e-4", "arguments", 1e-4),
        ("weight_decay: 0", "arguments", 0.0),
        ("max_steps: 10.0", "arguments", 10),
        ("warmup_steps: 0.05", "arguments", 0.05),
        ("bf16: true", "arguments", True),
        ("eval_strategy: no", "arguments", "no"),
        ("data_seed: 3.0", None, 3),
        ("validation_ratio: 2e-1", None, 0.2),
        ("learning_rates: {vision: 1}", None, {"vision": 1.0}),
        ("vocabulary: {top_k: 1e3}", None, {"top_k": 1000}),
        ("image_size: [224, 160]", None, [224, 160]),
    ],
)
def test_numbers_have_the_type_of_their_key(tmp_path, line, place, value):
    recipe = load_recipe(write(tmp_path, f"data: d\nmodel: m\n{line}\n"))
    key = line.partition(":")[0]
    found = getattr(recipe, place)[key] if place else getattr(recipe, key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "line", ["data_seed: 1.5", "streaming: 1", "bf16: yes please", "validation_ratio: .nan", "freeze: text", "data: 3"]
)
def test_names_the_key_of_a_value_of_the_wrong_type(tmp_path, line):
    key = line.partition(":")[0]
    with pytest.raises(ValueError, match=rf"recipe.yaml: (`{key}` is|not valid YAML)"):
        load_recipe(write(tmp_path, f"model: m\n{line}\n" if key == "data" else f"data: d\nmodel: m\n{line}\n"))


def test_names_a_missing_recipe(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_begins_with_its_purpose(path):
    assert path.read_text().startswith("# ")
    recipe = load_recipe(path)
    assert recipe.training_arguments(output_dir="unused").remove_unused_columns is False
