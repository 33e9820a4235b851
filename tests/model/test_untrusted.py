"""Input of unknown origin: code of a checkpoint at import, URLs, images, configs, recipes."""

import ast
import io
import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fresh_process
from helpers.tiny import save_tiny_model, tiny_config, tiny_model, tiny_processor, tiny_tokenizer
from PIL import Image
from transformers import AutoConfig

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline
from modeling_qca import image_qca as limits
from modeling_qca.image_qca import open_encoded, open_image
from modeling_qca.training.evaluation.checkpoint import load_checkpoint
from modeling_qca.training.fitting.recipe import load_recipe

PACKAGE = Path(limits.__file__).parent
RUNS_CODE = {"__import__", "compile", "eval", "exec", "os.system", "torch.load", "torch.hub.load"}
DANGEROUS = {
    "ctypes",
    "importlib",
    "marshal",
    "multiprocessing",
    "os",
    "pickle",
    "shutil",
    "socket",
    "subprocess",
    "sys",
}

IMPORT_IN_A_SANDBOX = """
    import importlib, os, sys
    from pathlib import Path
    sys.dont_write_bytecode = True
    import huggingface_hub.utils, torch, transformers, PIL.Image
    for name in ("AutoModel", "BertModel", "Pipeline", "ProcessorMixin", "SiglipTextModel", "ViTModel"):
        getattr(transformers, name)
    FORBIDDEN = (
        "ctypes.dlopen", "ftplib", "http", "os.chmod", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir",
        "os.posix_spawn", "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.system", "os.truncate",
        "os.unsetenv", "pty", "shutil", "smtplib", "socket", "subprocess", "tempfile", "urllib",
    )
    seen = []

    def sandbox(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event.startswith(FORBIDDEN):
            seen.append((event, arguments))
            raise PermissionError(f"{event} {arguments}")

    sys.addaudithook(sandbox)
    for write in (lambda: open("left", "w"), lambda: os.open("left", os.O_CREAT)):
        try:
            write()
            raise SystemExit("the sandbox is open")
        except PermissionError:
            seen.clear()
    names = sorted(path.stem for path in Path("checkpoint").glob("*.py"))
    for name in names:
        importlib.import_module(f"checkpoint.{name}")
    print(len(names), seen)
"""


@pytest.mark.slow  # traces every import of a fresh process
def test_importing_remote_code_has_no_side_effects(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    before = sorted(tmp_path.rglob("*"))
    count = len(list(PACKAGE.glob("*_qca.py")))
    assert fresh_process.run(IMPORT_IN_A_SANDBOX, folder=tmp_path, without_package=True) == f"{count} []\n"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*_qca.py")), ids=lambda path: path.name)
def test_remote_code_calls_nothing_that_runs_other_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in RUNS_CODE, ast.unparse(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            allowed = ast.unparse(node) == "from os import PathLike"
            assert allowed or not {name.split(".")[0] for name in names} & DANGEROUS, ast.unparse(node)


def test_pickled_weights_are_not_read(tmp_path):
    model = save_tiny_model(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        QCAForVisualQuestionAnswering.from_pretrained(tmp_path)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Call it with what to answer each request with; it returns the URL."""
    servers = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/picture.png"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def with_body(body: bytes, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("source", ["url", "data"])
def test_transparency_of_an_image_from_a_url_is_white(serve, source):
    picture = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    data = "data:image/png;base64," + b64encode(picture).decode()
    opened = open_image(data if source == "data" else serve(with_body(picture)))
    assert opened.mode == "RGB" and opened.getcolors() == [(64, (255, 255, 255))]


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1000))
            time.sleep(0.01)
    except OSError:
        pass


def test_download_stops_at_its_time_and_size_limit(serve, monkeypatch):
    url = serve(endless)
    monkeypatch.setattr(limits, "DOWNLOAD_SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"Cannot read the image http://.*: it takes longer than 0\.3 seconds"):
        open_image(url)
    monkeypatch.setattr(limits, "DOWNLOAD_SECONDS", 30)
    monkeypatch.setattr(limits, "MAXIMUM_DOWNLOAD", 3000)
    with pytest.raises(ValueError, match=r"Cannot read the image http://.*: it has more than 3,000 bytes"):
        open_image(url)


def test_download_stops_if_the_server_does_not_answer(serve, monkeypatch):
    monkeypatch.setattr(limits, "DOWNLOAD_SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"Cannot read the image http://.*timed out"):
        open_image(serve(lambda handler: time.sleep(2)))
    with pytest.raises(ValueError, match=r"Cannot read the image http://.*404"):
        open_image(serve(with_body(b"nothing here", 404)))


def test_refuses_a_decompression_bomb_before_decoding_it(monkeypatch):
    loaded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: loaded.append(self.size))
    bomb = encoded(Image.new("L", (limits.MAXIMUM_PIXELS // 4096 + 1, 4096)))
    loaded.clear()
    for open_it in (open_image, open_encoded):
        with pytest.raises(ValueError, match="12289 x 4096 pixels are more than 50,331,648"):
            open_it(bomb)
    assert loaded == []


@pytest.mark.parametrize("size", [(1, 201), (201, 1)])
def test_refuses_an_extreme_aspect_ratio(size):
    with pytest.raises(ValueError, match="one side is over 200 times the other"):
        open_image(Image.new("RGB", size))
    assert open_image(Image.new("RGB", (size[0] - size[0] // 200, size[1] - size[1] // 200))).size != size


def test_refuses_image_formats_that_start_programs():
    picture = encoded(Image.new("RGB", (9, 9)), "EPS")
    assert Image.open(io.BytesIO(picture)).format == "EPS"
    with pytest.raises(ValueError, match="cannot identify image"):
        open_image(picture)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8, 3), np.nan, np.float32), "not all of its values are finite"),
        (np.broadcast_to(np.uint8(0), (10**5, 10**5, 3)), "larger than an image may be"),
        (np.zeros((5, 5, 5, 5, 5)), "no RGB image: pass"),
        (np.zeros((0, 8, 3)), "no RGB image: pass"),
        (np.full((8, 8, 3), "x"), "not numbers"),
    ],
)
def test_refuses_an_array_that_is_no_image(array, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor()(images=array)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("what \ud83d", "Question 0 is no text: its character 5 is half of a surrogate pair"),
        ("a" * 100_001, "Question 0 has 100,001 characters; shorten it to 100,000"),
        (7, "`text` must be a question or a list of questions, got 7"),
    ],
)
def test_refuses_a_question_that_is_no_text_or_too_long(question, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor()(text=question)


def unlimited_processor(**fields: object) -> QCAProcessor:
    tokenizer = tiny_tokenizer(model_max_length=int(1e30), **fields)
    return QCAProcessor(tiny_processor().image_processor, tokenizer)


def test_pipeline_works_with_return_dict_false_in_the_config():
    model, image = tiny_model(), Image.new("RGB", (32, 32))
    ask = QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())
    expected, look = ask(image, "red"), ask.look(image, "red")
    model.config.return_dict = False
    assert ask(image, "red") == expected
    assert ask.look(image, "red").relevance.equal(look.relevance)


def test_text_encoder_limits_questions_if_the_tokenizer_does_not():
    model, image = tiny_model(), Image.new("RGB", (32, 32))
    inputs = unlimited_processor()(images=image, text="red " * 20)
    assert inputs["input_ids"].shape == (1, 22)
    with pytest.raises(ValueError, match="has 22 tokens, but the text encoder reads at most 16: shorten it"):
        model(**inputs)
    ask = QCAVisualQuestionAnsweringPipeline(model=model, processor=unlimited_processor())
    with pytest.raises(ValueError, match="Question 0 has 22 tokens, the text encoder reads at most 16"):
        ask(image, "red " * 20)
    assert ask(image, "red " * 20, truncation=True) == ask(image, "red " * 14)


def test_roberta_positions_start_behind_the_padding_index():
    fields = tiny_config().text_config.to_dict()
    text = {**fields, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 18}
    config = QCAConfig(**tiny_config().to_dict() | {"text_config": text})
    model = QCAForVisualQuestionAnswering(config).eval()
    inputs = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    assert model(input_ids=torch.full((1, 16), 9), **inputs).logits.isfinite().all()
    with pytest.raises(ValueError, match="reads at most 16"):
        model(input_ids=torch.full((1, 17), 9), **inputs)


def test_refuses_a_question_without_tokens():
    processor = unlimited_processor()
    processor.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="Question 1 is empty for the tokenizer"):
        processor(text=["red", "\u200b\x01"])


HUGE = [
    ({"num_labels": 10**12}, "`num_labels` must be at most 65,536, got 1000000000000"),
    ({"hidden_size": 2**40}, "`hidden_size` must be at most 16,777,216"),
    ({"num_attention_layers": 10**9}, "`num_attention_layers` must be at most 256"),
    ({"text_config": {"model_type": "albert", "num_hidden_groups": 2**24}}, "hidden_groups` must be at most 256"),
    ({"vision_conditioning_layers": 10**9}, "`vision_conditioning_layers` must be at most 256"),
    ({"relevance_loss_weight": float("nan")}, "`relevance_loss_weight` must be a finite number, got nan"),
    ({"auto_map": {"a": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}}, "`auto_map.a` is nested deeper than 16 levels"),
    ({"attn_implementation": "somebody/kernel"}, "`attn_implementation` must not name code from elsewhere"),
    ({"vision_config": [{"model_type": "vit"}]}, "`vision_config` must be a config, got [{'model_type': 'vit'}]"),
    ({"dtype": "../../etc/passwd"}, "`dtype` must be the name of a torch dtype, got ../../etc/passwd"),
]
HUGE_ENCODERS = [
    ({"num_hidden_layers": 10**9}, "`{}.num_hidden_layers` must be at most 256"),
    ({"num_labels": 10**12}, "`{}.num_labels` must be at most 65,536"),
    ({"layer_norm_eps": float("inf")}, "`{}.layer_norm_eps` must be a finite number, got inf"),
    (
        {"model_type": "../../vit"},
        "`{}.model_type` must be one of transformers, or registered by `AutoConfig.register`, got ../../vit",
    ),
    ({"attn_implementation": "somebody/kernel"}, "`{}.attn_implementation` must not name code from elsewhere"),
    ({"id2label": "/etc/passwd"}, "`{}.id2label` must be a mapping, got /etc/passwd"),
    ({"num_attention_heads": -1}, "`{}.num_attention_heads` must be at least 1, got -1"),
]


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [(None, *case) for case in HUGE]
    + [(part, *case) for case in HUGE_ENCODERS for part in ("vision_config", "text_config")]
    + [("vision_config", {"image_size": size}, f"or [height, width], got {size}") for size in ([], [32])],
)
def test_refuses_a_config_over_its_limits_and_names_the_field(part, fields, message, tmp_path):
    config = tiny_config().to_dict() | {"model_type": "qca"}
    (config if part is None else config[part]).update(fields)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for loader in (QCAConfig, AutoConfig):
        with pytest.raises(ValueError) as error:
            loader.from_pretrained(tmp_path)
        assert message.replace("{}", str(part)) in str(error.value)


def test_answers_may_have_the_names_of_fields():
    answers = [
        "heads",
        "layer",
        "dtype",
        "num_labels",
        "model_type",
        "return_dict",
        *(f"{i} blocks" for i in range(300)),
    ]
    config = tiny_config(id2label=dict(enumerate(answers)), label2id={answer: i for i, answer in enumerate(answers)})
    assert QCAConfig.from_dict(config.to_dict()).label2id["299 blocks"] == 305


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("vision_config", {"hidden_size": 2**20, "num_attention_heads": 2**10}, "parameters; a model may have 1e"),
        ("text_config", {"vocab_size": 2**24, "hidden_size": 2**14}, "parameters; a model may have 1e"),
        (None, {"hidden_size": 2**20}, "parameters; a model may have 1e"),
        ("text_config", {"hidden_act": "../../x"}, "No `bert` model can be built from `text_config`: .*x"),
        ("vision_config", {"hidden_size": -32}, "`vision_config` has no patches"),
        ("text_config", {"model_type": "vit"}, "A `vit` model reads `pixel_values`, `text_config` `input_ids`"),
    ],
)
def test_refuses_a_too_large_model_before_allocating_memory(part, fields, message):
    config = tiny_config().to_dict()
    (config if part is None else config[part]).update(fields)
    with pytest.raises(Exception, match=message) as error:
        QCAForVisualQuestionAnswering(QCAConfig(**config))
    assert isinstance(error.value, ValueError) or "Strict" in type(error.value).__name__


def test_refuses_to_load_weights_of_a_too_large_config(tmp_path):
    save_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] = 2**24
    config["text_config"]["hidden_size"] = 2**14
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="parameters; a model may have"):
        QCAForVisualQuestionAnswering.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 10**5, "width": 10**5}}, r"`size\.\w+` of the image processor must be at most 4096"),
        ({"image_std": [0.5, 0, 0.5]}, "`image_std` of the image processor must not be 0"),
        ({"rescale_factor": float("nan")}, "`rescale_factor` must be a finite number, got nan"),
    ],
)
def test_refuses_an_image_processor_over_its_limits(fields, message, tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "processor_config.json").read_text())
    stored["image_processor"].update(fields)
    (tmp_path / "processor_config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        QCAProcessor.from_pretrained(tmp_path)


def test_damaged_weights_give_one_error(tmp_path):
    save_tiny_model(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 8 + whole[8:]):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{tmp_path.name}: its weights cannot be read"):
            load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("text", ["[1]", "7", '"qca"', "[" * 100_000], ids=["list", "number", "text", "deep"])
def test_refuses_a_config_file_without_a_config(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path.name} holds no config of a model"):
        QCAConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: &a [x, x]\nfreeze: [*a, *a]\n", r"not valid YAML: aliases such as \*a are not allowed here"),
        ("data: " + "[" * 30, "not valid YAML: nested deeper than 20 levels"),
        ("data: d\n" * 10_000, "has 80,000 characters; at most 50,000 are read"),
        ("data: d\nseed: 2020-13-45\n", "not valid YAML: month must be in 1..12"),
        ("data: d\nlearning_rate: .nan\n", "nan is not a finite number"),
        ("data: d\nseed: 0x" + "f" * 40, "not valid YAML: a number has more than 64 bits"),
        ("data: d\nmodel: m\nlearning_rate: fast\n", "`learning_rate` is 'fast', not of type float"),
        ("data: d\nmodel: m\nseed: 0.5\n", "`seed` is 0.5, not of type int"),
        ("data: d\nmodel: m\nbf16: 1\n", "`bf16` is 1, not of type bool"),
        ("data: d\nmodel: m\nfreeze: [[text]]\n", r"`freeze` is .*text.*, not of type list"),
        ("extends: recipe.yaml\n", "`extends` comes back to recipe.yaml"),
        ("extends: [a]\n", r"`extends` is \['a'\], not the path of a recipe"),
        ("data: \udcff", "no such recipe"),
    ],
)
def test_refuses_a_hostile_recipe_and_names_it(text, message, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=f"recipe.yaml.*{message}"):
        load_recipe(tmp_path / "recipe.yaml")
