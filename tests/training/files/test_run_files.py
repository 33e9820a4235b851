"""The memory of a run is read whole, or refused with the file's name."""

import pytest

from modeling_qca.training.files.run_files import RUN, RUN_KEYS, folder_of_run, read_run, write_json


def test_a_folder_without_a_run_has_no_memory(tmp_path):
    assert read_run(tmp_path) is None


def test_reads_what_a_training_wrote(tmp_path):
    run = dict.fromkeys(RUN_KEYS, 1)
    write_json(tmp_path / RUN, run)
    assert read_run(tmp_path) == run | {"abstain_answer": None}  # a run of an earlier release has none


def test_intermediate_checkpoint_has_the_memory_of_its_run(tmp_path):
    write_json(tmp_path / RUN, dict.fromkeys(RUN_KEYS, 1))
    for name in ("checkpoint-2", "checkpoint-best", "other"):
        (tmp_path / name).mkdir()
        assert (read_run(tmp_path / name) is None) == (name != "checkpoint-2")
    write_json(tmp_path / "checkpoint-2" / RUN, dict.fromkeys(RUN_KEYS, 2))  # a run in a folder of that name
    assert read_run(tmp_path / "checkpoint-2")["data"] == 2
    assert folder_of_run("owner/checkpoint-2") == "owner/checkpoint-2"


@pytest.mark.parametrize("text", ["[1]", "{", '{"data": "d"}'])
def test_refuses_a_damaged_memory(tmp_path, text):
    (tmp_path / RUN).write_text(text)
    with pytest.raises(ValueError, match=r"not the run\.json of a training"):
        read_run(tmp_path)
