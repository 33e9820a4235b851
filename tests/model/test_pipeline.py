"""The visual-question-answering pipeline, from the installed package and from the code of a checkpoint."""

import json
import subprocess
import sys
import textwrap
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import (
    WORDS,
    called_operators,
    save_tiny_model,
    tiny_image,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)
from PIL import Image
from transformers import CLIPImageProcessorPil, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline, overlay
from modeling_qca.explanation_qca import VisualExplanation
from modeling_qca.overlay_qca import seen_box
from modeling_qca.relevance_qca import explain
from modeling_qca.training.benchmark.models import packed_products

QUESTIONS = ["what is the color of the ball", "is there a big red cube", "how many"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def ask(checkpoint: Path) -> QCAVisualQuestionAnsweringPipeline:
    return pipeline(model=str(checkpoint), pipeline_class=QCAVisualQuestionAnsweringPipeline)


def scores(answers: list[dict]) -> dict[str, float]:
    return {answer["answer"]: answer["score"] for answer in answers}


def assert_same(answers, expected):
    if isinstance(expected, dict):
        assert answers["answer"] == expected["answer"]
        assert answers["score"] == pytest.approx(expected["score"], abs=1e-5)
    else:
        assert len(answers) == len(expected)
        for one, other in zip(answers, expected, strict=True):
            assert_same(one, other)


@pytest.mark.slow  # compiles
def test_a_compiled_model_gives_the_same_answers(ask, checkpoint):
    torch._dynamo.reset()  # which remembers other tests' pictures, and freezing does not allow for several sizes
    compiled = pipeline(model=str(checkpoint), pipeline_class=QCAVisualQuestionAnsweringPipeline)
    compiled.model.compile()
    with packed_products():
        for question in (QUESTIONS[0], QUESTIONS[1], QUESTIONS, QUESTIONS[:2]):
            assert_same(compiled(tiny_image(), question), ask(tiny_image(), question))
        operators = called_operators(lambda: compiled(tiny_image(), QUESTIONS[0]))
    assert "mkldnn::_linear_pointwise" in operators and "aten::addmm" not in operators


def test_answers_are_the_probabilities_of_the_model_best_first(ask):
    image = tiny_image()
    with torch.no_grad():
        logits = ask.model(**tiny_processor()(images=image, text=QUESTIONS[0])).logits[0]
    expected = {ask.model.config.id2label[i]: float(p) for i, p in enumerate(logits.double().softmax(-1))}
    answers = ask(image, QUESTIONS[0], top_k=99)
    assert scores(answers) == pytest.approx(expected, abs=1e-5)
    ranked = [answer["score"] for answer in answers]
    assert ranked == sorted(ranked, reverse=True)
    assert_same(ask(image, QUESTIONS[0], top_k=2), answers[:2])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_source_of_an_image_gives_the_same_answer(ask, server):
    folder, address = server
    image = tiny_image(size=(50, 30))
    image.save(folder / "wide.png")
    expected = ask(image, QUESTIONS[0])
    sources = [
        folder / "wide.png",
        str(folder / "wide.png"),
        f"{address}/wide.png",
        (folder / "wide.png").read_bytes(),
    ]
    for source in sources:
        assert_same(ask(source, QUESTIONS[0]), expected)
    assert_same(ask({"image": sources[0], "question": QUESTIONS[0]}), expected)
    assert_same(ask(sources, QUESTIONS[0]), [expected] * 4)


def test_several_questions_about_one_image_encode_it_once(ask, monkeypatch):
    encoded = []
    encode = ask.model.qca.vision_encoder.encode_images
    monkeypatch.setattr(
        ask.model.qca.vision_encoder,
        "encode_images",
        lambda pixel_values, **kwargs: (encoded.append(len(pixel_values)), encode(pixel_values, **kwargs))[1],
    )
    backbone_runs = []
    hook = ask.model.qca.vision_encoder.backbone.layers[0].register_forward_hook(
        lambda module, inputs, output: backbone_runs.append(inputs[0].shape[0])
    )
    questions = [f"what {word}" for word in WORDS[:16]]
    answers = ask(tiny_image(), questions)
    hook.remove()
    assert len(answers) == 16
    assert encoded == backbone_runs == [1]
    assert_same(answers[7], ask(tiny_image(), questions[7]))


ROWS = [{"image": tiny_image(seed, size=(32 + 8 * seed, 32)), "question": QUESTIONS[seed]} for seed in range(3)]
IMAGES = [row["image"] for row in ROWS]


class Rows(torch.utils.data.Dataset):
    """A dataset without `__iter__`, whose index is never out of range."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return ROWS[index % 3]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(ROWS)


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def dataset_of_rows():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), question=datasets.Value("string"))
    return datasets.Dataset.from_list(ROWS, features)


def collections_of_pairs() -> dict:
    """Arguments of the pipeline that hold `ROWS`."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(
        ROWS, datasets.Features(image=datasets.Image(), question=datasets.Value("string"))
    )
    undecoded = table.cast_column("image", datasets.Image(decode=False))
    return {
        "lists": (IMAGES, QUESTIONS),
        "tuples": (tuple(IMAGES), tuple(QUESTIONS)),
        "numpy arrays": (np.stack([np.array(image.resize((32, 32))) for image in IMAGES]), np.array(QUESTIONS)),
        "arrays": ([np.array(image) for image in IMAGES], QUESTIONS),
        "float arrays": ([np.array(image) / 255 for image in IMAGES], QUESTIONS),
        "streams": ([BytesIO(png(image)) for image in IMAGES], QUESTIONS),
        "base64": ([b64encode(png(image)).decode() for image in IMAGES], QUESTIONS),
        "list of rows": (ROWS,),
        "torch dataset": (Rows(),),
        "torch iterable dataset": (Stream(),),
        "generator": ((row for row in ROWS),),
        "dataset": (table,),
        "undecoded dataset": (undecoded,),
        "iterable dataset": (table.to_iterable_dataset(),),
        "slice of a dataset": (table[:3],),
        "columns": (table["image"], table["question"]),
        "KeyDataset and column": (KeyDataset(table, "image"), table["question"]),
    }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_collection_of_pairs_gives_the_same_answers(ask, batch_size):
    expected = [ask(**row) for row in ROWS]
    small = [ask(image.resize((32, 32)), question) for image, question in zip(IMAGES, QUESTIONS, strict=True)]
    for name, arguments in collections_of_pairs().items():
        answers = list(ask(*arguments, batch_size=batch_size))
        assert_same(answers, small if name == "numpy arrays" else expected)


@pytest.mark.parametrize("count", [2, 3])
def test_every_question_is_asked_about_every_image_on_request(ask, count):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(
        ROWS, datasets.Features(image=datasets.Image(), question=datasets.Value("string"))
    )
    questions = QUESTIONS[:count]
    expected = [ask(image, questions) for image in IMAGES]
    for images in (IMAGES, table["image"], KeyDataset(table, "image"), iter(IMAGES), (png(image) for image in IMAGES)):
        assert_same(list(ask(images, questions, every_question=True, batch_size=2)), expected)
    assert_same(ask(IMAGES[0], questions, every_question=True), expected[0])
    one_for_all = [ask(image, QUESTIONS[0]) for image in IMAGES]
    for images in (IMAGES, KeyDataset(table, "image"), iter(IMAGES)):
        assert_same(list(ask(images, QUESTIONS[0])), one_for_all)


def test_messages_contain_no_pixels_and_no_base64(ask):
    for item in (tiny_image(), np.zeros((9, 9, 3)), b"ABCD" * 500, "QUJD" * 500, {"image": b"ABCD" * 500}):
        with pytest.raises(ValueError, match="Expected an image and a question") as error:
            ask([item])
        assert len(str(error.value)) < 200
        assert "ABCDABCD" not in str(error.value) and "QUJDQUJD" not in str(error.value)


def dropout_model() -> QCAForVisualQuestionAnswering:
    model = tiny_model(classifier_dropout=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return model


@pytest.mark.parametrize("training", ["model", "hops"])
def test_a_model_in_training_mode_answers_as_in_evaluation_mode_and_stays_as_it_is(training):
    model = dropout_model()
    ask = QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())
    expected, looked = ask(IMAGES[0], QUESTIONS), ask.look(IMAGES[0], QUESTIONS[0])
    (model if training == "model" else model.qca.hops).train()
    modes = [module.training for module in model.modules()]
    for _ in range(3):
        assert_same(ask(IMAGES[0], QUESTIONS), expected)
        assert torch.equal(ask.look(IMAGES[0], QUESTIONS[0]).relevance, looked.relevance)
    assert [module.training for module in model.modules()] == modes


def test_the_pipeline_does_not_change_the_processor():
    processor = QCAProcessor(tiny_processor().image_processor, tiny_tokenizer(model_max_length=10**9))
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=processor)
    ask.look(IMAGES[0], QUESTIONS[0], method="gradient")
    with pytest.raises(ValueError, match="22 tokens, the text encoder reads at most 16"):
        ask(IMAGES[0], "red " * 20)
    assert processor.tokenizer.model_max_length == 10**9
    assert processor(text="red " * 20)["input_ids"].shape == (1, 22)


METHODS = ("relevance", "rollout", "gradient")


@pytest.mark.parametrize("fields", [{}, {"query_tokens": "attended", "vision_conditioning_layers": [1]}])
def test_eight_threads_give_the_results_of_one(fields):
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(**fields), processor=tiny_processor())
    questions = ["how many", "is the big red cube left of the small blue ball ?", "what", "color of the ring"]

    def call(number: int):
        kind = number % 5
        image, question = IMAGES[number % 3], questions[number % 4]
        if kind == 3:
            return ask(image, question)
        if kind == 4:
            return ask(image, f"{question} red red red red red red red red red red red red", truncation=True)
        look = ask.look(image, question, method=METHODS[kind])
        return look.question, look.answers, look.words, look.relevance

    expected = [call(number) for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        for number, result in enumerate(threads.map(call, [n % 60 for n in range(200)])):
            one = expected[number % 60]
            if isinstance(one, tuple):
                assert result[0] == one[0] and result[1] == one[1]
                assert result[2] == [[(w, pytest.approx(s, abs=1e-6)) for w, s in words] for words in one[2]]
                torch.testing.assert_close(result[3], one[3])
            else:
                assert_same(result, one)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_look_does_not_depend_on_the_gradient_mode(ask, method, context):
    expected = ask.look(IMAGES[0], QUESTIONS[0], method=method)
    with context():
        look = ask.look(IMAGES[0], QUESTIONS[0], method=method)
        inputs = tiny_processor()(images=IMAGES[0], text=QUESTIONS[0])
        explanation = ask.model.explain(inputs, method)
        made_inside = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
        inside = made_inside.look(IMAGES[0], QUESTIONS[0], method=method)
    torch.testing.assert_close(look.relevance, expected.relevance)
    torch.testing.assert_close(explanation.relevance.mean(2).unflatten(-1, (4, 4))[0], expected.relevance)
    assert inside.relevance.shape == expected.relevance.shape


@pytest.mark.parametrize("task_type", [None, "FEATURE_EXTRACTION", "SEQ_CLS"])
def test_a_peft_model_answers_and_explains_with_its_adapters(task_type):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    plain = QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())(IMAGES[0], QUESTIONS[0])
    config = peft.LoraConfig(task_type=task_type, target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4)
    adapted = peft.get_peft_model(model, config)
    ask = QCAVisualQuestionAnsweringPipeline(model=adapted, processor=tiny_processor())
    inputs = tiny_processor()(images=IMAGES[0], text=QUESTIONS[0])
    with torch.no_grad():
        logits = adapted.get_base_model().eval()(**inputs).logits[0]
    expected = {model.config.id2label[i]: float(p) for i, p in enumerate(logits.softmax(-1))}
    answers = ask(IMAGES[0], QUESTIONS[0])
    assert scores(answers) == pytest.approx(expected, abs=1e-5)
    assert scores(answers) != pytest.approx(scores(plain), abs=1e-3)
    for method in METHODS:
        look = ask.look(IMAGES[0], QUESTIONS[0], method=method)
        assert_same(look.answers, answers)
        explained = adapted.explain(inputs, method).relevance.mean(2).unflatten(-1, (4, 4))[0]
        torch.testing.assert_close(look.relevance, explained)
        torch.testing.assert_close(
            explain(adapted, inputs, method).relevance[0].mean(1).unflatten(-1, (4, 4)), explained
        )
    assert ask.model is adapted


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_do_not_depend_on_the_batch_size(ask, batch_size):
    images = [tiny_image(seed, size=(32 + 8 * seed, 32)) for seed in range(3)]
    asked = [QUESTIONS, QUESTIONS[1], QUESTIONS[1:]]
    expected = [ask(image, question) for image, question in zip(images, asked, strict=True)]
    assert_same(ask(images, asked, batch_size=batch_size), expected)
    rows = [{"image": image, "question": question} for image, question in zip(images, asked, strict=True)]
    assert_same(ask(rows, batch_size=batch_size), expected)


def test_a_generator_is_read_lazily(ask):
    taken = []

    def rows():
        for seed in range(100):
            taken.append(seed)
            yield {"image": tiny_image(seed), "question": QUESTIONS[0]}

    answers = ask(rows(), batch_size=2)
    assert_same([next(answers), next(answers), next(answers)], [ask(tiny_image(i), QUESTIONS[0]) for i in range(3)])
    assert len(taken) < 10


def test_relevance_has_the_size_of_the_upright_image(ask):
    image = tiny_image(size=(48, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    turned = BytesIO()
    image.save(turned, "jpeg", exif=exif)
    first, second = ask([image, turned.getvalue()], QUESTIONS[0], return_relevance=True, top_k=1, batch_size=2)
    assert first["relevance"].shape == (2, 20, 48)
    assert second["relevance"].shape == (2, 48, 20)
    with torch.no_grad():
        outputs = ask.model(**tiny_processor()(images=image, text=QUESTIONS[0]))
    expected = torch.nn.functional.interpolate(
        outputs.relevance.mean(2).reshape(1, 2, 4, 4), size=(20, 48), mode="bilinear"
    )
    torch.testing.assert_close(first["relevance"], expected[0])
    assert_same(first["answers"], ask(image, QUESTIONS[0], top_k=1))


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
def test_look_returns_the_explanation_of_the_model(ask, method):
    image = tiny_image(size=(120, 60))
    looks = ask.look(image, QUESTIONS, method=method, top_k=2)
    explanation = ask.model.explain(tiny_processor()(images=image, text=QUESTIONS), method=method)
    for look, maps, question in zip(looks, explanation.relevance.mean(2), QUESTIONS, strict=True):
        torch.testing.assert_close(look.relevance, maps.unflatten(-1, (4, 4)))
        assert_same(look.answers, ask(image, question, top_k=2))
        assert (look.question, look.kept, look.box) == (question, None, (0, 0, 120, 60))
        best = look.answers[0]
        for index in (0, -1):
            expected = overlay(image, look.relevance[index], f"{question}\n{best['answer']} ({best['score']:.0%})")
            assert look.overlay(index).tobytes() == expected.tobytes()
        for words in look.words:
            assert [word for word, _ in words] == question.split()
            assert sum(share for _, share in words) == pytest.approx(1)
    assert len(looks[0].words) == (0 if method == "relevance" else 1)
    assert ask.look(image, QUESTIONS[1], method=method).question == QUESTIONS[1]


def test_look_shows_the_patches_that_the_token_budget_kept():
    ask = QCAVisualQuestionAnsweringPipeline(
        model=tiny_model(token_budget=6, token_budget_layer=1, query_tokens="attended"), processor=tiny_processor()
    )
    image = tiny_image(size=(40, 40))
    look = ask.look(image, QUESTIONS[0])
    assert look.kept.shape == (4, 4) and look.kept.sum() == 6
    assert (look.relevance.amax(0) > 0).sum() == 6
    picture = look.kept_patches()
    for row in range(4):
        for column in range(4):
            box = (10 * column, 10 * row, 10 * column + 10, 10 * row + 10)
            assert (picture.crop(box).tobytes() == image.crop(box).tobytes()) == bool(look.kept[row, column])
    assert len(look.words) == 2
    without = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
    with pytest.raises(ValueError, match="no token budget"):
        without.look(image, QUESTIONS[0]).kept_patches()


@pytest.mark.parametrize("size", [(120, 60), (50, 90), (64, 64)])
def test_maps_cover_the_part_of_the_image_that_the_processor_crops(size):
    processor = QCAProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}), tiny_tokenizer()
    )
    left, top, right, bottom = seen_box(processor.image_processor, *size)
    assert right - left == pytest.approx(bottom - top) == pytest.approx(0.8 * min(size))
    for row, column in [(0, 0), (1, 3), (3, 2)]:
        image = Image.new("RGB", size, "black")
        x, y = left + (column + 0.5) * (right - left) / 4, top + (row + 0.5) * (bottom - top) / 4
        image.paste("white", (round(x) - 2, round(y) - 2, round(x) + 2, round(y) + 2))
        pixels = processor(images=image)["pixel_values"][0].sum(0).unfold(0, 8, 8).unfold(1, 8, 8).sum((2, 3))
        assert pixels.argmax() == 4 * row + column  # the model sees the spot in this patch
        relevance = torch.zeros(4, 4)
        relevance[row, column] = 1
        look = VisualExplanation(
            image, "what", [{"answer": "red", "score": 1}], relevance[None], [], None, (left, top, right, bottom)
        )
        picture = np.asarray(look.overlay(caption=False)).astype(int)[: size[1]]
        yellow = picture[..., 0] + picture[..., 1] - 2 * picture[..., 2]
        assert yellow[round(y) - 3 : round(y) + 3, round(x) - 3 : round(x) + 3].max() == yellow.max()
        outside = (np.asarray(image) == picture).all(-1)
        assert outside[: int(top)].all() and outside[:, : int(left)].all()


def test_return_relevance_places_maps_where_look_draws_them():
    processor = QCAProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}), tiny_tokenizer()
    )
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=processor)
    image = tiny_image(size=(120, 60))
    relevance = ask(image, QUESTIONS[0], return_relevance=True)["relevance"]
    look = ask.look(image, QUESTIONS[0])
    left, top, right, bottom = (round(edge) for edge in look.box)  # 48 x 48 pixels in the middle
    assert relevance.shape == (2, 60, 120) and (left, top, right, bottom) == (36, 6, 84, 54)
    inside = torch.nn.functional.interpolate(look.relevance[None], size=(48, 48), mode="bilinear")[0]
    torch.testing.assert_close(relevance[:, top:bottom, left:right], inside)
    relevance[:, top:bottom, left:right] = 0
    assert not relevance.any()


def test_a_saved_pipeline_loads_with_equal_answers(ask, tmp_path):
    ask.save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.iterdir()}
    assert {
        "pipeline_qca.py",
        "evaluation_copy_qca.py",
        "explanation_qca.py",
        "question_qca.py",
        "processor_config.json",
    } <= saved
    again = pipeline(model=str(tmp_path), pipeline_class=QCAVisualQuestionAnsweringPipeline)
    assert_same(again(tiny_image(), QUESTIONS), ask(tiny_image(), QUESTIONS))


@pytest.mark.parametrize("task", [None, pytest.param("visual-question-answering", marks=pytest.mark.slow)])
def test_a_checkpoint_answers_without_the_package(ask, checkpoint, tmp_path, task):
    tiny_image().save(tmp_path / "image.png")
    program = f"""
        import sys
        sys.modules["modeling_qca"] = None  # importing it raises ImportError
        import json
        from transformers import pipeline
        ask = pipeline({task!r}, model={str(checkpoint)!r}, trust_remote_code=True)
        assert type(ask).__module__.startswith("transformers_modules"), type(ask)
        assert type(ask.model).__module__.startswith("transformers_modules"), type(ask.model)
        print(json.dumps(ask("image.png", {QUESTIONS!r})))
        for method in ("relevance", "rollout", "gradient"):
            ask.look("image.png", {QUESTIONS[0]!r}, method=method).overlay().save(method + ".png")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert_same(json.loads(done.stdout), ask(tiny_image(), QUESTIONS))
    for method in ("relevance", "rollout", "gradient"):
        shown = np.asarray(Image.open(tmp_path / f"{method}.png")).astype(int)
        expected = np.asarray(ask.look(tiny_image(), QUESTIONS[0], method=method).overlay()).astype(int)
        assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize(
    ("image", "question", "message"),
    [
        ("nowhere.jpg", "what", "Cannot read the image nowhere.jpg"),
        (b"not an image", "what", "Cannot read the image 12 bytes"),
        (3, "what", "Cannot read the image 3"),
        ([tiny_image()] * 3, ["what"] * 2, "every_question=True"),
        (iter([tiny_image()]), ["what"] * 2, "every_question=True"),
        ({"picture": np.zeros((9, 9, 3), np.uint8)}, None, "keys .'picture'"),
        (tiny_image(), " ", "Question 0 is empty"),
        (tiny_image(), [], "comes without a question"),
        ([tiny_image()] * 3, ["what", "where"], "3 images but 2 questions"),
        (tiny_image(), None, "Expected an image and a question"),
        (tiny_image(), "what " * 30, "truncation=True"),
    ],
)
def test_error_names_the_bad_input(ask, image, question, message):
    with pytest.raises(ValueError, match=message):
        ask(image, question)


def test_a_long_question_is_cut_only_with_truncation(ask):
    cut = ask(tiny_image(), "what " * 30, truncation=True)
    assert_same(cut, ask(tiny_image(), "what " * 14))  # 16 positions, two of them special tokens


def test_top_k_of_zero_and_relevance_without_hops_are_refused(ask):
    with pytest.raises(ValueError, match="top_k"):
        ask(tiny_image(), "what", top_k=0)
    without_hops = QCAVisualQuestionAnsweringPipeline(
        model=tiny_model(num_attention_layers=0), processor=tiny_processor()
    )
    assert len(without_hops(tiny_image(), "what")) == 5
    with pytest.raises(ValueError, match="num_attention_layers=0"):
        without_hops(tiny_image(), "what", return_relevance=True)


def test_an_empty_list_of_images_gives_an_empty_list(ask):
    assert ask([], "what") == []


def test_no_code_of_the_checkpoint_runs_with_the_package_installed(ask, tmp_path):
    ask.save_pretrained(tmp_path)
    files = list(tmp_path.glob("*_qca.py"))
    assert files
    for code in files:
        code.write_text("raise SystemExit('code of the checkpoint ran')")
    loaded = pipeline(model=str(tmp_path), pipeline_class=QCAVisualQuestionAnsweringPipeline)
    assert_same(loaded(tiny_image(), "what"), ask(tiny_image(), "what"))
