"""`qca predict`: what it prints and how it ends."""

from pathlib import Path

import pytest
from helpers.data_files import draw, write_csv
from helpers.tiny import save_tiny_model
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca.training.prediction.parts import PART_IMAGES


def test_says_how_many_rows_are_no_answer_and_refuses_two_limits(tmp_path: Path):
    save_tiny_model(tmp_path / "run")
    draw(tmp_path / "a.png")
    table = write_csv(tmp_path / "pairs.csv", "image,question", "a.png,what is red", "a.png,where")
    output = tmp_path / "answers.jsonl"
    words = ["predict", str(tmp_path / "run"), str(table), "--output", str(output), "--workers", "0"]
    ended = CliRunner().invoke(app, [*words, "--threshold", "1"], catch_exceptions=False)
    assert ended.exit_code == 0 and "2 of them are no answer" in " ".join(ended.output.split())
    refused = CliRunner().invoke(app, [*words, "--threshold", "1", "--coverage", "0.5"])
    assert "choose one of them" in str(refused.exception)


@pytest.mark.parametrize("damaged", [False, True])
def test_exit_status_says_whether_every_image_was_read(tmp_path: Path, damaged: bool):
    save_tiny_model(tmp_path / "run")
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"") if damaged else draw(tmp_path / "b.png", shade=200)
    table = write_csv(tmp_path / "pairs.csv", "image,question", "a.png,what is red", "b.png,what is red")
    output = tmp_path / "answers.jsonl"
    words = ["predict", str(tmp_path / "run"), str(table), "--output", str(output), "--workers", "0"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == (3 if damaged else 0), ended.output
    shown = " ".join(ended.output.split())
    assert f"{1 if damaged else 2} answers about {1 if damaged else 2} images" in shown
    assert ("could not be read" in shown) == damaged == (tmp_path / "answers.jsonl.unreadable.csv").exists()
    again = CliRunner().invoke(app, [*words, "--resume"])
    assert again.exit_code == ended.exit_code and "finished before" in again.output


@pytest.mark.parametrize(("size", "status"), [(PART_IMAGES, 1), (PART_IMAGES + 1, 2)])
def test_a_batch_is_at_most_a_part(tmp_path: Path, size: int, status: int):
    words = ["predict", str(tmp_path), "photos", "--output", str(tmp_path / "answers.csv"), "--batch-size", str(size)]
    assert CliRunner().invoke(app, words).exit_code == status  # 1: there is no checkpoint
