"""`qca predict`: from a source of images to a file of answers, resumable, on one process or several."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset

from modeling_qca import QCAProcessor

from ..files.processes import end_with_parent
from ..files.progress import ProgressLines, track
from .answer_files import check_format, write_answers, write_faults
from .parts import PART_IMAGES, SETTINGS, WORK_LIST, Parts, changed_settings
from .pictures import Pictures, read_pictures
from .predictor import Predictor
from .sources import read_questions, source_rows
from .work_list import ImageBatch, WorkList, write_work_list

LONGEST_WAIT = timedelta(days=7)  # of a process for one that has more to do


@dataclass(frozen=True)
class PredictionRequest:
    """
    Args:
        checkpoint: folder or Hub id.
        images, split, options: see `sources.source_rows`.
        output: file of the answers; its suffix is the format, see `answer_files`.
        questions: file of the questions to ask about every image; None if `images` brings them.
        top_k, regions: see `Predictor`.
        batch_size: images that are encoded together.
        workers: processes that decode images; 0 decodes in this one.
        resume: go on with a stopped run.
        threshold, coverage: when a question gets no answer, see `abstention.read_abstention`.
    """

    checkpoint: str
    images: str
    output: Path
    questions: Path | None = None
    split: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    top_k: int = 1
    regions: bool = False
    batch_size: int = 16
    workers: int = 1
    resume: bool = False
    threshold: float | None = None
    coverage: float | None = None

    @property
    def parts(self) -> Path:
        return self.output.with_name(f"{self.output.name}.parts")

    @property
    def faults(self) -> Path:
        return self.output.with_name(f"{self.output.name}.unreadable.csv")

    @property
    def finished_settings(self) -> Path:
        return self.output.with_name(f"{self.output.name}.settings.json")

    def predictor(self, device: torch.device) -> Predictor:
        return Predictor(
            self.checkpoint, None, self.top_k, self.regions, device, threshold=self.threshold, coverage=self.coverage
        )

    def settings(self, predictor: Predictor) -> dict[str, Any]:
        """What must not change between a run and its resumption."""
        checkpoint = Path(self.checkpoint)
        files = sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*config.json")])  # none for a Hub id
        return {
            "checkpoint": str(checkpoint.resolve()) if files else self.checkpoint,
            "checkpoint_files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
            "images": self.images,
            "split": self.split,
            "options": {name: str(value) for name, value in self.options.items()},
            "questions": None if self.questions is None else read_questions(self.questions),
            "columns": _columns(predictor),
            "top_k": self.top_k,
            "threshold": predictor.abstention.threshold,
            "abstain_answer": predictor.abstention.abstain_answer,
            "part_images": PART_IMAGES,
        }


@dataclass(frozen=True)
class PredictionSummary:
    """The numbers of rows, of images, of those that could not be read, and of rows where the model abstains."""

    answers: int
    images: int
    unreadable: int
    abstained: int


class DecodedBatches(Dataset):
    """
    Batches of images with their questions, decoded where they are asked for.

    Args:
        parts: number and images of each part, which are cut into batches of `batch_size` images.
    """

    def __init__(self, work_list: WorkList, processor: QCAProcessor, parts: dict[int, range], batch_size: int):
        self.work_list, self.processor = work_list, processor
        self.places = [
            (number, images[start : start + batch_size])
            for number, images in parts.items()
            for start in range(0, len(images), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[int, ImageBatch, Pictures]:
        number, images = self.places[index]
        batch = self.work_list.read(images.start, images.stop)
        pictures = read_pictures(self.processor, batch.images)
        pictures.faults.update(batch.faults)
        return number, batch, pictures


def predict_images(request: PredictionRequest) -> PredictionSummary | None:
    """
    Answer the questions of `request` and write its file.

    Under `accelerate launch` the processes share the parts, on one machine or on several with one file system.

    Returns:
        None in all processes but the first, and where a resumed run was finished before.

    Raises:
        ValueError: a source, question or setting that does not fit; an output that exists; an output or parts of
            another run.
    """
    further = {"--questions": request.questions, "--top-k": request.top_k > 1, "--regions": request.regions}
    check_format(request.output, [option for option, given in further.items() if given])
    state = PartialState(timeout=LONGEST_WAIT)
    predictor = request.predictor(state.device)
    parts = Parts(request.parts)
    with _only_run(request, predictor) if state.is_main_process else nullcontext():
        if state.is_main_process:
            _begin(request, parts, predictor)
        state.wait_for_everyone()
        if request.output.exists():
            return None
        missing = parts.missing()
        state.wait_for_everyone()  # before the first new part changes what is missing
        _answer_parts(request, parts, missing[state.process_index :: state.num_processes], predictor, state)
        state.wait_for_everyone()
        return _finish(request, parts, _columns(predictor)) if state.is_main_process else None


@contextmanager
def _only_run(request: PredictionRequest, predictor: Predictor) -> Iterator[None]:
    """
    Raises:
        ValueError: the output exists or is being written, or a stopped run is to be resumed or removed first.
    """
    if request.output.exists():
        _check_finished(request, predictor)
    begun = (request.parts / SETTINGS).exists()
    if begun and not request.resume:
        raise ValueError(f"{request.parts} holds a stopped run: go on with --resume, or remove the folder")
    request.parts.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(request.parts / "lock", timeout=0):  # released if the process is killed
            yield
    except Timeout as error:
        raise ValueError(f"{request.output} is being written by another process") from error


def _check_finished(request: PredictionRequest, predictor: Predictor) -> None:
    """
    Raises:
        ValueError: the output is not that of this request, or the request does not resume.
    """
    output, file, advice = request.output, request.finished_settings, "choose another file, or remove this one"
    if not request.resume:
        raise ValueError(f"{output} exists: {advice}")
    if not file.exists():
        raise ValueError(f"{output} exists, but not {file.name} with the settings of its run: {advice}")
    if changed := changed_settings(json.loads(file.read_text()), request.settings(predictor)):
        raise ValueError(f"{output} was written with another {changed}: {advice}")


def _begin(request: PredictionRequest, parts: Parts, predictor: Predictor) -> None:
    """Write the settings and the work list, unless a stopped run has done it. A failure leaves nothing behind."""
    if request.output.exists():  # the run was stopped while it removed its parts
        shutil.rmtree(parts.folder, ignore_errors=True)
        return
    work_list = parts.folder / WORK_LIST
    if work_list.exists():
        parts.open(request.settings(predictor))
        return
    try:
        parts.open(request.settings(predictor))
        questions = None if request.questions is None else read_questions(request.questions)
        rows = source_rows(request.images, request.split, request.options, with_questions=questions is None)
        predictor.check_questions(questions or [])
        write_work_list(work_list, track(rows, "Listing"), questions)
        for asked in WorkList(work_list).questions():
            predictor.check_questions(asked)
    except BaseException:
        shutil.rmtree(parts.folder)
        raise


def _answer_parts(
    request: PredictionRequest, parts: Parts, numbers: list[int], predictor: Predictor, state: PartialState
) -> None:
    images = {number: parts.images(number) for number in numbers}
    batches = DecodedBatches(parts.work_list, predictor.processor, images, request.batch_size)
    loader = DataLoader(
        batches, batch_size=None, num_workers=request.workers, collate_fn=_as_it_is, worker_init_fn=end_with_parent
    )
    share = "" if state.num_processes == 1 else f" (process 1 of {state.num_processes})"
    progress, done = ProgressLines(f"Images{share}", sum(map(len, images.values()))), 0
    for number, group in groupby(loader, key=itemgetter(0)):
        rows: list[tuple[int, dict[str, Any]]] = []
        faults: list[dict[str, Any]] = []
        for _, batch, pictures in group:
            rows += _answered(batch, pictures, predictor)
            faults += _faults(batch, pictures)
            done += len(batch.images)
            if state.is_main_process:
                progress.update(done)
        parts.write(number, rows, faults)


def _answered(batch: ImageBatch, pictures: Pictures, predictor: Predictor) -> list[tuple[int, dict[str, Any]]]:
    """Number in the output, and content, of the row of each pair whose image can be read."""
    pairs = [pair for pair in batch.pairs if pair.place in pictures.rows]
    if not pairs:
        return []
    answers = predictor.answer(pictures, [pair.place for pair in pairs], [pair.question for pair in pairs])
    named = ({"image_id": pair.image_id, "question_id": pair.question_id, "question": pair.question} for pair in pairs)
    return [(pair.row, names | answer) for pair, names, answer in zip(pairs, named, answers, strict=True)]


def _faults(batch: ImageBatch, pictures: Pictures) -> list[dict[str, Any]]:
    rows = Counter(pair.place for pair in batch.pairs)
    return [
        {"image": batch.names[place], "reason": reason, "rows": rows[place]}
        for place, reason in sorted(pictures.faults.items())
    ]


def _columns(predictor: Predictor) -> list[str]:
    return ["image_id", "question_id", "question", *predictor.fields]


def _finish(request: PredictionRequest, parts: Parts, columns: list[str]) -> PredictionSummary:
    """Merge the parts into the output and remove them."""
    merged, faults = parts.merge()
    records = (json.loads(record) for (record,) in merged.execute("SELECT record FROM answers ORDER BY id"))
    write_faults(request.faults, faults)
    shutil.copyfile(parts.folder / SETTINGS, request.finished_settings)  # before the output, which needs it
    write_answers(request.output, records, columns)
    counted = "SELECT COUNT(*) FROM answers WHERE json_extract(record, '$.abstained')"
    abstained = merged.execute(counted).fetchone()[0]
    merged.close()
    images, answers = parts.work_list.num_images, parts.work_list.num_pairs - sum(fault["rows"] for fault in faults)
    shutil.rmtree(parts.folder)
    return PredictionSummary(answers, images, len(faults), abstained)


def _as_it_is(batch: Any) -> Any:
    return batch
