"""Photos a second of `qca predict`, beside its parts: preprocessing, and the model alone on the same photos."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor

from ..fitting.model_factory import CONFIGURATION
from ..prediction.pictures import read_pictures
from ..prediction.prediction_run import PredictionRequest, predict_images
from ..prediction.predictor import Predictor

PHOTO_SIZE = (640, 480)
QUESTIONS = (
    "is there a bed in the room",
    "how many chairs are at the table",
    "what is on the left of the lamp",
    "which color is the sofa",
)
BATCH_SIZE = 16
QUICK = ("qca-tiny", 32)  # preset and photos of a trial
ANSWERS = 3129  # of VQA v2


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of `PHOTO_SIZE` with the detail of photos: some 60 KB each."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse, fine = (
            Image.fromarray(generator.integers(256, size=(height, width, 3), dtype=np.uint8)).resize(PHOTO_SIZE)
            for height, width in ((6, 8), (120, 160))
        )
        photo = Image.blend(coarse, fine, 0.3).filter(ImageFilter.SHARPEN)
        photo.save(folder / f"{number:06d}.jpg", quality=90)


def write_random_checkpoint(folder: Path, preset: str) -> None:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    config = QCAConfig.from_pretrained(CONFIGURATION / preset, num_labels=ANSWERS)
    QCAForVisualQuestionAnswering(config).save_pretrained(folder)
    QCAProcessor.from_pretrained(CONFIGURATION / preset).save_pretrained(folder)


def measure_prediction(
    preset: str = "qca-base", photos: int = 192, rounds: int = 3, workers: int = 1
) -> dict[str, Any]:
    """
    Ask `QUESTIONS` about each photo, in turn by the model alone and by `predict_images`.

    `predict_images` is timed from the folder of photos to the file of answers, with loading the checkpoint. The model
    alone answers decoded photos, with the same cached text features.

    Args:
        photos: a multiple of `BATCH_SIZE`.
        rounds: how often each is timed, after a warm-up.

    Returns:
        `preprocessing`, `model` and `predict`, median photos a second; and `ratio`, the median over the rounds of the
        time of the model over that of `predict_images`.
    """
    seconds: dict[str, list[float]] = {"preprocessing": [], "model": [], "predict": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos(folder / "photos", photos)
        write_random_checkpoint(folder / "run", preset)
        (folder / "questions.txt").write_text("\n".join(QUESTIONS))
        predictor = Predictor(str(folder / "run"))
        files = sorted((folder / "photos").iterdir())
        batches = [files[start : start + BATCH_SIZE] for start in range(0, photos, BATCH_SIZE)]
        places = [place for place in range(BATCH_SIZE) for _ in QUESTIONS]
        warm = read_pictures(predictor.processor, batches[0])
        predictor.answer(warm, places, QUESTIONS * BATCH_SIZE)
        for number in range(rounds):
            pictures = _timed(
                seconds["preprocessing"], lambda: [read_pictures(predictor.processor, b) for b in batches]
            )
            _timed(seconds["model"], lambda read=pictures: [
                predictor.answer(each, places, QUESTIONS * BATCH_SIZE) for each in read
            ])  # fmt: skip
            request = PredictionRequest(
                str(folder / "run"),
                str(folder / "photos"),
                folder / f"{number}.parquet",
                folder / "questions.txt",
                batch_size=BATCH_SIZE,
                workers=workers,
            )
            _timed(seconds["predict"], lambda asked=request: predict_images(asked))
    rates = {name: round(photos / statistics.median(taken), 2) for name, taken in seconds.items()}
    pairs = zip(seconds["model"], seconds["predict"], strict=True)
    ratio = round(statistics.median(alone / whole for alone, whole in pairs), 3)
    return {
        "preset": preset,
        "photos": photos,
        "questions": len(QUESTIONS),
        "workers": workers,
        **rates,
        "ratio": ratio,
    }


def _timed(seconds: list[float], run: Any) -> Any:
    start = time.perf_counter()
    result = run()
    seconds.append(time.perf_counter() - start)
    return result
