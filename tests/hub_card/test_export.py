"""`qca export`: programs with the checkpoint's outputs at any batch size and question length, or one clear error."""

import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.calibration import write_calibration
from helpers.data_files import table_folder
from helpers.tiny import (
    ANSWERS,
    WORDS,
    tiny_batch,
    tiny_image,
    tiny_model,
    tiny_processor,
    tiny_text_config,
    tiny_vision_config,
)
from peft import LoraConfig, get_peft_model
from qca_cli.main import app, main
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.exporters import ExportedModel
from typer.testing import CliRunner

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.hub_card import export
from modeling_qca.hub_card.answer_changes import count_answer_changes
from modeling_qca.hub_card.export import EncoderQuantizer, export_checkpoint
from modeling_qca.hub_card.fixed_questions import FixedQuestionModel
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.evaluation.checkpoint import load_checkpoint
from modeling_qca.training.evaluation.evaluation_data import evaluation_data
from modeling_qca.training.experiments.demo import run_demo
from modeling_qca.training.fitting.model_factory import CONFIGURATION

needs_onnx = pytest.mark.skipif(
    any(find_spec(package) is None for package in export.ONNX_PACKAGES), reason="the export extra is not installed"
)
OURS = ["qca.query_embedder", "qca.patch_embedder", "qca.hops", "fusion", "classifier"]
OURS += ["qca.vision_encoder.conditioning", "qca.vision_encoder.budget"]
VARIANTS: list[dict[str, Any]] = [
    {"vision": "deit", "vision_conditioning_layers": "late"},
    {"vision": "dinov2", "vision_conditioning_layers": "all", "vision_conditioning": "question_reads_patches"},
    {"vision": "clip_vision_model", "vision_conditioning_layers": 1, "vision_conditioning": "shared_projections"},
    {"vision": "siglip_vision_model", "token_budget": 5, "token_budget_layer": 1, "token_budget_selection": "spread"},
    {
        "vision": "dinov2_with_registers",
        "token_budget": [2, 9],
        "token_budget_layer": 1,
        "token_budget_selection": "spread",
        "query_tokens": "attended",
    },
    {"token_budget": 5, "token_budget_layer": 1, "token_budget_scorer": "cls_attention", "patch_update": "broadcast"},
    {"token_budget": [2, 9], "token_budget_layer": 1, "vision_conditioning_layers": "all"},
    {
        "vision_feature_layers": [1, 3],
        "query_tokens": "attended",
        "relevance_scorer": "additive",
        "answer_evidence": "hops_and_mean",
        "spatial_fusion": True,
    },
    {
        "relevance_scorer": "bilinear",
        "patch_update": "broadcast",
        "question_pooling": "mean",
        "answer_query": "initial",
    },
    {"num_attention_layers": 0, "question_pooling": "last", "num_classifier_layers": 1},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with encoders of one layer, which export fast."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vision, text = tiny_vision_config(num_hidden_layers=1), tiny_text_config(num_hidden_layers=1)
    fields: dict[str, Any] = {"num_attention_heads": 4, "id2label": ANSWERS, "initializer_range": 0.2}
    torch.manual_seed(0)
    QCAForVisualQuestionAnswering(QCAConfig.from_vision_text_configs(vision, text, **fields)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    write_calibration(folder, [0.5] * 100, images=["0123456789abcdef"])
    return folder


@pytest.fixture(scope="module")
def onnx(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_checkpoint(str(checkpoint), folder)
    return folder


def load(folder: Path) -> ExportedModel:
    """The exported program, on one thread."""
    if (folder / "model.pt2").exists():
        return ExportedModel.from_pretrained(folder)
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    return ExportedModel.from_pretrained(folder, session_options=options)


def random_batches(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of 1 to 9 questions of 0 to 16 tokens about 1 to 4 images."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(count):
        questions, images, tokens = (int(torch.randint(1, most + 1, (), generator=generator)) for most in (9, 4, 16))
        batch = tiny_batch(questions, images, tokens, seed=seed)
        yield batch | {"image_index": torch.randint(images, (questions,), generator=generator)}


def assert_same_answers(program: Callable[..., Any], model: QCAForVisualQuestionAnswering, count: int) -> None:
    for batch in random_batches(count):
        with torch.inference_mode():
            expected = model(**batch)
        found = program(**batch)
        for name in ("logits", "relevance"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)
        assert found.grid == expected.grid


def save_variant(folder: Path, **fields: Any) -> QCAForVisualQuestionAnswering:
    """Save a tiny model with open gates in its conditioned layers."""
    model = tiny_model(**fields)
    for layer in model.qca.vision_encoder.conditioning.values():
        torch.nn.init.constant_(layer.gate, 0.7)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return model


@needs_onnx
def test_export_takes_the_calibration_along_without_digests_of_images(onnx: Path, checkpoint: Path):
    expected, found = (json.loads((folder / "calibration.json").read_text()) for folder in (checkpoint, onnx))
    assert expected["images"] == ["0123456789abcdef"] and found == expected | {"images": None}


@needs_onnx
@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_onnx_program_has_the_outputs_of_the_checkpoint(onnx: Path, checkpoint: Path, count: int):
    assert_same_answers(load(onnx), load_checkpoint(str(checkpoint)), count)


@needs_onnx
def test_onnx_runtime_alone_has_the_outputs_of_the_checkpoint(onnx: Path, checkpoint: Path):
    from onnxruntime import InferenceSession

    images, questions = [tiny_image(0), tiny_image(1, (50, 40))], ["what is big", "where", "is the ball left of it"]
    inputs = {"text": questions, "images": images, "image_index": [1, 0, 1]}
    arrays = QCAProcessor.from_pretrained(onnx)(**inputs, return_tensors="np")
    logits, relevance = InferenceSession(onnx / "model.onnx").run(["logits", "relevance"], dict(arrays))
    with torch.inference_mode():
        expected = load_checkpoint(str(checkpoint))(**tiny_processor()(**inputs))
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(relevance, expected.relevance, atol=1e-4)


@needs_onnx
def test_int8_quantizes_only_the_encoders(onnx: Path, checkpoint: Path):
    program = load(onnx).program
    quantized = EncoderQuantizer().quantize(program, {}, "onnx").graph
    floats = [value.const_value.numpy() for value in quantized.initializers.values() if value.dtype.name == "FLOAT"]
    kept, gone = set(), set()
    for name, module in load_checkpoint(str(checkpoint)).named_modules():
        unused = ("pooler", "position")  # a program leaves out what no output needs
        if isinstance(module, torch.nn.Linear) and not any(part in name for part in unused):
            weight = module.weight.detach().numpy()
            found = any(np.array_equal(array, weight) or np.array_equal(array, weight.T) for array in floats)
            (kept if found else gone).add(name)
    layers = 6 + 6  # query, key, value, output and two feed-forward layers in each of two encoder layers
    assert len(gone) == layers == sum(node.op_type == "MatMulInteger" for node in quantized)
    assert all(".backbone." in name or ".text_encoder." in name for name in gone)
    assert kept >= {"classifier.0", "fusion.0"}


FIXED = [("a", "what is the color of the ball"), ("b", "where"), ("007", "is there a big red cube")]


def assert_same_answers_to_fixed_questions(folder: Path, model: QCAForVisualQuestionAnswering) -> None:
    """Images are the only input, and the outputs are those of each pair asked alone."""
    asked = json.loads((folder / "questions.json").read_text())
    assert [(each["question_id"], each["question"]) for each in asked] == FIXED
    assert_answers_fixed_questions(load(folder), model)


def assert_answers_fixed_questions(program: Callable[..., Any], model: QCAForVisualQuestionAnswering) -> None:
    processor = tiny_processor()
    for count in (1, 4):
        images = [tiny_image(seed, (40, 30)) for seed in range(count)]
        found = program(pixel_values=processor(images)["pixel_values"])
        assert found.logits.shape == (count, 3, 5) and found.relevance.shape[:2] == (count, 3)
        for image in range(count):
            for number, (_, question) in enumerate(FIXED):
                with torch.inference_mode():
                    expected = model(**processor([images[image]], question))
                torch.testing.assert_close(found.logits[image, number], expected.logits[0], rtol=0, atol=1e-4)
                torch.testing.assert_close(found.relevance[image, number], expected.relevance[0], rtol=0, atol=1e-4)


def test_fixed_questions_have_the_outputs_of_each_pair_asked_alone():
    model = tiny_model(token_budget=[2, 9], token_budget_layer=1, vision_conditioning_layers="all")
    fixed = FixedQuestionModel(model, tiny_processor(), [text for _, text in FIXED]).eval()
    with torch.inference_mode():
        assert_answers_fixed_questions(fixed, model)


@needs_onnx
@pytest.mark.slow
def test_onnx_program_with_fixed_questions_takes_images_alone(checkpoint: Path, tmp_path: Path):
    from onnxruntime import InferenceSession

    file = tmp_path / "questions.csv"
    file.write_text("question_id,question\n" + "".join(f"{name},{text}\n" for name, text in FIXED))
    command = ["export", str(checkpoint), str(tmp_path / "out"), "--questions", str(file)]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert [each.name for each in InferenceSession(tmp_path / "out" / "model.onnx").get_inputs()] == ["pixel_values"]
    assert_same_answers_to_fixed_questions(tmp_path / "out", load_checkpoint(str(checkpoint)))
    weights = load_checkpoint(str(checkpoint)).qca.text_encoder.embeddings.word_embeddings.weight.detach().numpy()
    assert weights.tobytes() not in (tmp_path / "out" / "model.onnx.data").read_bytes()  # no text encoder inside


@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_every_variant_exports_with_fixed_questions(fields: dict[str, Any], format: Any, tmp_path: Path):
    model = save_variant(tmp_path / "checkpoint", **fields)
    export_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "out", format, questions=FIXED)
    assert_same_answers_to_fixed_questions(tmp_path / "out", model)


@pytest.mark.parametrize("fixed", [False, True])
def test_counts_the_answers_that_a_program_changes(checkpoint: Path, tmp_path: Path, fixed: bool):
    folder, model, processor = table_folder(tmp_path / "data"), load_checkpoint(str(checkpoint)), tiny_processor()
    asked = FixedQuestionModel(model, processor, [text for _, text in FIXED]) if fixed else model
    number = itertools.count()

    def program(**inputs: torch.Tensor) -> Any:
        """Changes every third answer."""
        outputs = asked(**inputs)
        for logits in outputs.logits.flatten(0, -2).unbind():
            logits *= -1 if next(number) % 3 == 0 else 1
        return outputs

    chosen = evaluation_data("run", None, str(folder), "train", {})
    changes = count_answer_changes(asked, program, processor, chosen, ask_rows=not fixed)
    assert (changes.changed, changes.answers) == ((24, 72) if fixed else (8, 24))
    assert changes.data == "data, train"


@needs_onnx
@pytest.mark.slow
def test_int8_reports_changed_answers_and_no_logit_distance(checkpoint: Path, tmp_path: Path):
    table_folder(tmp_path / "data")
    (tmp_path / "data" / "train.csv").rename(tmp_path / "data" / "validation.csv")
    command = ["export", str(checkpoint), str(tmp_path / "out"), "--int8", "--data", str(tmp_path / "data")]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert re.search(r"\d+ of 24 answers differ from the checkpoint's \(data, validation\)", shown.output)
    assert "within" not in shown.output
    unknown = CliRunner().invoke(app, [*command[:2], str(tmp_path / "other"), "--int8"], catch_exceptions=False)
    assert "remembers no data: pass --data" in " ".join(unknown.output.split())


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_every_variant_exports_to_onnx(fields: dict[str, Any], tmp_path: Path):
    model = save_variant(tmp_path / "checkpoint", **fields)
    export_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "onnx")
    assert_same_answers(load(tmp_path / "onnx"), model, 20)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("vision", ["dinov3_vit", "siglip_vision_model"])  # SigLIP 2 of a fixed size is the second
@pytest.mark.parametrize("fields", [{}, {"token_budget": 5, "token_budget_layer": 1}], ids=str)
def test_recent_encoders_export_to_onnx(vision: str, fields: dict[str, Any], tmp_path: Path):
    model = save_variant(tmp_path / "checkpoint", vision=vision, **fields)
    export_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "onnx")
    assert_same_answers(load(tmp_path / "onnx"), model, 50)


@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_torch_program_has_the_outputs_of_the_checkpoint(fields: dict[str, Any], tmp_path: Path):
    model = save_variant(tmp_path / "checkpoint", **fields)
    arguments = ["export", str(tmp_path / "checkpoint"), str(tmp_path / "program"), "--format", "torch"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0 and "model.pt2" in shown.output and "relevance: within" in shown.output
    assert_same_answers(load(tmp_path / "program"), model, 20)


def assert_exports(model, folder: Path, size: tuple[int, int], text: list) -> None:
    """Every format has the outputs of `model` for pictures of `size` (height, width)."""
    model.save_pretrained(folder / "checkpoint")
    processor = tiny_processor(size={"height": size[0], "width": size[1]})
    processor.save_pretrained(folder / "checkpoint")
    inputs = processor(images=[tiny_image(seed, size[::-1]) for seed in range(len(text))], text=text)
    with torch.inference_mode():
        expected = model(**inputs)
    for format in ["torch"] + ["onnx"] * (find_spec("onnxruntime") is not None):
        export_checkpoint(str(folder / "checkpoint"), folder / format, format)
        found = load(folder / format)(**inputs)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=0, atol=1e-4)
        assert found.grid == expected.grid == (size[0] // 8, size[1] // 8)


@pytest.mark.slow
def test_image_size_of_the_processor_is_exported(tmp_path: Path):
    assert_exports(tiny_model("dinov2"), tmp_path, (48, 40), [["what is it", "where is the ball"]])


@pytest.mark.slow
@pytest.mark.parametrize("regions", [1, 2])
def test_zoom_is_exported(regions: int, tmp_path: Path):
    model = tiny_model("dinov2", zoom_factor=2, zoom_regions=regions)
    assert_exports(model, tmp_path, (64, 128), [["what is it", "where is the ball"]] * 3)


@needs_onnx
def test_export_names_no_local_folder(onnx: Path):
    for file in onnx.iterdir():
        content = file.read_bytes()
        assert str(Path(torch.__file__).parents[1]).encode() not in content, file
        assert str(Path(__file__).parents[2]).encode() not in content, file


def test_adapter_is_exported_merged_into_its_base(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base: Any = QCAForVisualQuestionAnswering.from_pretrained(checkpoint)
    adapted = get_peft_model(base, LoraConfig(target_modules=["query"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    batch = tiny_batch()
    with torch.inference_mode():
        expected = adapted.eval()(**batch).logits
    traced = []

    def trace(model: Any, *_: Any) -> None:
        traced.append(model)
        raise ValueError("enough")

    monkeypatch.setattr(export, "trace_program", trace)
    with pytest.raises(ValueError, match="enough"):
        export_checkpoint(str(tmp_path / "adapter"), tmp_path / "out", "torch")
    with torch.inference_mode():
        torch.testing.assert_close(traced[0](**batch).logits, expected, rtol=0, atol=1e-5)


def test_failed_export_has_one_message_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(message: str, error: type[Exception] = ValueError, **arguments: Any) -> None:
        with pytest.raises(error, match=message) as caught:
            export_checkpoint(**{"checkpoint": str(checkpoint), "output_dir": tmp_path / "a" / "out"} | arguments)
        assert "\n" not in str(caught.value)

    save_variant(tmp_path / "chance", token_budget=5, token_budget_layer=1, token_budget_scorer="random")
    before = sorted(tmp_path.rglob("*"))
    refused("at random", checkpoint=str(tmp_path / "chance"))
    refused("no checkpoint there", checkpoint=str(tmp_path / "absent"))
    refused("not an empty folder", output_dir=tmp_path)
    refused("not an empty folder", output_dir=tmp_path / "chance" / "config.json")
    refused("int8 is for ONNX", format="torch", int8=True)
    with monkeypatch.context() as patch:
        patch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else True)
        refused(r"onnxruntime: pip install .*\[export\]", ImportError)
    with monkeypatch.context() as patch:
        patch.setattr(export, "trace_program", lambda *_: 1 / 0)
        refused("cannot be exported as torch: division by zero", format="torch")
    assert sorted(tmp_path.rglob("*")) == before


def test_command_names_the_missing_packages(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["qca", "export", str(checkpoint), "out"])
    with pytest.raises(SystemExit, match="1"):
        main()
    message = 'error: ONNX needs onnx, onnxruntime, onnxscript: pip install "modeling-qca[export]"\n'
    assert capsys.readouterr().err == message


def test_program_with_other_outputs_is_deleted(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Program:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()

    def other_answers(folder: Path) -> Callable[..., Any]:
        return tiny_model(seed=1)

    monkeypatch.setattr(export, "trace_program", lambda *_: Program())
    monkeypatch.setattr(export.ExportedModel, "from_pretrained", other_answers)
    with pytest.raises(ValueError, match="logits differ from the checkpoint's by up to"):
        export_checkpoint(str(checkpoint), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.slow
def test_int8_keeps_the_answers_of_a_trained_model_and_is_faster(tmp_path: Path):
    run_demo(tmp_path, seed=0)
    source = str(tmp_path / "checkpoint")
    model, processor = load_checkpoint(source), QCAProcessor.from_pretrained(source)
    programs = export_both(source, tmp_path)
    rows = load_rows(str(tmp_path / "scenes"), split="validation")
    kept = dict.fromkeys(programs, 0)
    for start in range(0, len(rows), 8):
        chosen = rows[range(start, min(start + 8, len(rows)))]
        inputs = processor(images=chosen["image"], text=chosen["question"])
        inputs["image_index"] = torch.arange(len(chosen["image"]))  # a program always reads it
        with torch.inference_mode():
            expected = model(**inputs).logits.argmax(dim=-1)
        for name, program in programs.items():
            kept[name] += int((program(**inputs).logits.argmax(dim=-1) == expected).sum())
    print(f"top answers kept out of {len(rows)}: {kept}")
    assert kept["float"] == len(rows) and kept["int8"] >= 0.98 * len(rows)
    ratio = speed_ratio(programs, inputs, 101)
    print(f"qca-tiny, 8 questions on 8 images: int8 is {ratio:.2f} times as fast")
    assert ratio > 1


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("preset", ["qca-small", "qca-base"])
def test_int8_is_faster(preset: str, tmp_path: Path):
    config = QCAConfig.from_pretrained(CONFIGURATION / preset, num_labels=100)
    QCAForVisualQuestionAnswering(config).save_pretrained(tmp_path / "checkpoint")
    processor = QCAProcessor.from_pretrained(CONFIGURATION / preset)
    processor.save_pretrained(tmp_path / "checkpoint")
    programs = export_both(str(tmp_path / "checkpoint"), tmp_path)
    for questions in (1, 8):
        text = [" ".join(WORDS[i : i + 8]) for i in range(questions)]
        inputs = processor(images=[tiny_image()], text=text)
        inputs["image_index"] = torch.zeros(questions, dtype=torch.long)
        ratio = speed_ratio(programs, inputs, 11)
        print(f"{preset}, {questions} questions on 1 image: int8 is {ratio:.2f} times as fast")
        assert ratio > 1


def export_both(checkpoint: str, folder: Path) -> dict[str, ExportedModel]:
    for name in ("float", "int8"):
        export_checkpoint(checkpoint, folder / name, int8=name == "int8")
    return {name: load(folder / name) for name in ("float", "int8")}


def speed_ratio(programs: dict[str, ExportedModel], inputs: Any, rounds: int) -> float:
    """Median time of the float program over that of the int8 one, timed in turn."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            program(**inputs)
            times[name].append(time.perf_counter() - start)
    return statistics.median(times["float"][1:]) / statistics.median(times["int8"][1:])


@pytest.mark.parametrize("kind", ["bitsandbytes-8", "bitsandbytes-4", "torchao"])
def test_quantized_loading_changes_only_the_encoders(kind: str, tmp_path: Path):
    package, _, bits = kind.partition("-")
    pytest.importorskip(package, reason=f"{package} is not installed")
    if package == "torchao":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        config: Any = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=OURS)
    else:
        config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=OURS)
    preset = CONFIGURATION / "qca-tiny"
    plain = QCAForVisualQuestionAnswering(QCAConfig.from_pretrained(preset, num_labels=50)).eval()
    plain.save_pretrained(tmp_path)
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(tmp_path, quantization_config=config)
    same, changed = set(), set()
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear):
            found = model.get_submodule(name)
            untouched = type(found.weight) is torch.nn.Parameter and torch.equal(found.weight, module.weight)
            (same if untouched else changed).add(name)
    assert changed and all(".backbone." in name or ".text_encoder." in name for name in changed)
    assert all(".backbone." not in name for name in same) and any(name.startswith("classifier") for name in same)
    inputs = QCAProcessor.from_pretrained(preset)(images=[tiny_image()], text=["what is red", "how many stars"])
    with torch.inference_mode():
        logits = torch.stack([each(**inputs).logits.flatten() for each in (model, plain)])
    assert torch.corrcoef(logits)[0, 1] > 0.95
