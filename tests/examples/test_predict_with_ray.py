"""`examples/predict_with_ray.py` on a local Ray with two workers, of which one is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers.tiny import save_tiny_model, tiny_image

from modeling_qca.training.prediction.predictor import Predictor

pytest.importorskip("ray", reason="the ray extra is not installed")
EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_with_ray.py"
# Each worker takes a CPU, and reading another one; a small machine has fewer than Ray is told.
FOUR_CPUS = """
import runpy, sys, ray
for last in (False, False, True):
    try:
        ray.init(num_cpus=4, include_dashboard=False)
        break
    except Exception:  # on a busy machine Ray does not wait long enough for itself
        ray.shutdown()
        if last:
            raise
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
QUESTIONS = ["is there a big red cube", "how many"]


def workers_at_work(run: Path) -> list[int]:
    """Ids of the processes of Ray that are answering; Ray names a process by what it runs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:  # it has ended, or belongs to somebody else
            continue
        ours = f"QCA_RAY_TEST={run}".encode() in environment
        if ours and title.startswith(b"ray::") and b"(Predictor)).submit" in title:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_writes_every_answer_once_although_a_worker_is_killed(tmp_path):
    save_tiny_model(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    images = []
    for seed in range(320):
        tiny_image(seed, (64, 48)).save(tmp_path / "photos" / f"{seed}.png")
        images.append((tmp_path / "photos" / f"{seed}.png").read_bytes())
    images[7] = b"damaged"
    for number in range(8):
        rows = range(40 * number, 40 * number + 40)
        frame = pd.DataFrame({"image": [images[row] for row in rows], "number": list(rows)})
        (tmp_path / "source").mkdir(exist_ok=True)
        frame.to_parquet(tmp_path / "source" / f"{number}.parquet")
    arguments = [str(tmp_path / "run"), str(tmp_path / "source"), str(tmp_path / "out"), *QUESTIONS]
    command = [sys.executable, "-c", FOUR_CPUS, str(EXAMPLE), *arguments]
    environment = {
        "QCA_RAY_TEST": str(tmp_path / "run"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
    }
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    killed = []

    def kill_one() -> None:
        while process.poll() is None and not killed:
            if found := workers_at_work(tmp_path / "run"):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        assert process.wait(timeout=900) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        process.kill()  # nothing is left running after a failure
        killer.join()
    assert killed, "no worker was found"
    found = pd.read_parquet(tmp_path / "out").sort_values("number", kind="stable").reset_index(drop=True)
    expected = pd.DataFrame(Predictor(str(tmp_path / "run"), QUESTIONS)({"image": images, "number": list(range(320))}))
    assert found["number"].tolist() == expected["number"].tolist() and found["question"].tolist() == QUESTIONS * 320
    assert found["answer"].tolist() == expected["answer"].tolist()
    assert found["probability"].tolist() == pytest.approx(expected["probability"].tolist(), abs=1e-5, nan_ok=True)
    assert found.loc[found["error"] != "", "number"].unique().tolist() == [7]
