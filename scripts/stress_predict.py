"""Measure `qca predict` where it must hold: memory at a thousand and at a hundred thousand rows, and kill -9.

python scripts/stress_predict.py FOLDER [--rows 1000 100000] [--kills 10]

Writes photos and a checkpoint of qca-tiny with random weights to FOLDER, and prints one line of JSON for each
measurement.
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

import pyarrow.parquet as parquet

from modeling_qca.training.benchmark.prediction_speed import QUESTIONS, write_photos, write_random_checkpoint

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
        resume = ["--resume"] * Path(f"{output}.parts").exists()
        process = subprocess.Popen([*command(folder, table, output), *resume], start_new_session=True)
        try:
            process.wait(generator.uniform(0.2, 0.9) * seconds)
            output.unlink()  # it was finished before the kill; begin again
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--killed-rows", type=int, default=8000)
    parser.add_argument("--per-photo", type=int, default=len(QUESTIONS), help="questions about each photo")
    arguments = parser.parse_args()
    write_photos(arguments.folder / "photos", PHOTOS)
    write_random_checkpoint(arguments.folder / "run", "qca-tiny")
    for rows in arguments.rows:
        print(json.dumps(measure_memory(arguments.folder, rows, arguments.per_photo)), flush=True)
    if arguments.kills:
        print(
            json.dumps(measure_kills(arguments.folder, arguments.killed_rows, arguments.kills, arguments.per_photo)),
            flush=True,
        )


if __name__ == "__main__":
    main()
