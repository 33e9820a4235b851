"""Measure `qca predict` where it must hold: memory at a thousand and at a hundred thousand rows, and kill -9.

    python scripts/stress_predict.py FOLDER --per-photo 10 --output docs/results/predict_stress.json

Writes photos and a checkpoint of qca-tiny with random weights to FOLDER. Each measurement is printed, and written to
the output at once. `--rows` and `--kills` without a number leave their part as it is in the output.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from modeling_qca.training.benchmark.prediction_speed import QUESTIONS, write_photos, write_random_checkpoint
from modeling_qca.training.files.run_files import write_json

PHOTOS = 200
QCA = [sys.executable, "-c", "from qca_cli.main import main; main()"]


def write_table(folder: Path, rows: int, per_photo: int) -> Path:
    """A table of `rows` pairs. Each image has a name of its own, which leads to one of `PHOTOS` photos."""
    links, table = folder / f"links{rows}", folder / f"pairs{rows}.csv"
    links.mkdir(exist_ok=True)
    lines = ["image,question,question_id"]
    for row in range(rows):
        link = links / f"{row // per_photo:06d}.jpg"
        if not link.exists():
            os.link(folder / "photos" / f"{row // per_photo % PHOTOS:06d}.jpg", link)
        lines.append(f"{link},{QUESTIONS[row % len(QUESTIONS)]} {row % per_photo},{row:07d}")
    table.write_text("\n".join(lines) + "\n")
    return table


def command(folder: Path, table: Path, output: Path) -> list[str]:
    return [*QCA, "predict", str(folder / "run"), str(table), "--output", str(output)]


def memory_of(process: subprocess.Popen) -> int:
    """The largest sum of bytes that the process and its children held at one time, sampled while it runs."""
    largest = 0
    while process.poll() is None:
        largest = max(largest, _held_bytes(process.pid))
        time.sleep(0.2)
    assert process.returncode == 0
    return largest


def _held_bytes(pid: int) -> int:
    """Proportional share, so that pages shared by processes count once."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return 0
    own = next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return own + sum(_held_bytes(int(child)) for child in children)


def measure_memory(folder: Path, rows: int, per_photo: int) -> dict:
    output = folder / f"memory{rows}.parquet"
    output.unlink(missing_ok=True)
    started = time.monotonic()
    held = memory_of(subprocess.Popen(command(folder, write_table(folder, rows, per_photo), output)))
    assert parquet.read_metadata(output).num_rows == rows
    return {"rows": rows, "peak_megabytes": round(held / 2**20), "seconds": round(time.monotonic() - started, 1)}


def measure_kills(folder: Path, rows: int, kills: int, per_photo: int) -> dict:
    """Kill a run at random points, resume it each time, and compare its file with that of an undisturbed run."""
    table, undisturbed, output = (
        write_table(folder, rows, per_photo),
        folder / "undisturbed.parquet",
        folder / "killed.parquet",
    )
    for file in (undisturbed, output):
        file.unlink(missing_ok=True)
    started = time.monotonic()
    subprocess.run(command(folder, table, undisturbed), check=True)
    seconds, generator, done = time.monotonic() - started, random.Random(0), 0
    while done < kills:
        resume, started = ["--resume"] * Path(f"{output}.parts").exists(), time.monotonic()
        if not resume:
            output.unlink(missing_ok=True)  # it was finished before the last kill; begin again
        process = subprocess.Popen([*command(folder, table, output), *resume], start_new_session=True)
        try:
            process.wait(generator.uniform(0.2, 0.9) * seconds)
            seconds = seconds if resume else time.monotonic() - started  # it was faster than the first
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
    subprocess.run([*command(folder, table, output), "--resume"], check=True)
    found, expected = (parquet.read_table(file).to_pandas() for file in (output, undisturbed))
    names = ["image_id", "question_id", "question", "answer"]
    return {
        "kills": kills,
        "rows": len(found),
        "same_rows_and_answers": bool(found[names].equals(expected[names])),
        "largest_difference_of_a_probability": float((found["probability"] - expected["probability"]).abs().max()),
    }


def record(output: Path | None, **measured: Any) -> None:
    """Print what was measured, and put it beside what the file holds."""
    print(json.dumps(measured), flush=True)
    if output is not None:
        before = json.loads(output.read_text()) if output.exists() else {}
        write_json(output, before | measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--kills", type=int, nargs="?", default=10)
    parser.add_argument("--killed-rows", type=int, default=8000)
    parser.add_argument("--per-photo", type=int, default=len(QUESTIONS), help="questions about each photo")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    folder, per_photo = arguments.folder, arguments.per_photo
    write_photos(folder / "photos", PHOTOS)
    write_random_checkpoint(folder / "run", "qca-tiny")
    record(arguments.output, preset="qca-tiny", questions_per_photo=per_photo, processors=os.cpu_count())
    memory: list[dict] = []
    for rows in arguments.rows:
        memory.append(measure_memory(folder, rows, per_photo))
        record(arguments.output, memory=memory)
    if arguments.kills:
        record(arguments.output, kills=measure_kills(folder, arguments.killed_rows, arguments.kills, per_photo))


if __name__ == "__main__":
    main()
