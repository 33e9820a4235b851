"""The server answers from an ONNX export without torch, as the checkpoint does."""

import base64
import json
import re
import shutil
import subprocess
import sys
import venv
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.calibration import write_calibration
from helpers.fresh_process import run
from helpers.tiny import save_tiny_model, tiny_image, tiny_processor
from huggingface_hub.utils import httpx
from PIL import Image
from transformers import (
    BeitImageProcessorPil,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    DPTImageProcessorPil,
    EfficientNetImageProcessorPil,
    LevitImageProcessorPil,
    MobileViTImageProcessorPil,
    PerceiverImageProcessorPil,
    PoolFormerImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from modeling_qca import QCAProcessor, image_qca
from modeling_qca.image_qca import open_image
from modeling_qca.training.confidence.abstention import read_abstention

ROOT = Path(__file__).parents[2]
onnx_model = pytest.importorskip("qca_cli.serving.onnx_model", reason='pip install "modeling-qca[export]"')
server = pytest.importorskip("qca_cli.serving.server", reason='pip install "modeling-qca[serve]"')

WITHOUT_TORCH = """
    import sys
    for name in ("torch", "transformers", "modeling_qca", "huggingface_hub", "datasets"):
        sys.modules[name] = None  # importing it raises ImportError
"""


def encoded(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    """One picture of each mode that a photo may have."""
    photo, exif = tiny_image(5, size=(67, 41)), Image.Exif()
    exif[0x0112] = 8
    gray = np.asarray(photo.convert("L"))
    transparent = photo.convert("RGBA")
    transparent.putalpha(Image.fromarray(gray))
    return {
        "rgb": encoded(photo),
        "turned": encoded(photo, "JPEG", exif=exif),
        "gray": encoded(photo.convert("L")),
        "palette": encoded(photo.convert("P")),
        "transparent": encoded(transparent),
        "cmyk": encoded(photo.convert("CMYK"), "TIFF"),
        "bilevel": encoded(photo.convert("1")),
        "16 bits": encoded(Image.fromarray(gray.astype(np.uint16) * 200)),
        "animation": encoded(photo, "GIF", save_all=True, append_images=[tiny_image(6, size=(67, 41))]),
    }


PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": 32, "width": 48}),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
    "crop larger than the picture": CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 33, "width": 32}
    ),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 37}, crop_size={"height": 28, "width": 31}, resample=3),
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    "deit": DeiTImageProcessorPil(size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}),
    "beit": BeitImageProcessorPil(size={"height": 32, "width": 32}),
    "dpt": DPTImageProcessorPil(size={"height": 32, "width": 32}),
    "no normalization": ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_equal_those_of_transformers(name):
    processor = PROCESSORS[name]
    prepare = onnx_model.ImagePreparation(json.loads(processor.to_json_string()))
    for mode, content in pictures().items():
        expected = processor(open_image(content), return_tensors="np")["pixel_values"]
        found = prepare(onnx_model._upright_rgb(Image.open(BytesIO(content))))
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=f"{name}, {mode}")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"do_pad": True, "size": {"height": 8, "width": 8}}, "do_pad"),
        ({"size": {"longest_edge": 8}}, "size"),
        ({"size": {"height": 8, "width": 8}, "do_something_new": "by 2"}, "do_something_new"),
        (MobileViTImageProcessorPil(), "do_flip_channel_order"),
        (EfficientNetImageProcessorPil(), "include_top"),
        (EfficientNetImageProcessorPil(include_top=False, rescale_offset=True), "rescale_offset"),
        (ConvNextImageProcessorPil(), "crop_pct"),
        (PoolFormerImageProcessorPil(), "crop_pct"),
        (DPTImageProcessorPil(keep_aspect_ratio=True), "keep_aspect_ratio"),
        (DPTImageProcessorPil(ensure_multiple_of=32), "ensure_multiple_of"),
        (LevitImageProcessorPil(), "LevitImageProcessor"),
        (PerceiverImageProcessorPil(), "PerceiverImageProcessor"),
    ],
)
def test_unknown_image_steps_are_refused(fields, name):
    fields = fields if isinstance(fields, dict) else json.loads(fields.to_json_string())
    with pytest.raises(ValueError, match=rf"processor_config\.json: .* `{name}`.* serve the checkpoint"):
        onnx_model.ImagePreparation(fields)


def test_images_of_a_saved_processor_are_accepted(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    fields = onnx_model._image_fields(tmp_path)
    assert "auto_map" in fields
    onnx_model.ImagePreparation(fields)


def test_fields_that_change_no_image_are_accepted():
    fields = {"image_processor_type": "ViTImageProcessorFast", "processor_class": "QCAProcessor", "use_fast": True}
    fields |= {"default_to_square": True, "data_format": "channels_first", "return_tensors": "pt", "device": "cuda"}
    fields |= {"input_data_format": "channels_last", "size_divisor": None, "do_pad": False, "reduce_labels": True}
    onnx_model.ImagePreparation({"size": {"height": 8, "width": 8}} | fields)


@pytest.mark.slow
@pytest.mark.parametrize("token_types", [False, True])
def test_export_answers_500_questions_as_the_checkpoint_without_torch(tmp_path, token_types):
    from qca_cli.serving.checkpoint_model import CheckpointModel

    from modeling_qca.hub_card.export import export_checkpoint

    save_tiny_model(tmp_path / "checkpoint", token_budget=8, token_budget_layer=1, temperature=1.7)
    processor = QCAProcessor.from_pretrained(tmp_path / "checkpoint")
    if token_types:
        processor.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        processor.save_pretrained(tmp_path / "checkpoint")
        assert "token_type_ids" in processor(text="is there a ring")
    words = [word for word in processor.tokenizer.get_vocab() if word.isalpha()]
    random = np.random.default_rng(0)
    questions = [
        [" ".join(random.choice(words, size=random.integers(1, 9))) for _ in range(random.integers(1, 8))]
        for _ in range(125)
    ]
    questions = questions[: int(np.searchsorted(np.cumsum([len(about) for about in questions]), 500)) + 1]
    contents = [encoded(tiny_image(seed, size=(30 + seed % 40, 50))) for seed in range(len(questions))]
    model = CheckpointModel(str(tmp_path / "checkpoint"))
    expected = model.answer([model.read_image(image) for image in contents], questions, 3)
    export_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "exported")
    (tmp_path / "images").mkdir()
    for number, content in enumerate(contents):
        (tmp_path / "images" / f"{number}.png").write_bytes(content)
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    program = (
        WITHOUT_TORCH
        + """
    import json, pathlib
    from qca_cli.serving.server import load_model
    model, questions = load_model("exported"), json.load(open("questions.json"))
    images = [model.read_image(pathlib.Path(f"images/{n}.png").read_bytes()) for n in range(len(questions))]
    print(json.dumps([model.answer([i], [q], 3)[0] for i, q in zip(images, questions)]))
    """
    )
    found = json.loads(run(program, folder=tmp_path))
    pairs = [pair for both in zip(found, expected, strict=True) for pair in zip(*both, strict=True)]
    assert len(pairs) >= 500
    for lean, full in pairs:
        assert [item["answer"] for item in lean] == [item["answer"] for item in full]
        assert [item["score"] for item in lean] == pytest.approx([item["score"] for item in full], abs=1e-4)


@pytest.mark.slow
def test_steps_of_the_dockerfile_serve_an_export_without_torch(tmp_path):
    """There may be no Docker, so its `pip install` lines run in an empty environment; they need a package index."""
    pytest.importorskip("build", reason="pip install build")
    from modeling_qca.hub_card.export import export_checkpoint

    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs"))
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "wheels", source]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "env", with_pip=True)
    dockerfile = (ROOT / "examples/serve/Dockerfile.onnx").read_text().replace("\\\n", " ")
    for line in re.findall(r"pip install ([^&\n]+)", dockerfile):
        command = f"{tmp_path}/env/bin/pip install -q {line.replace('/wheels', str(tmp_path / 'wheels'))}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    save_tiny_model(tmp_path / "checkpoint")
    export_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "model")
    python = tmp_path / "env" / "bin" / "python"
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    arguments = [tmp_path / "env/bin/qca", "serve", "model", "--port", "0"]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split(" on ")[1].split()[0]
            image = encoded(tiny_image(1))
            inputs = {"image": base64.b64encode(image).decode(), "question": "is there a ring"}
            (best, *_) = httpx.post(address, json={"inputs": inputs}, timeout=60).json()
        finally:
            server.terminate()
    ((expected,),) = onnx_model.OnnxModel(tmp_path / "model").answer(
        [onnx_model.OnnxModel(tmp_path / "model").read_image(image)], [["is there a ring"]], 1
    )
    assert best["answer"] == expected[0]["answer"] and best["score"] == pytest.approx(expected[0]["score"], abs=1e-5)


@pytest.mark.parametrize("coverage", [0.01, 0.8, 0.905, 1.0])
def test_coverage_gives_the_threshold_of_the_checkpoint(tmp_path, coverage):
    write_calibration(tmp_path, np.linspace(0.97, 0.11, 100).tolist(), abstain_answer="unsure")
    (tmp_path / "model.onnx").touch()
    expected = read_abstention(str(tmp_path), coverage=coverage).threshold
    assert server.lowest_probability(str(tmp_path), None, coverage) == pytest.approx(expected, abs=1e-12)
    assert server.lowest_probability(str(tmp_path), 0.3, None) == 0.3
    assert (expected == 0) == (coverage == 1)
    assert server.read_abstain_answer(str(tmp_path)) == "unsure"
    (tmp_path / "calibration.json").unlink()
    assert server.read_abstain_answer(str(tmp_path)) is None
    with pytest.raises(ValueError, match="run `qca calibrate`"):
        server.lowest_probability(str(tmp_path), None, coverage)


def test_limits_of_images_equal_those_of_the_package():
    for name in ("FORMATS", "MAXIMUM_PIXELS", "MAXIMUM_RATIO"):
        assert getattr(onnx_model, name) == getattr(image_qca, name)


def test_folder_without_a_program_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="qca export"):
        onnx_model.OnnxModel(tmp_path)
