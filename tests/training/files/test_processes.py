"""Work in several processes: order, errors, and items that are few."""

import os
import subprocess
import sys

import psutil
import pytest

from modeling_qca.training.files.processes import FEW, map_in_order


def square_with_process(item: int) -> tuple[int, int]:
    if item == 1000:
        raise ValueError("item 1000 is refused")
    return item**2, os.getpid()


def test_results_of_several_processes_are_in_order():
    items = range(0, 3 * FEW, 3)
    results = list(map_in_order(square_with_process, [*items, *items], "Squaring", processes=2))
    assert [value for value, _ in results] == [item**2 for item in [*items, *items]]
    assert os.getpid() not in {process for _, process in results}


def test_few_items_are_done_in_this_process():
    assert {process for _, process in map_in_order(square_with_process, range(5), "Squaring", processes=2)} == {
        os.getpid()
    }


def test_an_error_in_a_process_is_raised_here():
    results = map_in_order(square_with_process, range(900, 900 + 2 * FEW), "Squaring", processes=2)
    with pytest.raises(ValueError, match="item 1000 is refused"):
        list(results)


def test_a_worker_ends_when_its_parent_is_killed():
    program = (
        "import multiprocessing, os, time\n"
        "from modeling_qca.training.files.processes import end_with_parent\n"
        "def work():\n"
        "    end_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "multiprocessing.get_context('fork').Process(target=work).start()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    try:
        worker.wait(timeout=20)
    finally:
        if worker.is_running():
            worker.kill()
