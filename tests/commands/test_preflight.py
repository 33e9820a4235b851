"""Checks before anything heavy is imported: their messages, and that they agree with the full checks."""

import pytest
from helpers.fresh_process import run
from qca_cli import preflight

from modeling_qca.training.fitting import recipe

FRESH = """
import io, sys
from contextlib import redirect_stderr, redirect_stdout
from qca_cli.main import main

for line in open("commands.txt"):
    sys.argv, said = ["qca", *line.strip().split("|")], io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    heavy = [name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules]
    print(code, heavy, " ".join(said.getvalue().split()))
"""
AUTO_CLASSES = """
import modeling_qca
from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor

for auto in (AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor):
    print(type(auto.from_pretrained("checkpoint")).__module__)
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a recipe, a table of rows, an empty data folder, a checkpoint's config and an image file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "cat.jpg").write_bytes(b"")
    (tmp_path / "good.yaml").write_text("data: data\nmodel: qca-tiny\n")
    (tmp_path / "child.yaml").write_text("extends: good.yaml\nlearning_rat: 1\n")
    (tmp_path / "nowhere.yaml").write_text("data: nowhere\nmodel: qca-tiny\n")
    (tmp_path / "empty.yaml").write_text("model: qca-tiny\n")
    (tmp_path / "table.yaml").write_text("recipe: good.yaml\ncommon: {sed: 1}\nseeds: [0]\nrows: {a: {}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_keys_are_those_that_the_full_check_knows():
    known = recipe.OWN_FIELDS | recipe.CONFIG_FIELDS | recipe.ARGUMENT_FIELDS
    assert known <= preflight.known_keys()


@pytest.mark.parametrize(
    "old", ["attention_dropout: 0.0", "answer_fusion: concatenation", "relevance: none", "moving_average: 0.9"]
)
def test_keys_of_release_0_1_are_accepted_as_by_the_full_check(old, desk):
    (desk / "old.yaml").write_text(f"data: data\nmodel: qca-tiny\n{old}\n")
    preflight.check_recipes(["old.yaml"], {})
    assert recipe.load_recipe("old.yaml").data == "data"


def test_wrong_arguments_end_in_one_line_before_torch_is_imported(desk):
    cases = {
        "train|missing.yaml": "no such recipe",
        "train|child.yaml": "no key `learning_rat`; the nearest is `learning_rate`",
        "train|good.yaml|--num-attention-layer|2": "the nearest is `num_attention_layers`",
        "train|nowhere.yaml": "nowhere: no such folder or file",
        "train|empty.yaml": "`data` is missing",
        "train|good.yaml|--text_encoder|./missing": "`text_encoder` is ./missing",
        "results|table.yaml": "no key `sed`; the nearest is `seed`",
        "results|table.yaml|--seeds|x": "--seeds takes numbers",
        "ask|missing|cat.jpg|what": "missing: no such checkpoint",
        "ask|run|cat.jpg|what": "Did you mean run/checkpoint?",
        "ask|run/checkpoint|dog.jpg|what": "dog.jpg: no such image",
        "ask|run/checkpoint|data|what": "data is a folder",
        "ask|run/checkpoint|cat.jpg|b.jpg|what is it": "b.jpg is a file, not a question",
        "ask|run/checkpoint|cat.jpg|--|--top|what is it": "--top is an option, not a question",
        "ask|run/checkpoint|cat.jpg|what|color": 'each question needs quotes: "what color"',
        "explain|run/checkpoint|cat.jpg|data": "data is a file, not a question",
        "evaluate|run/checkpoint|nowhere": "nowhere: no such folder or file",
        "export|missing|out": "missing: no such checkpoint",
        "export|run/checkpoint|out|--data|data": "add --int8, or leave --data out",
        "push|missing|me/name": "missing: no such checkpoint",
        "vocab|nowhere|data": "nowhere: no such folder or file",
        "check|nowhere": "nowhere: no such folder or file",
        "check|missing.yaml": "no such recipe",
        "check|data|--group-b|image_id": "the nearest is `group_by`",
        "check|data|good.yaml": "this command takes one file, got 2",
    }
    (desk / "commands.txt").write_text("".join(f"{command}\n" for command in cases))
    lines = run(FRESH, folder=desk).splitlines()
    for (command, message), line in zip(cases.items(), lines, strict=True):
        assert line.startswith("1 [] error: ") and message in line, (command, line)


def test_mistyped_commands_and_help_do_not_import_torch(desk):
    cases = {
        "evalute|x": (2, "evaluate"),
        "train": (2, "recipes"),
        "--help": (0, "Usage"),
        "train|--help": (0, "keys"),
    }
    (desk / "commands.txt").write_text("".join(f"{command}\n" for command in cases))
    for (command, (code, words)), line in zip(cases.items(), run(FRESH, folder=desk).splitlines(), strict=True):
        assert line.startswith(f"{code} [] ") and words in line, (command, line)


def test_the_nearest_key_is_the_one_of_the_full_check(desk):
    for key in ("learning_rat", "num_attention_layer", "dta_options", "x"):
        (desk / "wrong.yaml").write_text(f"data: data\nmodel: qca-tiny\n{key}: 1\n")
        messages = []
        for check in (lambda path: preflight.check_recipes([path], {}), recipe.load_recipe):
            with pytest.raises(ValueError) as caught:
                check("wrong.yaml")
            messages.append(str(caught.value).partition("nearest")[2].split("`")[1])
        assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "text",
    ["[", "data: &x [*x]", "- 1", "a: 2020-13-45", "? [1]\n: 2", "[" * 5000, "\0", "extends: odd.yaml", "extends: 1"],
)
def test_files_that_only_the_full_check_can_judge_are_left_to_it(text, desk):
    (desk / "odd.yaml").write_text(text)
    preflight.check_recipes(["odd.yaml"], {})
    with pytest.raises(ValueError, match=r"odd\.yaml"):
        recipe.load_recipe("odd.yaml")


def test_hub_ids_and_urls_are_accepted_without_a_look(desk):
    preflight.check_checkpoint("owner/name")
    preflight.check_image("https://example.org/cat.jpg")
    preflight.check_data("owner/name", "{format: hub}")
    preflight.check_recipes(["good.yaml"], {"model": "null", "vision_encoder": "facebook/dinov2-small"})
    (desk / "runs").mkdir()
    with pytest.raises(ValueError, match="no such checkpoint"):
        preflight.check_checkpoint("runs/name")


@pytest.mark.parametrize(
    "questions",
    [["what is cat.jpg showing?"], ["why"], ["is it red", "bed"], ["这是什么", "哪里"], ["is [this] a :smile:?"]],
)
def test_questions_are_accepted(questions, desk):
    preflight.check_questions(questions)


def test_each_auto_class_loads_a_checkpoint_without_trust(tmp_path):
    from helpers.tiny import save_tiny_model

    save_tiny_model(tmp_path / "checkpoint")
    modules = run(AUTO_CLASSES, folder=tmp_path).split()
    assert len(modules) == 4 and all(module.startswith("modeling_qca.") for module in modules)
