"""The memory of a run is read whole, or refused with the file's name."""

import pytest

from modeling_qca.training.files.run_files import RUN, RUN_KEYS, read_run, write_json


def test_a_folder_without_a_run_has_no_memory(tmp_path):
    assert read_run(tmp_path) is None


def test_reads_what_a_training_wrote(tmp_path):
    run = dict.fromkeys(RUN_KEYS, 1)
    write_json(tmp_path / RUN, run)
    assert read_run(tmp_path) == run | {"abstain_answer": None}  # a run of an earlier release has none


@pytest.mark.parametrize("text", ["[1]", "{", '{"data": "d"}'])
def test_refuses_a_damaged_memory(tmp_path, text):
    (tmp_path / RUN).write_text(text)
    with pytest.raises(ValueError, match=r"not the run\.json of a training"):
        read_run(tmp_path)
