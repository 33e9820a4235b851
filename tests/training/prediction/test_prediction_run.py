"""`predict_images`: the same rows however they are split, stopped and resumed."""

import csv
import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import psutil
import pytest
from helpers.data_files import write_csv
from helpers.tiny import save_tiny_model, tiny_image

from modeling_qca import configuration
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.prediction import parts, prediction_run
from modeling_qca.training.prediction.prediction_run import PredictionRequest, predict_images
from modeling_qca.training.prediction.predictor import Predictor

QUESTIONS = ["what is the color of the ball", "where is it", "how many"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a folder of 11 photos of which one is damaged, questions, and a shuffled table of 24 pairs."""
    folder = tmp_path_factory.mktemp("desk")
    save_tiny_model(folder / "run")
    (folder / "photos").mkdir()
    for seed in range(10):
        tiny_image(seed, (40, 30)).save(folder / "photos" / f"{seed}.png")
    (folder / "photos" / "5b.jpg").write_bytes(b"damaged")
    (folder / "questions.txt").write_text("\n".join(QUESTIONS))
    pairs = [f"photos/{seed}.png,{QUESTIONS[number]},0{seed}{number}" for seed in range(8) for number in range(3)]
    random.Random(0).shuffle(pairs)
    write_csv(folder / "pairs.csv", "image,question,question_id", *pairs)
    return folder


def request(desk: Path, output: Path, **fields) -> PredictionRequest:
    given = {"images": str(desk / "photos"), "questions": desk / "questions.txt", "workers": 0, "batch_size": 2}
    return PredictionRequest(str(desk / "run"), output=output, **given | fields)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def assert_same_rows(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert float(one.pop("probability")) == pytest.approx(float(other["probability"]), abs=1e-5)
        assert one == {name: value for name, value in other.items() if name != "probability"}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (parts, prediction_run):
        monkeypatch.setattr(place, "PART_IMAGES", 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_asks_every_question_about_every_image_and_lists_the_unreadable(desk, tmp_path, small_parts, workers):
    summary = predict_images(request(desk, tmp_path / "answers.csv", workers=workers))
    assert (summary.answers, summary.images, summary.unreadable) == (30, 11, 1)
    rows = read(tmp_path / "answers.csv")
    names = sorted(f"{seed}.png" for seed in range(10))
    assert [row["image_id"] for row in rows] == [name for name in names for _ in QUESTIONS]
    assert [row["question"] for row in rows] == QUESTIONS * 10
    assert [row["question_id"] for row in rows] == ["1", "2", "3"] * 10
    ask = load_pipeline(str(desk / "run"))
    for row in rows:
        best = ask(str(desk / "photos" / row["image_id"]), row["question"])[0]
        assert row["answer"] == best["answer"]
        assert float(row["probability"]) == pytest.approx(best["score"], abs=1e-6)
    (fault,) = read(tmp_path / "answers.csv.unreadable.csv")
    assert Path(fault["image"]).name == "5b.jpg" and fault["rows"] == "3" and "looks like text" in fault["reason"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"answers.csv{suffix}" for suffix in ("", ".unreadable.csv", ".settings.json")
    }


def test_pairs_of_a_table_keep_their_order_and_each_image_is_read_once(desk, tmp_path, small_parts, monkeypatch):
    opened, plain = [], prediction_run.read_pictures
    monkeypatch.setattr(
        prediction_run, "read_pictures", lambda processor, images: opened.extend(images) or plain(processor, images)
    )
    output = tmp_path / "answers.csv"
    predict_images(request(desk, output, images=str(desk / "pairs.csv"), questions=None))
    expected = read(desk / "pairs.csv")
    rows = read(output)
    assert [(row["question"], row["question_id"]) for row in rows] == [
        (row["question"], row["question_id"]) for row in expected
    ]
    assert max(Counter(opened).values()) == 1 and len(opened) == 8
    ask = load_pipeline(str(desk / "run"))
    for row, pair in zip(rows, expected, strict=True):
        assert row["answer"] == ask(str(desk / pair["image"]), pair["question"])[0]["answer"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".json"])
def test_writes_every_format(desk, tmp_path, suffix):
    output = tmp_path / f"answers{suffix}"
    table = {"images": str(desk / "pairs.csv"), "questions": None}
    further = {} if suffix == ".json" else {"top_k": 2, "regions": True}
    predict_images(request(desk, output, **table, **further))
    predict_images(request(desk, tmp_path / "expected.csv", **table))
    expected = read(tmp_path / "expected.csv")
    if suffix == ".json":
        entries = json.loads(output.read_text())
        assert entries == [{"question_id": row["question_id"], "answer": row["answer"]} for row in expected]
        return
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda file: pd.read_json(file, lines=True)}
    frame = readers[suffix](output)
    columns = [
        "image_id",
        "question_id",
        "question",
        "answer",
        "probability",
        "answers",
        "probabilities",
        "peak",
        "box",
    ]
    assert list(frame.columns) == columns
    assert frame["answer"].tolist() == [row["answer"] for row in expected]
    if suffix != ".csv":
        assert all(
            len(answers) == 2 and len(box) == 4 for answers, box in zip(frame["answers"], frame["box"], strict=True)
        )
    if suffix == ".parquet":
        assert frame["question_id"].tolist() == [row["question_id"] for row in expected]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".json"])
def test_every_format_keeps_the_rows_below_the_threshold_without_answer(desk, tmp_path, suffix):
    table = {"images": str(desk / "pairs.csv"), "questions": None}
    predict_images(request(desk, tmp_path / "all.csv", **table))
    rows = read(tmp_path / "all.csv")
    assert "abstained" not in rows[0]
    threshold = sorted(float(row["probability"]) for row in rows)[10]
    output = tmp_path / f"answers{suffix}"
    summary = predict_images(request(desk, output, **table, threshold=threshold))
    assert (summary.answers, summary.abstained) == (24, 10)
    below = [float(row["probability"]) < threshold for row in rows]
    expected = ["" if hidden else row["answer"] for hidden, row in zip(below, rows, strict=True)]
    if suffix == ".json":
        assert [entry["answer"] for entry in json.loads(output.read_text())] == expected
        return
    readers = {".parquet": pd.read_parquet, ".jsonl": lambda file: pd.read_json(file, lines=True)}
    frame = readers.get(suffix, lambda file: pd.read_csv(file, keep_default_na=False))(output)
    assert frame["answer"].tolist() == expected and frame["abstained"].tolist() == below
    assert frame["probability"].tolist() == pytest.approx([float(row["probability"]) for row in rows])


def test_a_submission_writes_numbers_as_numbers_and_leading_zeros_as_text(desk, tmp_path):
    ids = ["01827492", "1827492", "0", "a1", "²"]
    table = write_csv(
        tmp_path / "t.csv", "image,question,question_id", *(f"{desk}/photos/1.png,where,{i}" for i in ids)
    )
    predict_images(request(desk, tmp_path / "out.json", images=str(table), questions=None))
    written = [entry["question_id"] for entry in json.loads((tmp_path / "out.json").read_text())]
    assert written == ["01827492", 1827492, 0, "a1", "²"]


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--questions", {}),
        ("--top-k", {"questions": None, "top_k": 2}),
        ("--regions", {"questions": None, "regions": 1}),
    ],
)
def test_a_submission_has_no_room_for_further_columns_or_equal_ids(desk, tmp_path, option, given):
    with pytest.raises(ValueError, match=f"leave {option} out, or write .jsonl"):
        predict_images(request(desk, tmp_path / "out.json", **given))


def test_a_stopped_run_goes_on_where_it_stopped(desk, tmp_path, small_parts, monkeypatch):
    predict_images(request(desk, tmp_path / "undisturbed.csv"))
    output, answered = tmp_path / "answers.csv", []
    plain = Predictor.answer

    def stop(self, *given):
        if len(answered) == 4:
            raise KeyboardInterrupt
        answered.append(given)
        return plain(self, *given)

    monkeypatch.setattr(Predictor, "answer", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_images(request(desk, output))
    assert not output.exists()
    with pytest.raises(ValueError, match="holds a stopped run: go on with --resume"):
        predict_images(request(desk, output))
    with pytest.raises(ValueError, match="begun with another columns, top_k: repeat the command"):
        predict_images(request(desk, output, resume=True, top_k=2))
    with pytest.raises(ValueError, match="begun with another columns, threshold: repeat the command"):
        predict_images(request(desk, output, resume=True, threshold=0.1))
    other = tmp_path / "run"
    shutil.copytree(desk / "run", other)
    with pytest.raises(ValueError, match="begun with another checkpoint: repeat"):
        predict_images(dataclasses.replace(request(desk, output, resume=True), checkpoint=str(other)))
    monkeypatch.setattr(Predictor, "answer", lambda self, *given: answered.append(given) or plain(self, *given))
    predict_images(request(desk, output, resume=True))
    assert len(answered) == 4 + 2  # the part of the fifth batch and the one behind it, of two batches each
    assert output.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert predict_images(request(desk, output, resume=True)) is None  # finished before
    with pytest.raises(ValueError, match="exists: choose another file"):
        predict_images(request(desk, output))


def test_a_finished_output_is_resumed_only_with_its_own_settings(desk, tmp_path):
    output, other = tmp_path / "answers.csv", tmp_path / "run"
    table = {"images": str(desk / "pairs.csv"), "questions": None}
    predict_images(request(desk, output, **table))
    written = output.read_bytes()
    shutil.copytree(desk / "run", other)
    (tmp_path / "other.txt").write_text("where")
    for fields, changed in (
        ({"checkpoint": str(other)}, "checkpoint"),
        ({"images": str(desk / "photos"), "questions": tmp_path / "other.txt"}, "images, questions"),
        ({"top_k": 2}, "columns, top_k"),
    ):
        asked = dataclasses.replace(request(desk, output, **table, resume=True), **fields)
        with pytest.raises(ValueError, match=f"answers.csv was written with another {changed}: choose another file"):
            predict_images(asked)
    assert predict_images(request(desk, output, **table, resume=True, batch_size=5)) is None
    (tmp_path / "answers.csv.settings.json").unlink()
    with pytest.raises(ValueError, match=r"exists, but not answers\.csv\.settings\.json .*remove this one"):
        predict_images(request(desk, output, **table, resume=True))
    assert output.read_bytes() == written and not (tmp_path / "answers.csv.parts").exists()


def test_rows_that_show_one_image_under_several_ids_are_all_answered(desk, tmp_path, small_parts, monkeypatch):
    opened, plain = [], prediction_run.read_pictures
    monkeypatch.setattr(
        prediction_run, "read_pictures", lambda processor, images: opened.extend(images) or plain(processor, images)
    )
    shown = [("a", 0), ("b", 1), ("c", 0), ("d", "5b"), ("a", 0), ("e", 2), ("f", 3), ("g", 4), ("h", 1), ("i", "5b")]
    suffixes = {"5b": "jpg"}
    rows = [f"{desk}/photos/{photo}.{suffixes.get(photo, 'png')},{name}" for name, photo in shown]
    table = write_csv(tmp_path / "photos.csv", "image,image_id", *rows)
    summary = predict_images(request(desk, tmp_path / "answers.csv", images=str(table)))
    found = read(tmp_path / "answers.csv")
    assert [row["image_id"] for row in found] == [name for name in "abcefgh" for _ in QUESTIONS]
    assert (summary.answers, summary.images, summary.unreadable) == (21, 6, 1) and len(opened) == 6
    assert [row["answer"] for row in found[:3]] == [row["answer"] for row in found[6:9]]
    (fault,) = read(tmp_path / "answers.csv.unreadable.csv")
    assert fault["rows"] == "6"


def test_rows_that_hold_the_same_bytes_under_two_ids_are_both_answered(desk, tmp_path):
    table = datasets.Dataset.from_dict({"image": [tiny_image(0, (40, 30))] * 3, "image_id": ["a", "b", "a"]})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    predict_images(request(desk, tmp_path / "answers.csv", images=str(tmp_path / "train.parquet")))
    assert [row["image_id"] for row in read(tmp_path / "answers.csv")] == [*"aaabbb"]


def test_images_inside_of_the_data_are_read_from_the_work_list(desk, tmp_path):
    table = datasets.Dataset.from_dict({"image": [tiny_image(0, (40, 30)), None], "question": [QUESTIONS[0]] * 2})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    output = tmp_path / "answers.csv"
    summary = predict_images(request(desk, output, images=str(tmp_path / "train.parquet"), questions=None))
    assert summary.unreadable == 1
    best = load_pipeline(str(desk / "run"))(tiny_image(0, (40, 30)), QUESTIONS[0])[0]
    assert [row["answer"] for row in read(output)] == [best["answer"]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": Path("answers.txt")}, "written as .parquet, .csv, .jsonl, .json"),
        ({"images": "nowhere/*.jpg"}, "no image to answer"),
        ({"images": "nowhere.csv"}, "no such file or folder"),
        ({"questions": "long.txt"}, "Question 1.*red"),
        ({"checkpoint": "nowhere"}, "no checkpoint there"),
    ],
)
def test_a_refused_request_leaves_nothing_behind(desk, tmp_path, monkeypatch, fields, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("red " * 40)
    given = {"checkpoint": str(desk / "run"), "images": str(desk / "photos"), "output": Path("out.csv"), "workers": 0}
    given |= {"questions": str(desk / "questions.txt")} | fields
    given["questions"] = Path(given["questions"])
    with pytest.raises(ValueError, match=message):
        predict_images(PredictionRequest(**given))
    assert {path.name for path in tmp_path.iterdir()} == {"long.txt"}


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    for seed in range(count):
        tiny_image(seed, (64, 48)).save(folder / f"{seed:05d}.png")


def command(desk: Path, output: Path, photos: Path, *further: str) -> list[str]:
    given = [str(desk / "run"), str(photos), "--questions", str(desk / "questions.txt"), "--output", str(output)]
    return [sys.executable, "-c", "from qca_cli.main import main; main()", "predict", *given, *further]


@pytest.mark.slow
def test_killed_at_random_points_the_file_has_the_rows_of_an_undisturbed_run(desk, tmp_path):
    write_photos(tmp_path / "photos", 2000)
    started = time.monotonic()
    subprocess.run(command(desk, tmp_path / "undisturbed.csv", tmp_path / "photos"), check=True, capture_output=True)
    seconds, generator = time.monotonic() - started, random.Random(0)
    output, kills = tmp_path / "answers.csv", 0
    while not output.exists():
        resume = ["--resume"] if (tmp_path / "answers.csv.parts").exists() else []
        process = subprocess.Popen(command(desk, output, tmp_path / "photos", *resume), stderr=subprocess.PIPE)
        try:
            process.wait(generator.uniform(0.2, 0.6) * seconds if kills < 4 else None)
            assert process.returncode == 0, process.stderr.read()
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills
    time.sleep(2)
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(output) in (each.info["cmdline"] or [])]
    assert_same_rows(read(output), read(tmp_path / "undisturbed.csv"))
    assert not (tmp_path / "answers.csv.parts").exists()


@pytest.mark.slow
def test_two_processes_write_the_rows_of_one(desk, tmp_path):
    config = Path(configuration.__file__).parent / "accelerate" / "two_cpu_processes.yaml"
    write_photos(tmp_path / "photos", 400)  # four parts
    (tmp_path / "photos" / "00100b.png").write_bytes(b"damaged")
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    assert subprocess.run(command(desk, one, tmp_path / "photos"), capture_output=True).returncode == 3
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    program = [*launch, "--no_python", *command(desk, two, tmp_path / "photos")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode != 0 and two.exists(), done.stderr[-2000:]  # the launcher passes on that it was not 0
    assert_same_rows(read(two), read(one))
    assert (tmp_path / "two.csv.unreadable.csv").read_bytes() == (tmp_path / "one.csv.unreadable.csv").read_bytes()
