"""`qca annotate`: with which options the data is read, and the end of a wrong start."""

import json
import sys
from pathlib import Path

import datasets
import pytest
from helpers.data_files import write_csv
from helpers.tiny import save_tiny_model, tiny_image
from qca_cli.main import app, main
from typer.testing import CliRunner

pytest.importorskip("gradio", reason="the `app` extra is not installed")
pytest.importorskip("inflect", reason="the `maps` extra is not installed")

from modeling_qca.hub_card import annotation
from modeling_qca.training.data.readers.hub import HubTable
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.files.run_files import RUN_KEYS

LAMP, RUG = ({"answer": name, "count": 1} for name in ("lamp", "rug"))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The working folder, with the data set `rooms`, whose pictures are in `photos`. Pages are not served."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(annotation, "launch_annotation", lambda page, **options: None)
    Path("photos").mkdir()
    tiny_image().save("photos/room.png")
    Path("rooms").mkdir()
    write_csv(Path("rooms/train.csv"), "image_id,question,answer", 'room,what is red,"lamp,rug"', "room,how many,2")
    return tmp_path


def annotate(*arguments: str) -> list:
    """The answers of the first question, as the annotated folder has them after a start of the page."""
    started = CliRunner().invoke(app, ["annotate", *arguments], catch_exceptions=False)
    folder = started.stdout.split("Marked data: ")[1].splitlines()[0].strip()
    return load_rows(folder)["answers"][0]


def save_run(folder: str, data: str, format: str = "table", **options: object) -> str:
    """A checkpoint that was trained on `data`."""
    save_tiny_model(Path(folder))
    known = {"data": data, "format": format, "data_options": options}
    Path(folder, "run.json").write_text(json.dumps(dict.fromkeys(RUN_KEYS) | known))
    return folder


def test_options_of_the_run_serve_all_rounds(desk):
    save_run("first", "rooms", images="photos", answer_separator=",")
    save_run("second", "rooms_annotated")
    assert annotate("rooms", "--checkpoint", "first") == [LAMP, RUG]
    assert annotate("rooms", "--checkpoint", "second") == [LAMP, RUG]
    assert annotate("rooms") == [LAMP, RUG]


def test_given_options_are_merged_with_those_of_the_run_and_kept(desk):
    save_run("run", "rooms", images="photos")
    whole = [{"answer": "lamp,rug", "count": 1}]
    assert annotate("rooms", "--checkpoint", "run") == whole
    assert annotate("rooms", "--checkpoint", "run", "--data-options", "{answer_separator: ','}") == [LAMP, RUG]
    assert annotate("rooms", "--checkpoint", "run") == [LAMP, RUG]
    assert annotate("rooms", "--checkpoint", "run", "--data-options", "{answer_separator: null}") == whole


def test_options_of_a_start_without_a_checkpoint_are_kept(desk):
    options = "{images: photos, answer_separator: ','}"
    assert annotate("rooms", "--data-options", options) == annotate("rooms") == [LAMP, RUG]


def test_options_of_another_format_are_left_out(desk):
    run = save_run("run", "rooms", format="vqa_hat", maps="maps")
    options = "{format: table, images: photos, answer_separator: ','}"
    assert annotate("rooms", "--checkpoint", run, "--data-options", options) == [LAMP, RUG]


@pytest.mark.parametrize("content", ["[]", '{"data": ["rooms"], "options": []}', '{"line": 1}\n{"line": 2}\n'])
def test_source_file_of_the_user_is_no_options(desk, content):
    Path("own").mkdir()
    Path("own/source.json").write_text(content)
    run = save_run("run", "own")
    assert annotate("rooms", "--checkpoint", run, "--data-options", "{images: photos}")


def test_damaged_options_of_annotations_are_named(desk, monkeypatch, capsys):
    annotate("rooms", "--data-options", "{images: photos}")
    Path("rooms_annotated/source.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["qca", "annotate", "rooms"])
    with pytest.raises(SystemExit, match="1"):
        main()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {Path('rooms_annotated', 'source.json')}: not the options of annotated data")


@pytest.mark.parametrize("given", [(), ("--data-options", "{format: hub}")])
def test_hub_data_of_the_run_needs_no_options(desk, given, monkeypatch):
    columns = {"image": ["room.png"], "title": ["what is red"], "answer": ["lamp,rug"]}
    monkeypatch.setattr(HubTable, "_table", lambda self: datasets.Dataset.from_dict(columns))
    options = {"images": "photos", "columns": {"question": "title"}, "answer_separator": ","}
    save_run("first", "owner/name", "hub", **options)
    save_run("second", "annotated/name")
    for checkpoint in ("first", "second"):
        assert annotate("owner/name", "--checkpoint", checkpoint, *given) == [LAMP, RUG]
    assert annotate("owner/name") == [LAMP, RUG]


def test_missing_data_ends_in_one_line_and_status_1(desk, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qca", "annotate", "gone"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: gone: no such folder or file")
    assert not Path("gone_annotated").exists()
