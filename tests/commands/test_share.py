"""`qca push`: what it lists, and how a refusal of the Hub ends."""

from pathlib import Path

from helpers.hub.publishing import Published
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca.hub_card.publish import push

pytest_plugins = ["helpers.hub.fixtures"]


def test_a_dry_run_lists_every_file_and_uploads_nothing(checkpoint: Path) -> None:
    options = ["--dry_run", "--tag", "v1", "--license", "cc-by-4.0", "--base_model", "a/b", "--base-model", "c/d"]
    shown = CliRunner().invoke(app, ["push", str(checkpoint), "user/model", *options])
    assert shown.exit_code == 0, shown.output
    for name in push(checkpoint, "user/model", dry_run=True).files:
        assert name in shown.output
    assert "Nothing was uploaded" in shown.output


def test_a_refused_token_ends_in_one_line_and_status_1(published: Published) -> None:
    command = "import sys; from qca_cli.main import main; sys.argv[0] = 'qca'; main()"
    done = published.client.run(command, "push", published.checkpoint, "somebody/model", "--tag", "v1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: somebody/model was not published") and "hf auth login" in last
