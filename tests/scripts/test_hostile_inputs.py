"""Hostile inputs end in a valid answer or in one clear error."""

import hostile_inputs
import pytest


@pytest.mark.parametrize(
    "count, seed",
    [(60, 7), pytest.param(2_000, 0, marks=pytest.mark.slow)],
)
def test_hostile_inputs_end_in_an_answer_or_one_clear_error(count: int, seed: int) -> None:
    outcomes = hostile_inputs.run(count, seed)
    print(hostile_inputs.table(outcomes))
    assert len(outcomes) == count
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    if count >= 320:
        assert {outcome.kind for outcome in outcomes if outcome.result == "answer"} == set(hostile_inputs.KINDS)
