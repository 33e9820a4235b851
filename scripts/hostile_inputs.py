"""Run hostile inputs: `python scripts/hostile_inputs.py [--count 10000] [--seed 0]`. Kinds are in `KINDS`.

The seed, the kind and the number of an input determine it. Each input must end in a valid answer or in one clear
error, within 5 seconds of processor time. An input fails if it ends in a crash, a hang, another error, a value that is
not finite, too much memory, or a file left behind. A worker process takes the inputs, so that this process survives.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
SECONDS = 5.0  # of processor time
HANG_DEADLINE = 60.0  # seconds of wall time
MEMORY = 4 * 2**30  # bytes beyond those of the loaded libraries
LONGEST_MESSAGE = 10_000  # characters
NO_MEMORY = re.compile("MemoryError|out of memory|allocate")
KINDS = ("image", "question", "config", "recipe", "table")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one input: `result` is "answer", the class of an error, or the kind of failure."""

    kind: str
    number: int
    result: str
    passed: bool
    seconds: float
    detail: str = ""


def run(count: int, seed: int) -> list[Outcome]:
    """The outcomes of `count` inputs, the same number of each kind."""
    outcomes: list[Outcome] = []
    inputs = [(kind, number) for kind in KINDS for number in range(count // len(KINDS))]
    with tempfile.TemporaryDirectory() as folder:
        while len(outcomes) < len(inputs):
            outcomes += _run_worker(inputs[len(outcomes) :], seed, folder)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """A text table: the number of inputs by result and kind."""
    counts = Counter((outcome.result, outcome.kind) for outcome in outcomes)
    results = sorted({result for result, _ in counts}, key=lambda result: (result != "answer", result))
    lines = [f"{'':32}" + "".join(f"{kind:>10}" for kind in KINDS) + f"{'all':>10}"]
    for result in [*results, "inputs"]:
        row = [sum(n for (r, k), n in counts.items() if k == kind and result in (r, "inputs")) for kind in KINDS]
        lines.append(f"{result:32}" + "".join(f"{n:>10,}" for n in [*row, sum(row)]))
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    failed = sum(not outcome.passed for outcome in outcomes)
    return "\n".join([*lines, f"slowest {slowest.seconds:.2f} s ({slowest.kind} {slowest.number}), {failed} failed"])


def _run_worker(inputs: list[tuple[str, int]], seed: int, folder: str) -> list[Outcome]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(inputs, seed, folder, sender), daemon=True)
    worker.start()
    sender.close()
    outcomes: list[Outcome] = []
    try:
        receiver.recv()  # the libraries are loaded
        while len(outcomes) < len(inputs):
            if not receiver.poll(HANG_DEADLINE):
                outcomes.append(Outcome(*inputs[len(outcomes)], "HANG", False, HANG_DEADLINE))
                break
            outcomes.append(receiver.recv())
    except EOFError:
        worker.join()
        outcomes.append(Outcome(*inputs[len(outcomes)], f"CRASH ({worker.exitcode})", False, 0.0))
    finally:
        worker.kill()
        worker.join()
    return outcomes


def _work(inputs: list[tuple[str, int]], seed: int, folder: str, sender: Connection) -> None:
    place = Path(folder) / str(os.getpid())
    place.mkdir()
    os.chdir(place)
    os.environ |= {"HOME": folder, "TMPDIR": str(place), "HF_HOME": f"{folder}/hf", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    tempfile.tempdir = None
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the libraries' warnings
    sys.path.append(str(TESTS))
    from helpers import hostile_subjects

    subjects = hostile_subjects.Subjects(Path(folder) / "input")
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, -1))
    sender.send("ready")
    there = set(place.rglob("*"))
    for kind, number in inputs:
        outcome = _outcome(subjects, kind, number, seed)
        if left := set(place.rglob("*")) - there:
            outcome = replace(outcome, result="FAILED LEFT FILES", passed=False, detail=str(sorted(left)))
            there |= left
        sender.send(outcome)


def _outcome(subjects: Any, kind: str, number: int, seed: int) -> Outcome:
    started = time.process_time()
    try:
        values = subjects.meet(kind, number, seed)
        result, passed, detail = "answer", all(map(math.isfinite, values)), ""
        result = result if passed else "NO NUMBER"
    except Exception as error:
        result, detail = type(error).__name__, f"{type(error).__name__}: {error}"
        passed = subjects.is_clear(kind, error) and not NO_MEMORY.search(detail) and len(detail) < LONGEST_MESSAGE
    seconds = time.process_time() - started
    if seconds > SECONDS:
        result, passed = "SLOW", False
    return Outcome(kind, number, result if passed else f"FAILED {result}", passed, seconds, detail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every outcome here, with its message")
    arguments = parser.parse_args()
    outcomes = run(arguments.count, arguments.seed)
    print(table(outcomes))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    for outcome in outcomes:
        if not outcome.passed:
            print(f"{outcome.kind} {outcome.number}: {outcome.result} {outcome.detail[:300]!r}")
    sys.exit(not all(outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    main()
