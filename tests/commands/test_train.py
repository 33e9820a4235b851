"""`qca train` and `qca demo`: what they pass on, stages, and training stopped on request."""

import pytest
from helpers.finished_runs import run_results, write_run
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca.training.fitting import training_run
from modeling_qca.training.fitting.recipe import load_recipe
from modeling_qca.training.fitting.run_folder import describe
from modeling_qca.training.fitting.training_run import TrainingStoppedError


@pytest.fixture
def trained(monkeypatch):
    """Recipes in the order in which they were to be trained."""
    recipes = []
    monkeypatch.setattr(training_run, "train", lambda recipe, show: recipes.append(recipe))
    monkeypatch.setattr("qca_cli.train.print_results", lambda results: None)
    return recipes


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)


def qca(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_values_are_passed_on_as_typed(tmp_path, trained):
    """Not as paths, which would make `image_id / 12` of `image_id // 12`."""
    (tmp_path / "recipe.yaml").write_text("data: d\nmodel: qca-tiny\n")
    qca("train", "recipe.yaml", "--group_by", "image_id // 12", "--data=hf://data//d", "--format=hub", "--seed", "7")
    assert [(r.group_by, r.data, r.arguments["seed"]) for r in trained] == [("image_id // 12", "hf://data//d", 7)]


def test_each_stage_starts_from_the_one_before(tmp_path, trained):
    (tmp_path / "first.yaml").write_text("data: d\nvision_encoder: a\ntext_encoder: b\noutput_dir: one\n")
    (tmp_path / "second.yaml").write_text("data: d\nmodel: later\noutput_dir: two\n")
    qca("train", "first.yaml", "second.yaml", "--vision_encoder", "v", "--text-encoder", "t")
    assert [(r.vision_encoder, r.text_encoder, r.model) for r in trained] == [("v", "t", None), (None, None, "one")]


def test_no_stage_trains_before_all_recipes_are_read(tmp_path, trained):
    (tmp_path / "first.yaml").write_text("data: d\nvision_encoder: a\ntext_encoder: b\noutput_dir: one\n")
    (tmp_path / "wrong.yaml").write_text("data: d\nmodel: later\nfreez: [text]\n")
    with pytest.raises(ValueError, match="no key `freez`"):
        qca("train", "first.yaml", "wrong.yaml")
    with pytest.raises(ValueError, match="each stage needs a folder"):
        qca("train", "first.yaml", "first.yaml", "--output_dir", "x")
    assert not trained


def test_finished_run_shows_its_results_without_its_data(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "data: gone\nvision_encoder: ./gone\ntext_encoder: ./gone\noutput_dir: run\n"
    )
    with pytest.raises(ValueError, match="gone: no such folder"):
        qca("train", "recipe.yaml")
    write_run(tmp_path / "run", run_results(0.625, recipe=describe(load_recipe("recipe.yaml"))))
    finished = qca("train", "recipe.yaml")
    assert finished.exit_code == 0 and "0.625" in finished.output
    with pytest.raises(ValueError, match="gone"):  # another recipe, so it has to train
        qca("train", "recipe.yaml", "--seed", "7")


def test_training_stopped_on_request_ends_in_one_line_and_status_130(tmp_path, monkeypatch):
    def stop(*arguments):
        raise TrainingStoppedError("stopped at step 3")

    monkeypatch.setattr("modeling_qca.training.experiments.demo.train", stop)
    monkeypatch.setattr("modeling_qca.training.experiments.demo.write_scenes", lambda *arguments: None)
    finished = qca("demo", "--output-dir", tmp_path / "demo")
    assert (finished.exit_code, finished.output) == (130, "stopped at step 3\n")
