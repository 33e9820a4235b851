"""The visual-question-answering pipeline, from the installed package and from the code of a checkpoint."""

import json
import subprocess
import sys
import textwrap
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.answers import QUESTIONS, assert_same, scores
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
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    LevitImageProcessorPil,
    SamImageProcessorPil,
    ViTImageProcessorPil,
    pipeline,
)

from modeling_qca import QCAProcessor, QCAVisualQuestionAnsweringPipeline, overlay
from modeling_qca.evaluation_copy_qca import unwrapped_model
from modeling_qca.explanation_qca import VisualExplanation
from modeling_qca.overlay_qca import seen_box, sees_whole_picture
from modeling_qca.training.benchmark.models import packed_products


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def ask(checkpoint: Path) -> QCAVisualQuestionAnsweringPipeline:
    return pipeline(model=str(checkpoint), pipeline_class=QCAVisualQuestionAnsweringPipeline)


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


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_scores_of_choices_are_their_probabilities_among_the_choices(ask, monkeypatch, problem_type):
    monkeypatch.setattr(ask.model.config, "problem_type", problem_type)
    image, labels = tiny_image(), list(ask.model.config.id2label.values())
    choices = [labels[2], labels[0], labels[2]]
    with torch.no_grad():
        logits = ask.model(**tiny_processor()(images=image, text=QUESTIONS[:2])).logits[:, [2, 0]].double()
    expected = logits.softmax(-1) if problem_type == "single_label_classification" else logits.sigmoid()
    for answers, row in zip(ask(image, QUESTIONS[:2], answers=choices), expected, strict=True):
        assert scores(answers) == pytest.approx(dict(zip(choices[:2], row.tolist(), strict=True)), abs=1e-5)
        assert answers[0]["score"] >= answers[1]["score"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            ["sofa"],
            r"has 'sofa', which is none of the \d+ answers of the model, such as '.*Choose from `config.id2label`",
        ),
        ([], "a list of at least one answer"),
        ("yes", "a list of at least one answer"),
    ],
)
def test_unknown_or_missing_choices_are_refused_before_the_model_runs(ask, monkeypatch, choices, message):
    monkeypatch.setattr(ask, "preprocess", lambda *args, **kwargs: pytest.fail("the question was asked"))
    with pytest.raises(ValueError, match=message):
        ask(tiny_image(), QUESTIONS[0], answers=choices)


def test_several_questions_about_one_image_encode_it_once(ask, monkeypatch):
    encoded = []
    encode = ask.model.qca.vision_encoder.encode_images
    monkeypatch.setattr(
        ask.model.qca.vision_encoder,
        "encode_images",
        lambda pixels, *shapes, **kwargs: (encoded.append(len(pixels)), encode(pixels, *shapes, **kwargs))[1],
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
        assert look.method == method
        assert [word for word, _ in look.words] == question.split()
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
    without = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
    with pytest.raises(ValueError, match="no token budget"):
        without.look(image, QUESTIONS[0]).kept_patches()


@pytest.mark.parametrize(
    "images",
    [
        ConvNextImageProcessorPil(size={"shortest_edge": 32}),  # crops by `crop_pct`
        SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}),
        LevitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ],
    ids=lambda images: type(images).__name__,
)
def test_maps_have_no_place_where_the_processor_crops_by_its_own_rule(images):
    picture = Image.new("RGB", (64, 32), "white")
    seen = images(picture, return_tensors="pt")["pixel_values"]
    covered = picture.copy()
    covered.paste("black", (0, 0, 64, 1))
    covered.paste("black", (0, 0, 1, 32))
    assert seen.shape[-2:] == (32, 32)
    padded = (seen[0] == 0).all(dim=0).any()
    assert padded or torch.equal(images(covered, return_tensors="pt")["pixel_values"], seen)  # the model sees a part
    assert not sees_whole_picture(images)
    with pytest.raises(ValueError, match=f"{type(images).__name__} crops or pads .*ViTImageProcessorPil"):
        seen_box(images, 64, 32)
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=QCAProcessor(images, tiny_tokenizer()))
    assert ask(image=picture, question="what is red")[0]["answer"]
    with pytest.raises(ValueError, match="a rule of its own"):
        ask(image=picture, question="what", return_relevance=True)
    with pytest.raises(ValueError, match="a rule of its own"):
        ask.look(picture, "what")


@pytest.mark.parametrize(
    "fields", [{"size": {"shortest_edge": 384}}, {"size": {"shortest_edge": 224}, "do_resize": False}], ids=str
)
def test_convnext_pictures_of_384_pixels_and_more_are_seen_whole(fields):
    images, picture = ConvNextImageProcessorPil(**fields), Image.effect_noise((640, 480), 80).convert("RGB")
    whole = ViTImageProcessorPil(
        size={"height": 384, "width": 384},
        do_resize=images.do_resize,
        resample=images.resample,
        image_mean=images.image_mean,
        image_std=images.image_std,
    )
    seen, expected = (each(picture, return_tensors="pt")["pixel_values"] for each in (images, whole))
    assert torch.equal(seen, expected)
    assert sees_whole_picture(images) and seen_box(images, 640, 480) == (0, 0, 640, 480)


def test_compiled_model_answers_and_explains():
    model, image = tiny_model(), tiny_image()
    expected = QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())
    compiled = QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())
    ran = []

    def backend(graph, inputs):
        ran.append(graph)
        return graph.forward

    compiled.model = torch.compile(model, backend=backend)
    asked = {"image": image, "question": QUESTIONS[0]}
    assert compiled(**asked)[0]["score"] == pytest.approx(expected(**asked)[0]["score"])
    assert ran
    torch.testing.assert_close(compiled.look(**asked).relevance, expected.look(**asked).relevance)
    wrapped = torch.nn.Module()
    wrapped.module = compiled.model  # as DistributedDataParallel does
    assert unwrapped_model(wrapped) is unwrapped_model(torch.compile(wrapped, backend=backend)) is model
    with pytest.raises(TypeError, match="Pass a QCA model"):
        unwrapped_model(torch.nn.Linear(1, 1))


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


@pytest.mark.slow  # fresh processes
@pytest.mark.parametrize("task", [None, "visual-question-answering"])
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


def test_no_code_of_the_checkpoint_runs_with_the_package_installed(ask, tmp_path):
    ask.save_pretrained(tmp_path)
    files = list(tmp_path.glob("*_qca.py"))
    assert files
    for code in files:
        code.write_text("raise SystemExit('code of the checkpoint ran')")
    loaded = pipeline(model=str(tmp_path), pipeline_class=QCAVisualQuestionAnsweringPipeline)
    assert_same(loaded(tiny_image(), "what"), ask(tiny_image(), "what"))
