"""Cells of tables."""

import numpy as np
import pytest

from modeling_qca.training.files.markdown import mean_cell


@pytest.mark.parametrize("values", [[0.25, 0.5, 0.625], [1, 2]])
def test_mean_cell_has_the_sample_deviation(values):
    assert mean_cell(values) == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def test_mean_cell_of_one_value_has_no_deviation_and_of_none_is_empty():
    assert (mean_cell([0.5]), mean_cell([])) == ("0.500", "")
