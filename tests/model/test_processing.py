"""The processor: images and questions to inputs, messages for bad input, outputs to answers and maps."""

import warnings
from typing import is_typeddict

import numpy as np
import pytest
import torch
from helpers import fresh_process
from helpers.data_files import save_image
from helpers.tiny import ANSWERS, save_tiny_model, tiny_config, tiny_image, tiny_model, tiny_processor, tiny_tokenizer
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    DefaultDataCollator,
    ViTImageProcessorPil,
    default_data_collator,
)

from modeling_qca import QCAProcessor
from modeling_qca.modeling_qca import QCAForVisualQuestionAnsweringOutput

QUESTION = "what is left of the red cube ?"


@pytest.fixture(scope="module")
def processor() -> QCAProcessor:
    return tiny_processor()


def test_inputs_equal_those_of_the_tokenizer_and_the_image_processor(processor):
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
    assert set(inputs) - {"image_index"} == set(processor.model_input_names)


@pytest.mark.parametrize(
    ("images", "questions", "index", "expected"),
    [
        (1, 1, None, None),
        (1, 3, None, [0, 0, 0]),
        (3, 3, None, None),
        (3, 3, [0, 1, 2], None),
        (3, 3, [0, 2, 1], [0, 2, 1]),
        (2, 3, [0, 1, 1], [0, 1, 1]),
    ],
)
def test_image_index_is_returned_only_where_images_and_questions_do_not_pair_up(
    processor, images, questions, index, expected
):
    pictures = [tiny_image(i) for i in range(images)]
    inputs = processor(images=pictures, text=["is the ball red ?"] * questions, image_index=index)
    assert len(inputs["input_ids"]) == questions  # equal questions stay apart
    assert len(inputs["pixel_values"]) == images
    assert ("image_index" in inputs) == (expected is not None)
    if expected is not None:
        assert inputs["image_index"].tolist() == expected


PAIRS = [(tiny_image(i), f"where is the {color} ball") for i, color in enumerate(["red", "green", "blue"] * 4)]


@pytest.fixture(scope="module")
def one_by_one(processor: QCAProcessor) -> torch.Tensor:
    """Logits of `PAIRS`, each answered alone."""
    model = tiny_model()
    with torch.no_grad():
        logits = torch.cat([model(**processor(images=image, text=question)).logits for image, question in PAIRS])
    assert (logits[1:] - logits[0]).abs().amax(1).min() > 1e-3  # every pair has logits of its own
    return logits


def test_single_pairs_stacked_by_the_default_collator_have_the_logits_of_one_by_one(processor, one_by_one):
    rows = [processor(images=image, text=question, padding="max_length") for image, question in PAIRS]
    batch = default_data_collator([{name: value.squeeze(0) for name, value in row.items()} for row in rows])
    with torch.no_grad():
        logits = tiny_model()(**batch).logits
    torch.testing.assert_close(logits, one_by_one)


def test_pairs_of_a_mapped_dataset_have_the_logits_of_one_by_one(processor, one_by_one, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = [save_image(image, tmp_path / f"{i}.png") for i, (image, _) in enumerate(PAIRS)]
    table = datasets.Dataset.from_dict({"image": files, "question": [question for _, question in PAIRS]})

    def encode(rows: dict) -> dict:
        return dict(processor(images=rows["image"], text=rows["question"], padding="max_length"))

    encoded = table.map(encode, batched=True, batch_size=5, remove_columns=table.column_names)
    batch = DefaultDataCollator()([encoded[i] for i in range(len(PAIRS))])
    with torch.no_grad():
        logits = tiny_model()(**batch).logits
    torch.testing.assert_close(logits, one_by_one)


def test_split_and_sliced_batches_of_pairs_have_the_logits_of_one_by_one(processor, one_by_one):
    batch = processor(images=[image for image, _ in PAIRS], text=[question for _, question in PAIRS])
    model = tiny_model()
    with torch.no_grad():
        for parts in (3, 4):
            chunks = zip(*(value.chunk(parts) for value in batch.values()), strict=True)
            logits = torch.cat([model(**dict(zip(batch, chunk, strict=True))).logits for chunk in chunks])
            torch.testing.assert_close(logits, one_by_one)
        sliced = {name: value[3:8] for name, value in batch.items()}
        torch.testing.assert_close(model(**sliced).logits, one_by_one[3:8])


def test_a_list_of_questions_for_each_image_equals_image_index(processor):
    images, flat = [tiny_image(0), tiny_image(1)], ["how many", "is it red", "what is left"]
    expected = processor(images=images, text=flat, image_index=[0, 0, 1])
    for text in ([flat[:2], flat[2:]], (tuple(flat[:2]), flat[2])):
        nested = processor(images=images, text=text)
        assert nested.keys() == expected.keys()
        assert all(torch.equal(nested[name], expected[name]) for name in expected)
    pairs = processor(images=images, text=[["how many"], ["is it red"]])
    assert "image_index" not in pairs and len(pairs["input_ids"]) == 2


def test_images_and_questions_can_be_processed_alone(processor):
    assert set(processor(images=tiny_image())) == {"pixel_values"}
    assert set(processor(text=QUESTION)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    "index", [[1, 0], (1, 0), np.array([1, 0]), torch.tensor([1, 0])], ids=lambda value: type(value).__name__
)
def test_image_index_accepts_any_sequence_of_integers(processor, index):
    inputs = processor(
        images=[tiny_image(0), tiny_image(1)], text=["yes", "no"], image_index=index, return_tensors="np"
    )
    assert isinstance(inputs["image_index"], np.ndarray)
    assert inputs["image_index"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["yes", " "]}, r"Question 1 is empty \(' '\)"),
        ({"text": ""}, "Question 0 is empty"),
        ({"text": ["yes", None]}, r"Question 1 is empty \(None\)"),
        ({"text": []}, "`text` is empty"),
        ({"images": []}, "`images` is empty"),
        ({"images": 2, "text": [["yes"], ["no"], ["yes"]]}, "3 lists of questions for 2 images"),
        ({"images": 2, "text": [["yes"], []]}, "Entry 1 of `text` has no question"),
        ({"images": 2, "text": [["yes"], ["no"]], "image_index": [0, 1]}, "not both"),
        ({"text": [["yes"], ["no"]]}, "need `images`"),
        ({}, "Pass `images`, `text` or both"),
        ({"images": 2, "text": ["yes"] * 3}, "2 images but 3 questions: pass `image_index`"),
        ({"images": 3, "text": ["yes"] * 2}, "3 images but 2 questions: pass `image_index`"),
        ({"images": 2, "text": ["yes"] * 3, "image_index": [0, 1]}, "`image_index` has 2 entries for 3 questions"),
        ({"images": 2, "text": ["yes"] * 2, "image_index": [0, 2]}, "of question 1 is 2, but there are 2 images"),
        ({"images": 2, "text": ["yes"] * 2, "image_index": [-1, 0]}, "of question 0 is -1, but there are 2 images"),
        ({"text": ["yes"], "image_index": [0]}, "`image_index` needs both"),
        ({"text": ["yes", "red " * 20]}, "Question 1 has 22 tokens, .* at most 16: .*`truncation=True`"),
    ],
)
def test_error_names_arguments_that_do_not_fit(processor, arguments, message):
    if isinstance(arguments.get("images"), int):
        arguments = arguments | {"images": [tiny_image()] * arguments["images"]}
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_a_fractional_image_index_is_refused(processor):
    with pytest.raises(TypeError, match="float"):
        processor(images=[tiny_image()] * 2, text=["yes", "no"], image_index=[0.5, 1])


def test_a_long_question_is_cut_only_with_truncation(processor):
    inputs = processor(text=["red " * 20], truncation=True)
    assert inputs["input_ids"].shape == (1, 16)
    assert processor(text=["red " * 14])["input_ids"].shape == (1, 16)
    assert processor(text=["red " * 9], text_kwargs={"truncation": True, "max_length": 6})["input_ids"].shape == (1, 6)


def test_tokenizer_arguments_are_accepted_flat_and_nested(processor):
    assert processor(text=["yes", "no"], padding="max_length")["input_ids"].shape == (2, 16)
    assert processor(text=["yes", "no"], text_kwargs={"padding": "max_length"})["input_ids"].shape == (2, 16)
    assert processor(text=["yes", "is it"], padding=False, return_tensors=None)["input_ids"][0] == [2, 39, 3]


def test_attention_mask_is_returned_for_tokenizers_that_omit_it(processor):
    """SigLIP has such a tokenizer; its encoder would read the padding."""
    silent = QCAProcessor(processor.image_processor, tiny_tokenizer(model_input_names=["input_ids"]))
    assert "attention_mask" not in silent.tokenizer("yes")
    questions = ["yes", "is it red"]
    for inputs in (silent(text=questions), silent(images=tiny_image(), text=questions)):
        assert inputs["attention_mask"].equal(processor(text=questions)["attention_mask"])
    assert "attention_mask" not in silent(text=questions, return_attention_mask=False)


def test_max_length_stored_with_the_tokenizer_is_ignored():
    tokenizer = tiny_tokenizer(max_length=4, model_max_length=16)
    processor = QCAProcessor(tiny_processor().image_processor, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert processor(text=["is the red ball left ?"])["input_ids"].shape == (1, 8)
        assert processor(text=["is the red ball left ?"], truncation=True)["input_ids"].shape == (1, 8)


@pytest.mark.parametrize("nested", [False, True])
def test_padding_does_not_count_as_tokens(processor, nested):
    padded = {"padding": "max_length", "max_length": 128}
    inputs = processor(text="is it red", **({"text_kwargs": padded} if nested else padded))
    assert inputs["input_ids"].shape == (1, 128) and inputs["attention_mask"].sum() == 5
    with torch.no_grad():
        model, images = tiny_model(), processor(images=tiny_image())
        alone = processor(text="is it red")
        torch.testing.assert_close(model(**inputs, **images).logits, model(**alone, **images).logits)


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first"])
@pytest.mark.parametrize("padding", [True, "max_length"])
def test_truncation_cuts_to_what_the_text_encoder_reads(processor, truncation, padding):
    inputs = processor(text=["red " * 20, "red"], truncation=truncation, padding=padding, max_length=128)
    assert inputs["input_ids"].shape == (2, 16)
    assert inputs["attention_mask"].sum(1).tolist() == [16, 3]


def test_keyword_arguments_are_typed(processor):
    assert is_typeddict(QCAProcessor.valid_processor_kwargs)
    assert QCAProcessor.valid_processor_kwargs.__annotations__.keys() >= {"text_kwargs", "images_kwargs"}
    with pytest.raises(StrictDataclassFieldValidationError, match="do_resize"):
        processor(images=tiny_image(), do_resize="perhaps")


@pytest.mark.parametrize("loader", [QCAProcessor, AutoProcessor])
def test_a_saved_processor_loads_with_equal_outputs(processor, loader, tmp_path):
    processor.save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is QCAProcessor
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    inputs = {"images": tiny_image(size=(50, 20)), "text": [QUESTION, "no"]}
    for name, value in processor(**inputs).items():
        assert torch.equal(loaded(**inputs)[name], value)


QUIETLY = """
import sys, warnings
from transformers.utils.logging import disable_progress_bar
warnings.simplefilter("error")
disable_progress_bar()
"""
BY_CLASS = """
from PIL import Image
from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
model = QCAForVisualQuestionAnswering.from_pretrained("model")
processor = QCAProcessor.from_pretrained("model")
outputs = model(**processor(images=Image.new("RGB", (40, 30)), text=["is it red ?", "no"]))
print(len(processor.post_process_question_answering(outputs, model.config)))
"""
BY_REMOTE_CODE = """
from transformers import pipeline
ask = pipeline(model="model", trust_remote_code=True)
ask("image.png", ["is it red ?", "no"])
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
model = AutoModelForVisualQuestionAnswering.from_pretrained("model", trust_remote_code=True, dtype="auto")
processor = AutoProcessor.from_pretrained("model", trust_remote_code=True)
print(len(model(**processor(images="image.png", text=["is it red ?", "no"])).logits))
"""
BY_COMMAND = """
sys.argv = ["qca", "ask", "model", "image.png", "is it red ?", "is it blue ?", "--top-k", "1"]
from qca_cli.main import main
main()
"""


@pytest.mark.parametrize("program", [BY_CLASS, BY_REMOTE_CODE, BY_COMMAND])
def test_import_load_and_predict_print_no_warning(program, tmp_path):
    save_tiny_model(tmp_path / "model")
    tiny_image().save(tmp_path / "image.png")
    printed = fresh_process.run(QUIETLY + program, folder=tmp_path)  # it must print nothing on the error stream
    assert printed == "2\n" or printed.count("is it") == 2


def outputs_of(**fields: torch.Tensor | tuple[int, int]) -> QCAForVisualQuestionAnsweringOutput:
    return QCAForVisualQuestionAnsweringOutput(**fields)


@pytest.mark.parametrize("problem_type", [None, "single_label_classification", "multi_label_classification"])
def test_answers_are_sorted_by_probability(processor, problem_type):
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


def test_top_k_is_at_most_all_answers_and_at_least_one(processor):
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
def test_maps_are_the_mean_of_heads_resized_bilinearly(rows, columns, height, width, seed):
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


def test_target_sizes_of_another_number_than_questions_are_refused(processor):
    outputs = outputs_of(relevance=torch.rand(2, 1, 1, 4), grid=(2, 2))
    with pytest.raises(ValueError, match="1 `target_sizes` for 2 questions"):
        processor.post_process_relevance(outputs, [(8, 8)])


def test_target_sizes_with_a_cropping_processor_name_the_size_to_set():
    processor = tiny_processor(do_center_crop=True, crop_size={"height": 32, "width": 32})
    outputs = outputs_of(relevance=torch.rand(1, 1, 1, 4), grid=(2, 2))
    assert len(processor.post_process_relevance(outputs)) == 1
    with pytest.raises(ValueError, match=r'do_center_crop=False, size=\{"height": 32, "width": 32\}'):
        processor.post_process_relevance(outputs, [(8, 8)])


def test_images_of_different_sizes_name_the_size_that_stacks():
    fields = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    processor = QCAProcessor(CLIPImageProcessorPil(**fields, do_center_crop=False), tiny_tokenizer())
    images = [tiny_image(size=(50, 40)), tiny_image(size=(80, 40))]
    with pytest.raises(ValueError, match=r'do_center_crop=False, size=\{"height": 32, "width": 32\}'):
        processor(images=images)
    advised = processor(images=images, do_center_crop=False, size={"height": 32, "width": 32})
    assert advised["pixel_values"].shape == (2, 3, 32, 32)


def test_a_file_gives_answers_and_maps_at_its_size(processor, tmp_path):
    path = save_image(tiny_image(size=(60, 40)), tmp_path / "room.jpg")
    model = tiny_model()
    with torch.no_grad():
        outputs = model(**processor(images=path, text=[QUESTION, "how many"]))
    best = processor.post_process_question_answering(outputs, model.config, top_k=5)
    assert [sum(item["score"] for item in row) for row in best] == pytest.approx([1.0, 1.0])
    assert [tuple(maps.shape) for maps in processor.post_process_relevance(outputs, [(40, 60)] * 2)] == [
        (2, 40, 60)
    ] * 2


def test_refuses_an_argument_given_twice():
    with pytest.raises(ValueError, match="`padding` is given twice"):
        tiny_processor()(text="what", padding="max_length", text_kwargs={"padding": "do_not_pad"})


def test_pads_to_the_length_that_the_tokenizer_stores_with_padding():
    tokenizer = tiny_tokenizer(padding="max_length", max_length=12)
    processor = QCAProcessor(tiny_processor().image_processor, tokenizer)
    assert processor(text="what")["input_ids"].shape == (1, 12)
    assert processor(text="what", padding=True)["input_ids"].shape == (1, 3)


def test_processor_equals_its_saved_copy(tmp_path):
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    assert QCAProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
