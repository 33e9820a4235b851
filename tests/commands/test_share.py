"""`qca push`: the list of files, and the end of a refused push."""

import sys
from pathlib import Path

import pytest
from helpers.hub.connection import connected
from helpers.hub.publishing import Published
from qca_cli.main import app, main
from typer.testing import CliRunner

from modeling_qca.hub_card.publish import push

pytest_plugins = ["helpers.hub.fixtures"]


def test_dry_run_lists_every_file_and_the_withheld_picture(checkpoint: Path) -> None:
    options = ["--dry_run", "--tag", "v1", "--license", "cc-by-4.0", "--base_model", "a/b", "--base-model", "c/d"]
    shown = CliRunner().invoke(app, ["push", str(checkpoint), "user/model", *options])
    assert shown.exit_code == 0, shown.output
    for name in push(checkpoint, "user/model", dry_run=True).files:
        assert name in shown.output
    assert "Nothing was uploaded" in shown.output and "overlay.png is not published" in shown.output


def test_dry_run_lists_the_picture_on_request(checkpoint: Path) -> None:
    shown = CliRunner().invoke(app, ["push", str(checkpoint), "user/model", "--dry-run", "--with-example-picture"])
    assert shown.exit_code == 0, shown.output
    assert "overlay.png" in shown.output and "is not published" not in shown.output


def test_refused_push_lists_the_files_first_and_ends_in_one_line_and_status_1(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qca", "push", str(published.checkpoint), "somebody/model", "--tag", "v1"])
    with connected(published.hub, tmp_path), pytest.raises(SystemExit, match="1"):
        main()
    printed = capsys.readouterr()
    assert "model.safetensors" in printed.out and "overlay.png" not in printed.out
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: somebody/model was not published") and "hf auth login" in last
