"""Spelling of options and recipe keys, groups of commands, and names of release 0.1."""

from pathlib import Path
from typing import get_args

import pytest
from qca_cli import measure, prepare_data
from qca_cli.main import GROUPS, app
from qca_cli.options import split_overrides
from typer.main import get_command
from typer.testing import CliRunner

from modeling_qca.training.data.answers import AnswerRule
from modeling_qca.training.fitting import training_run

COMMANDS = get_command(app).commands


def test_every_option_has_hyphens_and_one_name():
    for command in COMMANDS.values():
        for parameter in command.params:
            assert (
                len(parameter.opts) == 1 and "_" not in parameter.opts[0]
            ) or parameter.param_type_name == "argument"


def test_options_of_data_have_one_name_in_all_commands():
    names = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    assert {name for name in names if "options" in name} == {"data_options", "--data-options"} & names


@pytest.mark.parametrize("spelling", ["--output-dir", "--output_dir"])
def test_both_spellings_of_an_option_are_read(spelling, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("modeling_qca.training.experiments.demo.run_demo", lambda folder, seed: seen.append(folder))
    monkeypatch.setattr("qca_cli.try_model.print_results", lambda results: None)
    finished = CliRunner().invoke(app, ["demo", spelling, str(tmp_path)])
    assert finished.exit_code == 0, finished.output
    assert seen == [tmp_path]


@pytest.mark.parametrize("name", ["make-views", "make_views", "bench_training"])
def test_both_spellings_of_a_command_are_read(name):
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_recipe_keys_are_read_in_both_spellings():
    arguments = ["a.yaml", "--learning-rate", "1e-3", "b.yaml", "--attention_supervision=last_hop", "--seed", "-1"]
    paths, overrides = split_overrides(arguments)
    assert paths == ["a.yaml", "b.yaml"]
    assert overrides == {"learning_rate": "1e-3", "attention_supervision": "last_hop", "seed": "-1"}
    with pytest.raises(ValueError, match="--seed: a value is missing"):
        split_overrides(["a.yaml", "--seed"])


def test_recipe_keys_may_come_before_the_recipe(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training_run, "train", lambda recipe, show: seen.append(recipe))
    monkeypatch.setattr("qca_cli.train.print_results", lambda results: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {tmp_path}\nmodel: qca-tiny\n")
    CliRunner().invoke(app, ["train", "--learning-rate", "0.5", str(recipe)], catch_exceptions=False)
    assert seen[0].arguments["learning_rate"] == 0.5


def test_the_option_name_of_release_0_1_is_read_with_one_warning(tmp_path, monkeypatch, caplog):
    seen = []
    monkeypatch.setattr(measure, "check_checkpoint", lambda checkpoint: None)
    monkeypatch.setattr(measure, "print_results", lambda results: None)
    monkeypatch.setattr(
        "modeling_qca.training.evaluation.evaluation.evaluate_checkpoint", lambda *given, **named: seen.append(given)
    )
    command = ["evaluate", "run", str(tmp_path), "--output-dir", str(tmp_path), "--options", "{format: table}"]
    finished = CliRunner().invoke(app, command, catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    assert {"format": "table"} in seen[0]
    assert [record.getMessage() for record in caplog.records] == ["--options is now called --data-options"]


def test_help_groups_the_commands():
    shown = CliRunner().invoke(app, ["--help"]).output
    places = [shown.index(f"─ {group} ─") for group in GROUPS]
    assert places == sorted(places)
    assert {name for commands in GROUPS.values() for name in commands} == COMMANDS.keys()


def test_help_of_train_names_common_keys_and_where_all_are():
    shown = " ".join(CliRunner().invoke(app, ["train", "--help"]).output.split())
    for words in ("--data-options", "--attention-supervision", "--learning-rate", "docs/recipes.md"):
        assert words in shown
    assert (Path(__file__).parents[2] / "docs" / "recipes.md").exists()


def test_answer_rules_of_vocab_are_those_of_training():
    rule = get_args(prepare_data.vocab.__annotations__["rule"])[0]
    assert get_args(rule) == get_args(AnswerRule)
