"""The processor: pictures as people see them, one clear message for bad input, answers and maps out."""

import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import ANSWERS, save_tiny_model, tiny_config, tiny_image, tiny_model, tiny_processor, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import AutoProcessor, ViTImageProcessorPil

from modeling_qca import QCAProcessor
from modeling_qca.modeling_qca import QCAForVisualQuestionAnsweringOutput

ENCODERS = Path(__file__).parents[3] / "shared" / "encoders"
QUESTION = "what is left of the red cube ?"


@pytest.fixture(scope="module")
def processor() -> QCAProcessor:
    return tiny_processor()


def seen(processor: QCAProcessor, image: object) -> torch.Tensor:
    """The picture the model gets, back in [0, 255], `[height, width, 3]`."""
    pixels = processor(images=image)["pixel_values"][0]
    return ((pixels * 0.5 + 0.5) * 255).permute(1, 2, 0)


def saved(image: Image.Image, path: Path, **options: object) -> str:
    image.save(path, **options)
    return str(path)


def test_questions_and_images_become_the_models_inputs(processor):
    inputs = processor(
        images=[tiny_image(0), tiny_image(1)], text=["where is the ball ?", "how many"], image_index=[1, 0]
    )
    tokenizer, image_processor = tiny_tokenizer(), ViTImageProcessorPil(size={"height": 32, "width": 32})
    assert inputs["input_ids"][0].tolist() == tokenizer("where is the ball ?")["input_ids"]
    assert inputs["input_ids"][1].tolist() == tokenizer("how many")["input_ids"] + [0, 0, 0]
    assert inputs["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    expected = image_processor([tiny_image(0), tiny_image(1)], return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)
    assert torch.equal(inputs["image_index"], torch.tensor([1, 0]))
    assert set(inputs) <= set(processor.model_input_names)


@pytest.mark.parametrize(
    ("images", "questions", "expected"),
    [(1, 1, [0]), (1, 3, [0, 0, 0]), (3, 3, [0, 1, 2])],
)
def test_image_index_may_be_left_out_where_there_is_one_reading(processor, images, questions, expected):
    inputs = processor(images=[tiny_image(i) for i in range(images)], text=["is the ball red ?"] * questions)
    assert inputs["image_index"].tolist() == expected


def test_parts_can_be_processed_alone(processor):
    assert set(processor(images=tiny_image())) == {"pixel_values"}
    assert set(processor(text=QUESTION)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    "index", [[0, 1], (0, 1), np.array([0, 1]), torch.tensor([0, 1])], ids=lambda value: type(value).__name__
)
def test_image_index_takes_any_sequence_of_integers(processor, index):
    inputs = processor(
        images=[tiny_image(0), tiny_image(1)], text=["yes", "no"], image_index=index, return_tensors="np"
    )
    assert isinstance(inputs["image_index"], np.ndarray)
    assert inputs["image_index"].tolist() == [0, 1]


@pytest.mark.parametrize("form", ["path", "string", "bytes", "array", "tensor"])
def test_an_image_may_come_in_any_form(processor, form, tmp_path):
    picture = tiny_image()
    path = tmp_path / "picture.png"
    picture.save(path)
    array = np.array(picture)
    image = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "array": array,
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
    }[form]
    assert torch.equal(
        processor(images=[image, picture])["pixel_values"][0], processor(images=picture)["pixel_values"][0]
    )


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(processor, orientation, as_file, tmp_path):
    stored = tiny_image(size=(32, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "photo.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    turned = {5: 90, 6: 90, 7: 90, 8: 90}.get(orientation, 0)
    assert upright.size == ((24, 32) if turned else (32, 24))
    shown = seen(processor, path if as_file else Image.open(path))
    assert shown.allclose(seen(processor, upright), atol=1e-3)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1 bit"])
def test_transparency_is_white(processor, mode, as_file, tmp_path):
    if mode == "P":
        image = Image.new("P", (32, 32), 1)
        image.putpalette([255, 0, 0, 0, 0, 0])
        options = {"transparency": 1}
    elif mode == "1 bit":
        image, options = Image.new("1", (32, 32), 0), {"transparency": 0}
    else:
        image, options = Image.new(mode, (32, 32), (0,) * len(mode)), {}
    path = saved(image, tmp_path / "picture.png", **options)
    assert seen(processor, path if as_file else Image.open(path)).allclose(torch.full((32, 32, 3), 255.0), atol=1e-3)


@pytest.mark.parametrize("as_file", [False, True])
def test_sixteen_bits_are_scaled_to_eight(processor, as_file, tmp_path):
    levels = np.repeat(np.linspace(0, 65535, 32).astype(np.uint16)[None], 32, axis=0)
    path = saved(Image.fromarray(levels), tmp_path / "depth.png")
    shown = seen(processor, path if as_file else Image.open(path))
    expected = torch.from_numpy(levels.astype(np.float32) / 65535 * 255)
    assert (shown - expected[..., None]).abs().max() < 1.01


def test_print_colors_and_grey_are_converted(processor, tmp_path):
    path = saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), tmp_path / "print.jpg", quality=100)
    assert seen(processor, path).mean((0, 1)).allclose(torch.tensor([255.0, 0.0, 0.0]), atol=4)
    assert seen(processor, Image.new("L", (32, 32), 100)).allclose(torch.full((32, 32, 3), 100.0), atol=1e-3)


def test_of_an_animation_the_first_frame_is_seen(processor, tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime")]
    path = saved(frames[0], tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 2
    assert seen(processor, path).mean((0, 1)).allclose(torch.tensor([255.0, 0.0, 0.0]), atol=1)


def truncated(folder: Path) -> str:
    whole = io.BytesIO()
    tiny_image(size=(64, 64)).save(whole, "PNG")
    (folder / "half.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return str(folder / "half.png")


def not_an_image(folder: Path) -> Path:
    (folder / "notes.jpg").write_text("no picture")
    return folder / "notes.jpg"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (truncated, "half.png"),
        (not_an_image, "notes.jpg"),
        (lambda folder: str(folder / "absent.jpg"), "absent.jpg: .*No such file"),
        (lambda folder: folder, "directory"),
        (lambda folder: b"no picture", "10 bytes"),
        (lambda folder: 7, "7: expected"),
        (lambda folder: "data:image/png;base64,abc", "data:image/png"),
    ],
)
def test_an_unreadable_image_is_named(processor, make, name, tmp_path):
    image = make(tmp_path)
    with pytest.raises(ValueError, match=f"Cannot read the image.*{name}") as error:
        processor(images=[tiny_image(), image], text=["yes", "no"])
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["yes", " "]}, r"Question 1 is empty \(' '\)"),
        ({"text": ""}, "Question 0 is empty"),
        ({"text": ["yes", None]}, r"Question 1 is empty \(None\)"),
        ({"text": []}, "`text` is empty"),
        ({"images": []}, "`images` is empty"),
        ({"images": 2, "text": ["yes"] * 3}, "2 images but 3 questions: pass `image_index`"),
        ({"images": 3, "text": ["yes"] * 2}, "3 images but 2 questions: pass `image_index`"),
        ({"images": 2, "text": ["yes"] * 3, "image_index": [0, 1]}, "`image_index` has 2 entries for 3 questions"),
        ({"images": 2, "text": ["yes"] * 2, "image_index": [0, 2]}, "of question 1 is 2, but there are 2 images"),
        ({"images": 2, "text": ["yes"] * 2, "image_index": [-1, 0]}, "of question 0 is -1, but there are 2 images"),
        ({"text": ["yes"], "image_index": [0]}, "`image_index` needs both"),
        ({"text": ["yes", "red " * 20]}, "Question 1 has 22 tokens, .* at most 16: .*`truncation=True`"),
    ],
)
def test_arguments_that_do_not_fit_are_named(processor, arguments, message):
    if isinstance(arguments.get("images"), int):
        arguments = arguments | {"images": [tiny_image()] * arguments["images"]}
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 4), (1, 40, 30), (40, 30, 2)])
def test_an_array_without_three_channels_is_named(processor, shape):
    with pytest.raises(ValueError, match="is no RGB image: pass"):
        processor(images=[np.zeros(shape, np.uint8)])


def test_a_fraction_of_an_image_is_no_image(processor):
    with pytest.raises(TypeError, match="float"):
        processor(images=[tiny_image()] * 2, text=["yes", "no"], image_index=[0.5, 1])


def test_a_long_question_is_cut_on_request_alone(processor):
    inputs = processor(text=["red " * 20], truncation=True)
    assert inputs["input_ids"].shape == (1, 16)
    assert processor(text=["red " * 14])["input_ids"].shape == (1, 16)
    assert processor(text=["red " * 9], text_kwargs={"truncation": True, "max_length": 6})["input_ids"].shape == (1, 6)


def test_the_tokenizers_arguments_are_at_hand(processor):
    assert processor(text=["yes", "no"], padding="max_length")["input_ids"].shape == (2, 16)
    assert processor(text=["yes", "no"], text_kwargs={"padding": "max_length"})["input_ids"].shape == (2, 16)
    assert processor(text=["yes", "is it"], padding=False, return_tensors=None)["input_ids"][0] == [2, 39, 3]


def test_padding_is_marked_where_the_tokenizer_leaves_that_out(processor):
    """As SigLIP's does, whose encoder would then read the padding."""
    silent = QCAProcessor(processor.image_processor, tiny_tokenizer(model_input_names=["input_ids"]))
    assert "attention_mask" not in silent.tokenizer("yes")
    questions = ["yes", "is it red"]
    for inputs in (silent(text=questions), silent(images=tiny_image(), text=questions)):
        assert inputs["attention_mask"].equal(processor(text=questions)["attention_mask"])
    assert "attention_mask" not in silent(text=questions, return_attention_mask=False)


def test_a_length_stored_with_the_tokenizer_neither_warns_nor_cuts():
    tokenizer = tiny_tokenizer(max_length=4, model_max_length=16)
    processor = QCAProcessor(tiny_processor().image_processor, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert processor(text=["is the red ball left ?"])["input_ids"].shape == (1, 8)
        assert processor(text=["is the red ball left ?"], truncation=True)["input_ids"].shape == (1, 8)


@pytest.mark.skipif(not ENCODERS.exists(), reason="needs the shared encoders")
def test_a_real_tokenizer_and_image_processor_warn_of_nothing(caplog):
    from transformers import AutoImageProcessor, AutoTokenizer

    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        image_processor = AutoImageProcessor.from_pretrained(ENCODERS / "dinov2-small")
        processor = QCAProcessor(image_processor, AutoTokenizer.from_pretrained(ENCODERS / "minilm-l6"))
        inputs = processor(images=tiny_image(size=(80, 60)), text=["what is on the bed", "how many chairs"])
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    assert inputs["input_ids"].shape == (2, 7)


@pytest.mark.parametrize("loader", [QCAProcessor, AutoProcessor])
def test_a_saved_processor_comes_back_the_same(processor, loader, tmp_path):
    processor.save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is QCAProcessor
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    inputs = {"images": tiny_image(size=(50, 20)), "text": [QUESTION, "no"]}
    for name, value in processor(**inputs).items():
        assert torch.equal(loaded(**inputs)[name], value)


IN_A_FRESH_PROCESS = """
import sys, warnings
warnings.simplefilter("error")
from PIL import Image
from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
model = QCAForVisualQuestionAnswering.from_pretrained(sys.argv[1])
processor = QCAProcessor.from_pretrained(sys.argv[1])
outputs = model(**processor(images=Image.new("RGB", (40, 30)), text=["is it red ?", "no"]))
print(len(processor.post_process_question_answering(outputs, model.config)))
"""


def test_importing_loading_and_predicting_print_no_warning(tmp_path):
    """The stack of the tests has no torchvision, which is when image processors are tempted to complain."""
    save_tiny_model(tmp_path / "model")
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, "model"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"
    assert done.stderr == ""


def outputs_of(**fields: torch.Tensor | tuple[int, int]) -> QCAForVisualQuestionAnsweringOutput:
    return QCAForVisualQuestionAnsweringOutput(**fields)


@pytest.mark.parametrize("problem_type", [None, "single_label_classification", "multi_label_classification"])
def test_answers_come_best_first_with_their_probabilities(processor, problem_type):
    logits = torch.randn(3, 5)
    found = processor.post_process_question_answering(
        outputs_of(logits=logits), tiny_config(problem_type=problem_type), top_k=3
    )
    for row, best in zip(logits.tolist(), found, strict=True):
        several = problem_type == "multi_label_classification"
        total = sum(np.exp(row))
        scores = {ANSWERS[i]: 1 / (1 + np.exp(-x)) if several else np.exp(x) / total for i, x in enumerate(row)}
        expected = sorted(scores.items(), key=lambda item: -item[1])[:3]
        assert [item["answer"] for item in best] == [answer for answer, _ in expected]
        assert [item["score"] for item in best] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_no_more_answers_than_there_are_and_no_fewer_than_one(processor):
    outputs = outputs_of(logits=torch.randn(1, 5, dtype=torch.bfloat16))
    assert len(processor.post_process_question_answering(outputs, tiny_config(), top_k=50)[0]) == 5
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        processor.post_process_question_answering(outputs, tiny_config(), top_k=0)


def bilinear(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel's center is placed on the grid of patch centers and reads the four around it."""
    rows, columns = grid.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = grid[top, left] * (1 - (u - left)) + grid[top, right] * (u - left)
            lower = grid[bottom, left] * (1 - (u - left)) + grid[bottom, right] * (u - left)
            result[y, x] = upper * (1 - (v - top)) + lower * (v - top)
    return result


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_maps_are_head_means_resized_to_height_and_width(rows, columns, height, width, seed):
    torch.manual_seed(seed)
    relevance = torch.rand(2, 3, 4, rows * columns).softmax(-1)
    outputs = outputs_of(relevance=relevance, grid=(rows, columns))
    grids = tiny_processor().post_process_relevance(outputs)
    resized = tiny_processor().post_process_relevance(outputs, [(height, width), (rows, columns)])
    for question in range(2):
        expected = relevance[question].numpy().mean(axis=1).reshape(3, rows, columns)
        np.testing.assert_allclose(grids[question], expected, atol=1e-6)
    for hop in range(3):
        np.testing.assert_allclose(resized[0][hop], bilinear(grids[0][hop].numpy(), height, width), atol=1e-5)
    assert resized[1].allclose(grids[1], atol=1e-6)


def test_maps_need_a_size_for_each_question(processor):
    outputs = outputs_of(relevance=torch.rand(2, 1, 1, 4), grid=(2, 2))
    with pytest.raises(ValueError, match="1 `target_sizes` for 2 questions"):
        processor.post_process_relevance(outputs, [(8, 8)])


def test_maps_of_a_cropped_image_are_not_spread_over_the_whole_picture():
    processor = tiny_processor(do_center_crop=True, crop_size={"height": 32, "width": 32})
    outputs = outputs_of(relevance=torch.rand(1, 1, 1, 4), grid=(2, 2))
    assert len(processor.post_process_relevance(outputs)) == 1
    with pytest.raises(ValueError, match="do_center_crop=False"):
        processor.post_process_relevance(outputs, [(8, 8)])


def test_the_whole_way_from_a_file_to_an_answer_and_a_map(processor, tmp_path):
    path = saved(tiny_image(size=(60, 40)), tmp_path / "room.jpg")
    model = tiny_model()
    with torch.no_grad():
        outputs = model(**processor(images=path, text=[QUESTION, "how many"]))
    best = processor.post_process_question_answering(outputs, model.config, top_k=5)
    assert [sum(item["score"] for item in row) for row in best] == pytest.approx([1.0, 1.0])
    assert [tuple(maps.shape) for maps in processor.post_process_relevance(outputs, [(40, 60)] * 2)] == [
        (2, 40, 60)
    ] * 2
