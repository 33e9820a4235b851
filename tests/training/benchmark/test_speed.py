"""`qca bench`: its files, its measurements, and resuming."""

import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from helpers.tiny import (
    WORDS,
    called_operators,
    save_tiny_model,
    tiny_image,
)
from PIL import Image

from modeling_qca import QCAProcessor
from modeling_qca.training.benchmark import models as benchmark_models
from modeling_qca.training.benchmark import precision as benchmark_precision
from modeling_qca.training.benchmark import speed as benchmark
from modeling_qca.training.benchmark.models import Contender, Models, Workload
from modeling_qca.training.benchmark.precision import answer_agreement
from modeling_qca.training.benchmark.prediction_speed import measure_prediction
from modeling_qca.training.benchmark.report import render_report, render_short_report
from modeling_qca.training.benchmark.speed import Task, benchmark_cases, measure_memory, measure_times, run_benchmark
from modeling_qca.training.evaluation.checkpoint import load_checkpoint

SEED_DOCUMENT = Path(__file__).parents[4] / "shared" / "seed" / "query-conditioned-visual-attention.md"
CPU = torch.device("cpu")


def quick_models() -> Models:
    return Models(CPU, quick=True)


def row(model: str, median: float, questions: int = 1, **fields) -> dict:
    return {
        "label": model, "model": model, "dtype": "float32", "attention": "sdpa", "compiled": False, "hops": 2,
        "questions": questions, "images": 1, "resolution": None, "mode": "answer", "flops": 4e9,
        "median_s": median, "quartile_1_s": median * 0.9, "quartile_3_s": median * 1.2, "first_s": median,
    } | fields  # fmt: skip


def test_writes_measurements_table_and_plot(tmp_path: Path) -> None:
    results = run_benchmark(tmp_path, quick=True, cases=["one_pair", "hops"])
    assert json.loads((tmp_path / "benchmark.json").read_text()) == results
    measured = results["cases"]["one_pair"]
    names = ["qca", "qca-98", "qca-49", "qca-small", "reference", "vilt", "blip", "smolvlm"]
    assert [r["model"] for r in measured] == names
    for r in measured + results["cases"]["hops"]:
        assert 0 < r["quartile_1_s"] <= r["median_s"] <= r["quartile_3_s"] and r["flops"] > 0
    assert [r["hops"] for r in results["cases"]["hops"]] == [1, 2, 4, 8]
    assert (tmp_path / "benchmark.md").read_text() == render_report(results)
    assert Image.open(tmp_path / "benchmark.png").size[0] > 300
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.md", "benchmark.png"}


def test_a_window_costs_less_than_the_whole_picture_at_its_detail(tmp_path: Path) -> None:
    rows = run_benchmark(tmp_path, quick=True, cases=["zoom"])["cases"]["zoom"]
    flops = {(r["questions"], r["zoom"], r["resolution"]): r["flops"] for r in rows}
    for questions in (1, 16):
        assert flops[questions, 1, 224] < flops[questions, 2, 448]
    assert flops[1, 2, 448] < flops[1, 1, 448]


def test_continues_after_the_last_measured_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(models, tasks, rounds, title):
        if title == "batch_8" and measured == ["one_pair"]:
            measured.append("stopped")
            raise KeyboardInterrupt
        measured.append(title)
        return [row(task.contender.model, 1.0) for task in tasks]

    monkeypatch.setattr(benchmark, "measure_times", measure)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(tmp_path, quick=True, cases=["one_pair", "batch_8"])
    assert json.loads((tmp_path / "benchmark.json").read_text())["cases"].keys() == {"one_pair"}
    run_benchmark(tmp_path, quick=True, cases=["one_pair", "batch_8"])
    assert measured == ["one_pair", "stopped", "batch_8"]
    monkeypatch.setattr(benchmark, "answer_agreement", lambda checkpoint, *_: {"pairs": 500, "agreement": checkpoint})
    for share in (0.5, 0.75):  # of another checkpoint each
        trained = share, datasets.Dataset.from_dict({"question": ["red"] * 500})
        results = run_benchmark(tmp_path, quick=True, cases=["one_pair"], trained=trained)
        assert results["agreement"]["agreement"] == share
    with pytest.raises(ValueError, match="another quick, rounds"):
        run_benchmark(tmp_path, quick=False, cases=["one_pair"])


def test_refuses_unknown_cases_and_a_single_round(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no benchmark case two_pairs"):
        run_benchmark(tmp_path / "new", quick=True, cases=["two_pairs"])
    with pytest.raises(ValueError, match="`rounds` is 1"):
        run_benchmark(tmp_path / "new", quick=True, rounds=1, cases=["one_pair"])
    assert not (tmp_path / "new").exists()


def test_cases_on_cuda_use_bfloat16_and_available_flash_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    available = {"flash_attention_2": lambda: False, "flash_attention_4": lambda: True}
    monkeypatch.setattr(benchmark, "FLASH_ATTENTION", available)
    on_gpu, on_cpu = (benchmark_cases(torch.device(name)) for name in ("cuda", "cpu"))
    assert on_gpu.keys() == on_cpu.keys()
    for name in ("one_pair", "train_8_questions"):
        assert {task.contender.dtype for task in on_gpu[name]} == {"bfloat16"}
    assert [t.contender.model for t in on_gpu["train_8_questions"] if t.contender.compiled] == [
        "qca",
        "qca-98",
        "qca-49",
    ]
    for cases, flash, compiled in (
        (on_gpu, {"flash_attention_4"}, {"bfloat16"}),
        (on_cpu, set(), {"float32", "bfloat16"}),
    ):
        for name in ("implementations_one_pair", "implementations_batch_8"):
            assert {task.contender.dtype for task in cases[name] if task.contender.compiled} == compiled
            ways: dict[str, set] = {"vilt": set(), "qca": set()}
            for task in cases[name]:
                if (contender := task.contender).model in ways and contender.attention not in flash:
                    ways[contender.model].add((contender.dtype, contender.compiled))
            assert ways["vilt"] == ways["qca"]
        attentions = {task.contender.attention for task in cases["implementations_batch_8"]}
        assert attentions == {"eager", "sdpa"} | flash


def test_tasks_run_in_turn_and_medians_exclude_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [Task(Contender(name), Workload()) for name in ("qca", "qca-49")]
    order, seconds = [], iter(range(100))
    clock = iter(t for n in seconds for t in (0.0, float(n)))  # the n-th run takes n seconds
    run = benchmark_models.Model.run
    monkeypatch.setattr(benchmark_models.Model, "run", lambda self, *a: order.append(self) or run(self, *a))
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    rows = measure_times(quick_models(), tasks, rounds=3, title="")
    first, second = order[:2]
    assert order[:8] == [first, second] * 4 and first is not second
    assert [r["first_s"] for r in rows] == [0, 1]
    assert [r["median_s"] for r in rows] == [statistics.median([2, 4, 6]), statistics.median([3, 5, 7])]


def test_counts_operations_of_the_batch() -> None:
    one, many = Workload(), Workload(images=1, questions=16)
    names = ("qca", "qca-98", "qca-49", "reference", "vilt")
    models = quick_models()
    counted = {
        work: [r["flops"] for r in measure_times(models, [Task(Contender(n), work) for n in names], 2, "")]
        for work in (one, many)
    }
    dense, half, quarter, reference, vilt = counted[one]
    assert quarter < half < dense
    assert counted[many][3] == 16 * reference and counted[many][4] == 16 * vilt  # the image again for every question
    assert counted[many][0] < 8 * dense


def test_fixed_questions_are_asked_about_every_image_without_the_text_encoder() -> None:
    work, models = Workload(images=2, questions=6, mode="fixed_questions"), quick_models()
    model = models.get(Contender("qca"))
    model.module.eval()
    inputs, plain = model.inputs(work), model.inputs(Workload(images=2, questions=6))
    pairs = zip(inputs["image_index"].tolist(), inputs["question_index"].tolist(), strict=True)
    assert sorted(pairs) == [(image, question) for image in range(2) for question in range(3)]
    repeated = {name: plain[name][inputs["question_index"]] for name in ("input_ids", "attention_mask")}
    expected = model.run({**plain, **repeated}, "answer")
    torch.testing.assert_close(model.run(inputs, "fixed_questions"), expected, atol=1e-5, rtol=1e-4)
    (fixed,), (fresh,) = (
        measure_times(models, [Task(Contender("qca"), each)], 2, "")
        for each in (work, Workload(images=2, questions=6))
    )
    assert fixed["flops"] < fresh["flops"]


def test_vision_encoder_alone_encodes_each_image_once() -> None:
    models, fixed = quick_models(), Workload(images=2, questions=6, mode="fixed_questions")
    alone = replace(fixed, mode="encode")
    model = models.get(Contender("qca"))
    model.module.eval()
    inputs = model.inputs(alone)
    with torch.inference_mode():
        expected = model.module.get_image_features(model.inputs(fixed)["pixel_values"]).last_hidden_state
    torch.testing.assert_close(model.run(inputs, "encode"), expected, atol=0, rtol=0)
    assert len(expected) == 2
    whole, encoder = measure_times(models, [Task(Contender("qca"), each) for each in (fixed, alone)], 2, "")
    assert 0 < encoder["flops"] < whole["flops"]
    cases = {"vision_encoder": [whole | {"median_s": 1.0}, encoder | {"median_s": 0.92}]}
    settings = {"device": "", "threads": 1, "rounds": 2, "quick": True, "packages": {}}
    report = render_report({"settings": settings, "cases": cases, "matmul_peak": {}})
    assert "takes 92% of the time of qca: 920 of 1000 ms" in report


def test_measures_photos_a_second_of_predict_beside_the_model_alone() -> None:
    measured = measure_prediction("qca-tiny", photos=16, rounds=1, workers=0)
    assert measured["preprocessing"] > measured["predict"] > 0 and measured["model"] > measured["predict"]
    assert 0 < measured["ratio"] < 1
    results = {"settings": {"device": "", "threads": 1, "rounds": 2, "quick": True, "packages": {}}, "cases": {}}
    report = render_report(results | {"matmul_peak": {}, "prediction": measured | {"ratio": 0.91, "predict": 4.321}})
    assert "reaches 91% of the model's own speed" in report and "| qca predict | 4.321 |" in report


def test_our_models_share_encoders() -> None:
    models = quick_models()
    dense, budget, rounded = (models.get(Contender(*c)) for c in (("qca",), ("qca-49",), ("qca", "bfloat16")))
    assert dense.module.qca.text_encoder is budget.module.qca.text_encoder
    assert rounded.module.qca.text_encoder is not dense.module.qca.text_encoder
    assert {p.dtype for p in rounded.module.parameters()} == {torch.bfloat16}
    assert budget.module.qca.vision_encoder.budget.most == 49
    for attention in ("eager", "sdpa"):
        models.get(Contender("qca-49", attention=attention))
        encoders = (budget.module.qca.vision_encoder.backbone, budget.module.qca.text_encoder)
        assert {encoder.config._attn_implementation for encoder in encoders} == {attention}


def test_models_have_their_published_sizes() -> None:
    """SmolVLM-256M-Instruct's safetensors hold 256,484,928 numbers, and a tile is 64 tokens of its text model."""
    with torch.device("meta"):
        models = Models(torch.device("meta"), quick=False)
        modules = {name: models.get(Contender(name)).module for name in ("qca", "qca-small", "smolvlm")}
    assert sum(parameter.numel() for parameter in modules["smolvlm"].parameters()) == 256_484_928
    assert modules["smolvlm"].model.image_seq_len == 64
    widths = {name: module.config.vision_config.hidden_size for name, module in modules.items()}
    assert widths == {"qca": 768, "qca-small": 384, "smolvlm": 768}


def test_smolvlm_writes_its_answer_after_one_tile_and_the_question() -> None:
    model = quick_models().get(Contender("smolvlm"))
    model.module.eval()
    inputs = model.inputs(Workload(images=1, questions=3))
    tile = model.module.model.image_seq_len
    assert inputs["pixel_values"].shape == (3, 1, 3, 128, 128) and inputs["input_ids"].shape == (3, tile + 12)
    written = model.run(inputs, "answer")
    assert written.shape == (3, tile + 12 + 3)
    other = inputs | {"pixel_values": inputs["pixel_values"] + 1}
    logits = [model.callable(**given).logits[:, -1] for given in (inputs, other)]
    assert not torch.allclose(*logits)  # the tile is read
    torch.testing.assert_close(written[:, -3], logits[0].argmax(-1))


def test_training_step_changes_every_model() -> None:
    for name in ("qca", "qca-49", "qca-small", "reference", "vilt", "blip", "smolvlm"):
        model = quick_models().get(Contender(name))
        inputs = model.inputs(Workload(questions=2, mode="train"))
        before = [p.clone() for p in model.module.parameters()]
        model.run(inputs, "train")
        assert any(not torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True)), name
        assert all(p.grad is None for p in model.module.parameters())


@pytest.mark.slow  # a process each
def test_measures_memory_in_separate_processes() -> None:
    tasks = [Task(Contender("qca"), Workload(resolution=size)) for size in (224, 1568)]
    small, large = (r["peak_bytes"] for r in measure_memory(quick_models(), tasks, 1, ""))
    assert 50e6 < small < large


@pytest.fixture
def nothing_compiled() -> None:
    """Sizes that another test of this process varied would be compiled as variables, which freezing cannot read."""
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.slow  # compiles
@pytest.mark.parametrize("name", ["qca", "qca-49", "reference", "vilt"])
def test_compiled_models_give_the_same_logits_from_packed_weights(name: str) -> None:
    models, precision = quick_models(), torch.get_float32_matmul_precision()
    plain = models.get(Contender(name))
    plain.module.eval()
    inputs = plain.inputs(Workload(images=2, questions=2))
    expected = plain.run(inputs, "answer")
    products = called_operators(lambda: plain.run(inputs, "answer"))["aten::linear"]
    compiled = models.get(Contender(name, compiled=True))
    torch.testing.assert_close(compiled.run(inputs, "answer"), expected, atol=1e-4, rtol=1e-4)
    operators = called_operators(lambda: compiled.run(inputs, "answer"))
    assert not {"aten::addmm", "aten::mm"} & operators.keys()
    assert 0 < operators["mkldnn::_linear_pointwise"] < products, "queries, keys and values share one product"
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.slow  # compiles
def test_compiled_models_do_not_share_the_recompile_limit() -> None:
    models = quick_models()
    with torch._dynamo.config.patch(recompile_limit=1):
        for name in ("qca", "qca-49", "vilt"):
            compiled = models.get(Contender(name, compiled=True))
            compiled.module.eval()
            inputs = compiled.inputs(Workload())
            compiled.run(inputs, "answer")
            assert "mkldnn::_linear_pointwise" in called_operators(partial(compiled.run, inputs, "answer")), name


@pytest.mark.slow  # compiles
def test_peak_is_also_sought_among_compiled_products() -> None:
    operators = called_operators(lambda: benchmark.matmul_peak(CPU, quick=False))
    assert {"mkldnn::_linear_pointwise", "aten::linear"} <= operators.keys()


def test_report_shows_the_measurements() -> None:
    peak = {"float32": 1e11, "bfloat16": 4e11}
    settings = {"device": "a processor", "threads": 2, "rounds": 3, "quick": False, "packages": {"torch": "2.13"}}
    cases = {
        "one_pair": [row("qca", 0.08), row("vilt", 0.1, attention="eager")],
        "questions": [row("qca", 0.3, 1), row("qca", 0.4, 8), row("qca-49", 0.1, 1), row("qca-49", 0.8, 8)],
        "implementations_batch_8": [row("qca", 0.2), row("qca", 0.05, dtype="bfloat16", compiled=True)],
        "implementations_one_pair": [
            row("qca", 0.2),
            row("qca", 0.06, compiled=True),
            row("qca", 0.05, dtype="bfloat16"),
            row("vilt", 0.4),
            row("vilt", 0.1, compiled=True),
        ],
        "memory_batch_8": [row("qca", 1.0, peak_bytes=3 * 2**29)],
        "zoom": [row("qca", 0.09, 16, zoom=1, resolution=448), row("qca", 0.07, 16, zoom=2, resolution=448)],
    }
    report = render_report({"settings": settings, "cases": cases, "matmul_peak": peak})
    assert "| qca | float32 | sdpa | 80 | 72 to 96 | 4.0 | 50% | 0.80 |" in report  # 4 GFLOP in 80 ms of 100 GFLOP/s
    assert "| qca | bfloat16 | sdpa, compiled | 50 | 45 to 60 | 4.0 | 20% | 0.25 |" in report
    assert "| qca | float32 | sdpa | 200 | 180 to 240 | 4.0 | 20% | 0.50 | 1.00 |" in report
    assert "| qca | float32 | sdpa, compiled | 60 | 54 to 72 | 4.0 | 67% | 0.60 | 0.30 |" in report  # as ViLT compiled
    assert "| qca | bfloat16 | sdpa | 50 | 45 to 60 | 4.0 | 20% |  | 0.25 |" in report  # where it was not measured
    assert "| qca, 1 window at 2 x | 448 | 16 | 70 | 4.0 |" in report
    assert "| 1 | 300 | 100 | qca-49 |" in report and "| 8 | 50 | 100 | qca |" in report
    assert "| qca | 1.50 |" in report and "a processor, 2 threads" in report and "quick" not in report
    short = render_short_report({"settings": settings, "cases": cases})
    assert "| ms (x vilt) | one pair |" in short and "| qca | 80 (0.80) |\n| vilt | 100 (1.00) |" in short


def test_compares_answers_in_bfloat16_pair_by_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path)
    rows = []
    for index in range(12):
        file = tmp_path / f"{index}.png"
        tiny_image(index).save(file)
        image = {"path": str(file), "bytes": None}
        question = f"what is {WORDS[index]}"
        rows.append({"image": image, "image_id": str(index), "question": question, "question_id": str(index),
                     "answers": [{"answer": "red", "count": 1}]})  # fmt: skip
    rows = datasets.Dataset.from_list(rows)
    same = answer_agreement(str(tmp_path), rows, CPU, torch.float32, pairs=12)
    assert same == {"pairs": 12, "agreement": 1.0}
    model, processor = load_checkpoint(str(tmp_path)), QCAProcessor.from_pretrained(tmp_path)
    inputs = processor(images=[tiny_image(i) for i in range(12)], text=list(rows["question"]), return_tensors="pt")
    with torch.no_grad():
        exact = model(**inputs).logits.argmax(-1)
        rounded = model.bfloat16()(**inputs).logits.argmax(-1)
    dtypes, predict = [], benchmark_precision.predict
    monkeypatch.setattr(
        benchmark_precision, "predict", lambda model, *rest: dtypes.append(model.dtype) or predict(model, *rest)
    )
    agreed = answer_agreement(str(tmp_path), rows, CPU, pairs=12)["agreement"]
    assert dtypes == [torch.float32, torch.bfloat16]
    assert agreed == pytest.approx((exact == rounded).double().mean().item())
    with pytest.raises(ValueError, match="only 12 rows"):
        answer_agreement(str(tmp_path), rows, CPU, pairs=13)
