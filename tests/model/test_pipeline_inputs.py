"""The pipeline takes every kind of image, row and collection, and names input that it cannot take."""

import threading
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers.answers import QUESTIONS, assert_same
from helpers.tiny import (
    tiny_image,
    tiny_model,
    tiny_processor,
)
from PIL import Image
from transformers.pipelines.pt_utils import KeyDataset

from modeling_qca import QCAVisualQuestionAnsweringPipeline


@pytest.fixture(scope="module")
def ask() -> QCAVisualQuestionAnsweringPipeline:
    return QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())


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


def test_an_empty_list_of_images_gives_an_empty_list(ask):
    assert ask([], "what") == []
