"""The demo app in headless Chromium. Tests are skipped without the browser or the extras."""
# ruff: noqa: E402  `importorskip` comes before the imports of the extras

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import save_tiny_model, tiny_batch, tiny_image, tiny_model
from PIL import Image, ImageDraw

gradio = pytest.importorskip("gradio", reason="the `app` extra is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")

from gradio.data_classes import ImageData
from helpers.visitor import CHROMEDRIVER, CHROMIUM, Visitor, visit
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from modeling_qca.hub_card.space import app as space
from modeling_qca.image_qca import open_image
from modeling_qca.training.data.rows import load_rows

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None, reason="no chromium and chromedriver: apt-get install chromium-driver"
)
PHONE = 390  # pixels wide


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "checkpoint"
    save_tiny_model(folder, query_tokens="attended", token_budget=9, token_budget_layer=1)
    return folder


@pytest.fixture
def visitor(checkpoint: Path, tmp_path: Path, monkeypatch) -> Iterator[Visitor]:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    with visit(str(checkpoint), tmp_path / "profile") as visitor:
        yield visitor


@needs_browser
def test_visitor_asks_questions_and_sees_answers_words_and_hops(visitor, checkpoint, tmp_path):
    picture = tmp_path / "picture.png"
    tiny_image(size=(200, 120)).save(picture)
    expected = space.load_pipeline(str(checkpoint)).look(picture, "what is left of the red cube")
    visitor.upload(picture)

    visitor.ask("what is left of the red cube")
    visitor.wait(lambda: visitor.words() == ["what", "is", "left", "of", "the", "red", "cube"])
    assert visitor.answer() == expected.answers[0]["answer"]
    first = visitor.picture("overlay")
    assert visitor.picture("kept")

    visitor.ask("how many")
    visitor.wait(lambda: visitor.words() == ["how", "many"])
    second = visitor.picture("overlay")
    assert second != first
    assert len(visitor.find("#earlier .thumbnail-item")) == 2

    slider = visitor.find("#hop input[type=range]")[0]
    slider.send_keys(Keys.ARROW_LEFT)  # from hop 2 to hop 1
    visitor.wait(lambda: visitor.picture("overlay") != second)
    slider.send_keys(Keys.ARROW_RIGHT)
    visitor.wait(lambda: visitor.picture("overlay") == second)
    visitor.find("#wrong")[0].click()
    visitor.wait(lambda: visitor.find("#stored") and "qca annotate" in visitor.find("#stored")[0].text)
    assert visitor.errors() == []


@needs_browser
def test_shown_overlay_is_that_of_the_pipeline(visitor, checkpoint, tmp_path):
    picture = tmp_path / "picture.png"
    tiny_image(size=(200, 120)).save(picture)
    visitor.upload(picture)
    visitor.ask("is there a ball")
    script = """
        const done = arguments[arguments.length - 1];
        fetch(arguments[0]).then(reply => reply.arrayBuffer()).then(bytes => done(Array.from(new Uint8Array(bytes))));
        """
    shown = bytes(visitor.browser.execute_async_script(script, visitor.picture("overlay")))
    look = space.load_pipeline(str(checkpoint)).look(picture, "is there a ball").fit(space.SIDE)
    assert Image.open(io.BytesIO(shown)).convert("RGB").tobytes() == look.overlay(caption=False).tobytes()


@needs_browser
def test_page_fits_a_phone_and_names_a_missing_picture(visitor, tmp_path):
    visitor.question.send_keys("what", Keys.ENTER)
    visitor.wait(lambda: "Choose a picture first." in visitor.browser.find_element(By.TAG_NAME, "body").text)
    picture = tmp_path / "picture.png"
    tiny_image(size=(200, 120)).save(picture)
    visitor.upload(picture)
    visitor.ask("what is left of the red cube")
    visitor.browser.set_window_size(PHONE, 800)
    visitor.wait(lambda: visitor.browser.execute_script("return window.innerWidth") <= PHONE)
    wide, window = visitor.browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window
    for name in ("#question", "#ask", "#answers", "#overlay", "#hop", "#words"):
        box = visitor.find(name)[0].rect
        assert box["width"] > 0 and box["x"] >= 0 and box["x"] + box["width"] <= window, name
    assert visitor.errors() == []


@pytest.mark.parametrize("method", space.METHODS.values())
def test_every_shown_method_is_one_of_explain(method):
    batch = tiny_batch()
    assert tiny_model().explain(batch, method=method).relevance.shape[0] == len(batch["input_ids"])


def test_example_images_differ_and_are_reproducible():
    images = [space.example_image(seed) for seed in range(4)]
    assert len({image.tobytes() for image in images}) == 4
    assert space.example_image(1).tobytes() == images[1].tobytes()
    for image in images:
        assert len(image.getcolors(1 << 16)) == 4  # three shapes and the background


def test_question_answered_wrong_becomes_a_row_that_can_be_annotated(tmp_path):
    pictures = [tiny_image(seed=seed, size=(40, 20)) for seed in range(2)]
    folder = str(tmp_path / "wrong")
    said = [space.store_wrong(folder, "run", picture, " is there a ball ", "yes") for picture in pictures]
    space.store_wrong(folder, "run", pictures[0], "how many", "2")
    assert said[0] == f"Stored. Mark where to look: `qca annotate {folder} --checkpoint run`"
    rows = load_rows(folder)
    assert [(row["question"], row["answers"]) for row in rows] == [
        ("is there a ball", [{"answer": "yes", "count": 1}]),
        ("is there a ball", [{"answer": "yes", "count": 1}]),
        ("how many", [{"answer": "2", "count": 1}]),
    ]
    shown = [row["image"].convert("RGB").tobytes() for row in rows]
    assert shown == [pictures[0].tobytes(), pictures[1].tobytes(), pictures[0].tobytes()]
    assert rows["image_id"][0] == rows["image_id"][2] != rows["image_id"][1]


def save_transparent(file: Path):
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((4, 4), "black", fill=(0, 0, 0, 255))
    image.save(file)


def save_16_bit(file: Path, top: int = 65535):
    ramp = np.linspace(0, top, 40).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (20, 1))).save(file)


def save_rotated(file: Path):
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn
    tiny_image(size=(40, 20)).save(file, "PNG", exif=exif)


def uploaded(file: Path) -> Image.Image:
    """What the page's functions get of an uploaded file."""
    return space.input_components(2)[0].preprocess(ImageData(path=str(file), orig_name=file.name))


@pytest.mark.parametrize("save", [save_transparent, save_16_bit, save_rotated])
def test_uploaded_picture_is_read_and_stored_as_by_the_command_line(save, checkpoint, tmp_path):
    save(tmp_path / "picture.png")
    expected, picture = open_image(tmp_path / "picture.png"), uploaded(tmp_path / "picture.png")
    explanation = space.load_pipeline(str(checkpoint)).look(picture, "how many")
    space.store_wrong(str(tmp_path / "wrong"), "run", picture, "how many", "2")
    stored = load_rows(str(tmp_path / "wrong"))["image"][0]
    for shown in (explanation.image, open_image(stored)):
        assert shown.size == expected.size and shown.tobytes() == expected.tobytes()
    assert len(expected.getcolors()) > 1


def test_uploaded_picture_with_values_of_an_unclear_range_is_refused(checkpoint, tmp_path):
    save_16_bit(tmp_path / "picture.png", top=4095)
    ask, picture = space.load_pipeline(str(checkpoint)), uploaded(tmp_path / "picture.png")
    with pytest.raises(gradio.Error, match="a range without a clear meaning"):
        space.answer(ask, picture, "how many", "Relevance map of each hop", None)
    with pytest.raises(gradio.Error, match="a range without a clear meaning"):
        space.store_wrong(str(tmp_path / "wrong"), "run", picture, "how many", "2")
    assert not (tmp_path / "wrong").exists()


def test_nothing_is_stored_without_a_folder_or_a_right_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "stores no pictures" in space.store_wrong(None, "run", tiny_image(), "how many", "2")
    for image, question, answer in (
        (None, "how many", "2"),
        (tiny_image(), " ", "2"),
        (tiny_image(), "how many", " "),
    ):
        with pytest.raises(gradio.Error, match="first"):
            space.store_wrong("wrong", "run", image, question, answer)
    assert list(tmp_path.iterdir()) == []


def test_page_of_a_model_without_hops_has_the_gradient_alone_and_says_so(tmp_path):
    save_tiny_model(tmp_path, num_attention_layers=0)
    components = {part.elem_id: part for part in space.build_app(str(tmp_path)).blocks.values()}
    assert components["no-hops"].value == space.NO_HOPS
    assert [name for _, name in components["method"].choices] == ["Gradient of the answer's score"]
    assert not components["hop"].visible
    ask = space.load_pipeline(str(tmp_path))
    explanation, scores, *_ = space.answer(ask, tiny_image(), "what is red", "Gradient of the answer's score", None)
    assert explanation.method == "gradient" and len(scores) == 5


def test_words_are_marked_by_the_share_of_the_answer_that_is_lost(tmp_path):
    save_tiny_model(tmp_path)
    explanation = space.load_pipeline(str(tmp_path)).look(tiny_image(), "what is red")
    explanation.answers[0]["score"], explanation.words = 0.8, [("what", 0.4), ("is", -0.1), ("red", 0.8)]
    assert space.show_hop(explanation, 1)[1] == [("what", 0.5), ("is", 0.0), ("red", 1.0)]
