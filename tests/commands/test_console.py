"""What is printed: text of the user as it is, and errors in one line."""

import io
import sys

import pytest
import torch
from helpers.tiny import save_tiny_model, tiny_image
from qca_cli import console, main
from qca_cli.main import app
from rich.console import Console
from typer.testing import CliRunner

from modeling_qca.training.prediction.ask import AskedQuestion

BRACKETS = "what is [/red] in [bold]here[/bold] :smile:"
RESULTS = {
    "metrics": {"accuracy": 0.46, "wups_0.9": {"mean": 0.5, "std": 0.01, "seeds": 3}},
    "baselines": {"majority": {"accuracy": 0.31}},
    "attention": {"pointing": {"model": 0.8, "center": 0.4, "uniform": 0.25}},
}


@pytest.fixture
def shown(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=output, width=80, markup=False, emoji=False, highlight=False))
    return output


def test_results_have_a_row_for_each_question_type(shown):
    types = {f"what is the [{number}]": {"accuracy": number / 100} for number in range(65)}
    console.print_results(RESULTS | {"per_question_type": types})
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    assert {"all 0.310 0.460", "wups 0.9: 0.500 ± 0.010", "pointing 0.800 0.400 0.250"} <= {*lines}
    assert {f"what is the [{number}] {number / 100:.3f}" for number in range(65)} <= {*lines}


def test_brackets_in_questions_answers_and_paths_are_printed_as_they_are(tmp_path, monkeypatch):
    folder = tmp_path / "[bold] [red]"
    folder.mkdir()
    save_tiny_model(folder / "checkpoint")
    tiny_image().save(folder / "[x].png")
    monkeypatch.setattr(
        "modeling_qca.training.prediction.ask.answer_questions",
        lambda *given: [AskedQuestion(BRACKETS, [{"answer": "[/a] :smile:", "score": 0.5}], folder / "[y].png")],
    )
    arguments = ["ask", str(folder / "checkpoint"), str(folder / "[x].png"), BRACKETS]
    finished = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    for text in (BRACKETS, "[/a] :smile:", str(folder / "[y].png")):
        assert text in finished.output


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("[/red] is no color"), "error: [/red] is no color"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried [to] allocate"), "out of memory. Tried [to] allocate"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "cannot be multiplied"),
    ],
)
def test_errors_end_in_one_line_and_status_1(error, message, monkeypatch, capsys):
    _fail(error, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        main.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and message in said and len(said.splitlines()) == 1


def test_debug_shows_the_traceback(monkeypatch):
    _fail(RuntimeError("broken"), monkeypatch, "--debug")
    monkeypatch.setenv("QCA_DEBUG", "0")
    with pytest.raises(RuntimeError, match="broken"):
        main.main()


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    _fail(AttributeError("typo"), monkeypatch)
    with pytest.raises(AttributeError, match="typo"):
        main.main()


def _fail(error, monkeypatch, *options):
    def stop(*arguments):
        raise error

    monkeypatch.setattr("modeling_qca.training.experiments.demo.run_demo", stop)
    monkeypatch.setattr(sys, "argv", ["qca", *options, "demo"])
