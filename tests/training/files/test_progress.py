"""Without a terminal, long loops print a line every ten seconds with their rate and the time that is left."""

import itertools

import pytest

from modeling_qca.training.files import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances four seconds at each reading."""
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(step=4).__next__)


def test_prints_rate_and_remaining_time_without_a_terminal(clock, capsys):
    assert list(progress.track(range(6), "Images")) == list(range(6))
    assert capsys.readouterr().err.splitlines() == [
        "Images: 3 of 6, 0.25/s, 0:12 left",
        "Images: 6 of 6, 0.25/s, 0:00 left",
    ]


def test_counts_items_of_an_unknown_number(clock, capsys):
    assert list(progress.track(iter("abc"), "Answers")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "Answers: 3, 0.25/s\n"


def test_a_short_loop_prints_nothing(capsys):
    assert list(progress.track([1, 2], "Images")) == [1, 2]
    assert not capsys.readouterr().err


def test_a_resumed_run_counts_its_own_steps_alone(clock, capsys):
    lines = progress.ProgressLines("Training", 100, done=50)
    for step in (51, 52, 53):
        lines.update(step, "loss 2.5")
    assert capsys.readouterr().err == "Training: 53 of 100, 0.25/s, 3:08 left, loss 2.5\n"
