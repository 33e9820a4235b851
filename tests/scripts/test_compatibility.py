"""The compatibility table: its page shows the stored results, and a fault or a missing encoder is found."""

import json

import compatibility
import pytest

STORED = json.loads(compatibility.RESULTS.read_text())


def test_page_shows_the_stored_results_of_every_encoder_without_a_fault():
    assert compatibility.PAGE.read_text() == compatibility.page(STORED)
    assert compatibility.faults(STORED) == []


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ({"unclear error": "IndexError: 3"}, "bert: {'unclear error': 'IndexError: 3'}"),
        ({"padding": "1 tokens of padding change a state by 2e+00"}, "bert: {'padding'"),
    ],
)
def test_a_fault_in_the_results_is_found(cells, found):
    (fault,) = compatibility.faults(STORED | {"text": STORED["text"] | {"bert": cells}})
    assert fault.startswith(found)


def test_an_encoder_without_results_is_found():
    text = {name: cells for name, cells in STORED["text"].items() if name != "bert"}
    assert compatibility.faults(STORED | {"text": text}) == ["bert is not in encoders.json: run this without --check"]


def test_the_outcome_of_an_encoder_is_what_its_row_says_or_raises():
    def raising(error):
        def row(name, config):
            raise error

        return row

    assert compatibility.checked("bert", dict, lambda name, config: {"padding": "right"}) == {"padding": "right"}
    refused = ValueError("A `x` text encoder is odd. Encoders such as `bert` are not.")
    assert compatibility.checked("x", dict, raising(refused)) == {"refused": "A `x` text encoder is odd"}
    assert compatibility.checked("x", dict, raising(IndexError("3"))) == {"unclear error": "IndexError: 3"}
    needed = ImportError("A `x` vision encoder needs the package y: `pip install y`. Encoders such as `bert` do not.")
    assert compatibility.checked("x", dict, raising(needed)) == {
        "refused": "A `x` vision encoder needs the package y: `pip install y`"
    }
