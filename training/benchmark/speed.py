"""`qca bench`: time and memory of our models, the reference model, ViLT, BLIP and SmolVLM, with random weights.

The tasks of a case are timed in turn (A B C A B C ...), so that a machine that slows down slows all of them. Results
are medians and quartiles. Each case is written when it is measured; a stopped run continues with the next case.
"""

import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.progress import Progress
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_flash_attn_4_available

from ..evaluation.device import device_name, synchronize
from ..files.run_files import write_json
from .models import EAGER_ONLY, Contender, Models, Workload, packed_products
from .precision import PAIRS, answer_agreement
from .prediction_speed import QUICK, measure_prediction
from .report import write_report

RESULTS = "benchmark.json"
PREDICTION = "prediction"  # the case of `measure_prediction`
OURS = ("qca", "qca-98", "qca-49")
SMALLER = "qca-small"
OTHERS = ("reference", "vilt", "blip", "smolvlm")
FLASH_ATTENTION = {
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
    "flash_attention_4": is_flash_attn_4_available,
}
RESOLUTIONS, QUESTIONS, HOPS = (224, 336, 448, 560, 672), (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)


@dataclass(frozen=True)
class Task:
    """A model and a batch that is timed."""

    contender: Contender
    workload: Workload

    @property
    def label(self) -> str:
        work = self.workload
        size = "" if work.resolution is None else f" at {work.resolution}"
        return f"{self.contender.label}: {work.mode} {work.questions} on {work.images}{size}"


def benchmark_cases(device: torch.device) -> dict[str, list[Task]]:
    """The tasks of each case. On CUDA models are compared and trained in bfloat16, and compiled means CUDA graphs."""
    cuda = device.type == "cuda"
    dtype = "bfloat16" if cuda else "float32"
    compiled_dtypes = ("bfloat16",) if cuda else ("float32", "bfloat16")
    contenders = [
        Contender(model, dtype, attention="eager" if model in EAGER_ONLY else "sdpa")
        for model in (*OURS, SMALLER, *OTHERS)
    ]
    ours = contenders[: len(OURS)]
    variants = [  # dtype, attention, compiled
        *((each, attention, False) for each in ("float32", "bfloat16") for attention in ("eager", "sdpa")),
        *(("bfloat16", name, False) for name, available in FLASH_ATTENTION.items() if cuda and available()),
        *((each, "sdpa", True) for each in compiled_dtypes),
    ]
    beside_vilt = [
        replace(contender, dtype=each_dtype, compiled=compiled)
        for contender in contenders
        if contender.model in ("qca", "qca-49", "reference", "vilt")
        for each_dtype in ("float32", "bfloat16")
        for compiled in (False, True)
        if not compiled or each_dtype in compiled_dtypes
    ]
    implementations = [Contender(model, *variant) for model in OURS for variant in variants]
    implementations += [contender for contender in beside_vilt if contender.model == "vilt"]
    one_image = Workload(images=1, questions=16)
    fixed = Workload(images=4, questions=48, mode="fixed_questions")
    beside_vilt_uncompiled = [c for c in contenders if c.model in (*OURS, SMALLER, "vilt")]
    train = Workload(images=1, questions=8, mode="train")
    training = contenders + ([replace(c, compiled=True) for c in ours] if cuda else [])
    scaling = [c for c in contenders if c.model not in (SMALLER, "blip", "smolvlm")]
    return {
        "one_pair": [Task(c, Workload()) for c in contenders],
        "batch_8": [Task(c, Workload(images=8, questions=8)) for c in contenders],
        "one_image_16_questions": [Task(c, one_image) for c in contenders],
        "fixed_questions": [Task(c, fixed) for c in beside_vilt_uncompiled],
        "vision_encoder": [Task(ours[0], fixed), Task(ours[0], replace(fixed, mode="encode"))],
        "one_pair_fixed_question": [Task(c, replace(fixed, images=1, questions=1)) for c in beside_vilt_uncompiled],
        "train_8_questions": [Task(c, train) for c in training],
        "implementations_one_pair": [Task(c, Workload()) for c in beside_vilt],
        "implementations_batch_8": [Task(c, Workload(images=8, questions=8)) for c in implementations],
        "questions": [Task(c, Workload(questions=n)) for n in QUESTIONS for c in scaling],
        "resolution": [Task(c, Workload(resolution=size)) for size in RESOLUTIONS for c in ours],
        "hops": [Task(replace(ours[0], hops=n), Workload(questions=16, mode="cached")) for n in HOPS],
        "patches": [Task(ours[0], Workload(questions=16, resolution=n, mode="cached")) for n in RESOLUTIONS],
        "zoom": [
            Task(replace(ours[0], zoom=zoom), Workload(questions=questions, resolution=size))
            for questions in (1, 16)
            for zoom, size in ((1, 224), (1, 448), (2, 448))
        ],
        "memory_batch_8": [Task(c, Workload(images=8, questions=8)) for c in contenders],
        "memory_train_8_questions": [Task(c, train) for c in contenders],
    }


def run_benchmark(
    output_dir: str | os.PathLike,
    quick: bool = False,
    rounds: int = 11,
    cases: Sequence[str] | None = None,
    trained: tuple[str, datasets.Dataset] | None = None,
) -> dict[str, Any]:
    """
    Measure what `output_dir/benchmark.json` lacks, then write the table and the plot from it.

    Args:
        output_dir: also gets `benchmark.md` and `benchmark.png`.
        quick: narrow models, no compilation and two rounds; a check of a minute or two that it runs.
        rounds: how often each task is timed; at least two.
        cases: names in [`benchmark_cases`], and `prediction`; all by default.
        trained: a checkpoint and rows (images not decoded). Its answers in bfloat16 are compared with those in
            float32, see `precision.answer_agreement`.

    Returns:
        The content of `benchmark.json`.

    Raises:
        ValueError: an unknown case, fewer than two rounds, or an `output_dir` with measurements of another machine or
            other settings.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    every_case = benchmark_cases(device)
    names = [*every_case, PREDICTION]
    if unknown := set(cases or ()) - set(names):
        raise ValueError(f"no benchmark case {', '.join(sorted(unknown))}; the cases are {', '.join(names)}")
    if rounds < 2:
        raise ValueError(f"`rounds` is {rounds}; quartiles need at least two")
    if trained is not None and len(trained[1]) < PAIRS:
        raise ValueError(
            f"{trained[0]}: its answers are compared on {PAIRS} rows, but there are only {len(trained[1])}"
        )
    file = Path(output_dir) / RESULTS
    results = _open_results(file, _settings(device, quick, 2 if quick else rounds))
    models = Models(device, quick)
    for name in cases or names:
        if name == PREDICTION or name in results["cases"]:
            continue
        if "matmul_peak" not in results:
            results["matmul_peak"] = matmul_peak(device, quick)
        measure = measure_memory if name.startswith("memory") else measure_times
        tasks = [task for task in every_case[name] if not (quick and task.contender.compiled)]
        results["cases"][name] = measure(models, tasks, results["settings"]["rounds"], name)
        write_json(file, results)
        if name.startswith(("train", "implementations")):
            models.clear()  # gradients and compiled copies of the weights
    if PREDICTION in (cases or names) and PREDICTION not in results:
        results[PREDICTION] = measure_prediction(*QUICK) if quick else measure_prediction()
        write_json(file, results)
    if trained is not None:  # not skipped: it may be another checkpoint than last time
        results["agreement"] = answer_agreement(*trained, device)
        write_json(file, results)
    write_report(results, Path(output_dir))
    return results


def measure_times(models: Models, tasks: Sequence[Task], rounds: int, title: str) -> list[dict[str, Any]]:
    """Time `tasks` in turn, `rounds` times after a warm-up: seconds and floating point operations of each."""
    seconds: list[list[float]] = [[] for _ in tasks]
    inputs = [models.get(task.contender).inputs(task.workload) for task in tasks]
    with Progress(transient=True) as progress:
        bar = progress.add_task(title, total=(rounds + 1) * len(tasks))
        for _ in range(rounds + 1):
            for task, taken, given in zip(tasks, seconds, inputs, strict=True):
                model = models.get(task.contender)
                model.module.train(task.workload.mode == "train")
                synchronize(models.device)
                start = time.perf_counter()
                model.run(given, task.workload.mode)
                synchronize(models.device)
                taken.append(time.perf_counter() - start)
                progress.advance(bar)
    rows = []
    for task, taken, given in zip(tasks, seconds, inputs, strict=True):
        first, timed = taken[0], sorted(taken[1:])
        quartiles = statistics.quantiles(timed, n=4, method="inclusive")
        rows.append(
            _description(task)
            | {"median_s": quartiles[1], "quartile_1_s": quartiles[0], "quartile_3_s": quartiles[2], "first_s": first}
            | {"flops": _count_flops(models, task, given)}
        )
    return rows


def measure_memory(models: Models, tasks: Sequence[Task], rounds: int, title: str) -> list[dict[str, Any]]:
    """Peak memory in bytes of building a model and running a task twice; each task in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with Progress(transient=True) as progress:
        for task in progress.track(tasks, description=title):
            with ProcessPoolExecutor(1, spawn) as process:
                used = process.submit(_peak_memory, task, models.device, models.quick, torch.get_num_threads())
                rows.append(_description(task) | {"peak_bytes": used.result()})
    return rows


def _peak_memory(task: Task, device: torch.device, quick: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    model = Models(device, quick).get(task.contender)
    model.module.train(task.workload.mode == "train")
    inputs = model.inputs(task.workload)
    for _ in range(2):
        model.run(inputs, task.workload.mode)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts the parent's memory into a child's ru_maxrss
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _count_flops(models: Models, task: Task, inputs: dict[str, Any]) -> int:
    attention = "eager"  # the counter sees its matrix products on every device
    model = models.get(replace(task.contender, attention=attention, compiled=False))
    with FlopCounterMode(display=False) as counter:
        model.run(inputs, task.workload.mode)
    return counter.get_total_flops()


@torch.inference_mode()
def matmul_peak(device: torch.device, quick: bool) -> dict[str, float]:
    """Floating point operations a second of the fastest matrix product; on a CPU compiled products count too."""
    size = 256 if quick else 8192 if device.type == "cuda" else 3072
    peaks = {}
    for dtype in ("float32", "bfloat16"):
        product = nn.Linear(size, size, bias=False, device=device, dtype=getattr(torch, dtype))
        given = torch.randn(size, size, device=device).to(product.weight.dtype)
        ways = [product] if quick or device.type == "cuda" else [product, packed_products()(torch.compile(product))]
        seconds = []
        for multiply in ways:
            for _ in range(10):
                synchronize(device)
                start = time.perf_counter()
                multiply(given)
                synchronize(device)
                seconds.append(time.perf_counter() - start)
        peaks[dtype] = 2 * size**3 / min(seconds)
    return peaks


def _description(task: Task) -> dict[str, Any]:
    return {"label": task.label, **asdict(task.contender), **asdict(task.workload)}


def _settings(device: torch.device, quick: bool, rounds: int) -> dict[str, Any]:
    packages = {name: version(name) for name in ("modeling-qca", "torch", "transformers")}
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "quick": quick,
        "packages": packages,
    }


def _open_results(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return {"settings": settings, "cases": {}}
    results = json.loads(file.read_text())
    if results["settings"] != settings:
        different = sorted(name for name in settings if results["settings"].get(name) != settings[name])
        raise ValueError(
            f"{file} was measured with another {', '.join(different)}: choose another folder, or remove the file to "
            "measure anew"
        )
    return results
