"""Figures of explanations and faithfulness, and the files of an explanation."""

import json
import re

import numpy as np
import pytest
import torch
from helpers.tiny import save_tiny_model, tiny_image
from PIL import Image

from modeling_qca.explanation_qca import VisualExplanation

pytest.importorskip("matplotlib", reason="the `figures` extra is not installed")

from modeling_qca.training.evaluation.figures import (
    explain_to_files,
    explanation_figure,
    faithfulness_figure,
    hop_frames,
    hop_strip,
    questions_figure,
    write_figure,
)
from modeling_qca.training.prediction.ask import answer_questions

QUESTIONS = ["what is left of the ball", "is there a red cube"]


def explanation_of(size: tuple[int, int] = (120, 60), maps: int = 2, **fields) -> VisualExplanation:
    relevance = torch.zeros(maps, 4, 4)
    for index in range(maps):
        relevance[index, index, 3 - index] = 1.0
    answers = fields.pop("answers", [{"answer": "red", "score": 0.75}, {"answer": "blue", "score": 0.2}])
    words = [("what", 0.1), ("is", -0.2), ("left", 0.7)]
    defaults = {"words": words, "kept": None, "box": (0, 0, *size)}
    return VisualExplanation(tiny_image(size=size), QUESTIONS[0], answers, relevance, **defaults | fields)


def texts(figure) -> str:
    found = [figure.get_suptitle()]
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_xlabel(), *(text.get_text() for text in axis.texts)]
        found += [label.get_text() for label in (*axis.get_xticklabels(), *axis.get_yticklabels())]
    return "\n".join(found)


@pytest.mark.parametrize("maps", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (160, 60), (50, 120)])
def test_explanation_figure_shows_every_map_and_the_answers(size, maps, tmp_path):
    explanation = explanation_of(size, maps)
    figure = explanation_figure(explanation)
    picture, *panels, bars = figure.axes
    assert (np.asarray(picture.images[0].get_array()) == np.asarray(explanation.image)).all()
    assert len(panels) == maps
    for index, panel in enumerate(panels):
        assert (np.asarray(panel.images[0].get_array()) == np.asarray(explanation.overlay(index, caption=False))).all()
    assert [bar.get_width() for bar in bars.patches] == [0.2, 0.75]
    written = texts(figure)
    for expected in (QUESTIONS[0], "red", "blue", "75%", "20%", "left -70%"):
        assert expected in written
    assert ("hop 3" in written) == (maps == 3)
    path = write_figure(figure, tmp_path / "explanation.png")
    assert Image.open(path).width > 900
    assert [file.name for file in tmp_path.iterdir()] == ["explanation.png"]


def test_questions_figure_shows_the_last_map_of_each():
    explanations = [explanation_of(), explanation_of(maps=1)]
    figure = questions_figure(explanations)
    pictures = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert [
        (picture == np.asarray(explanation.overlay(caption=False))).all()
        for picture, explanation in zip(pictures, explanations, strict=True)
    ] == [True, True]
    assert (pictures[0] != pictures[1]).any()
    assert all("red (75%)" in axis.get_title() and QUESTIONS[0] in axis.get_title() for axis in figure.axes)


def test_shows_dollar_signs_and_brackets_as_they_are(tmp_path):
    explanation = explanation_of(answers=[{"answer": "$5^2 [b]", "score": 1.0}, {"answer": "$x_", "score": 0.0}])
    explanation.question = "is it $5_ or $10 [now]"
    for number, figure in enumerate((explanation_figure(explanation), questions_figure([explanation]))):
        assert "$5_ or $10 [now]" in texts(figure)
        assert write_figure(figure, tmp_path / f"{number}.png").stat().st_size


def test_hops_become_a_strip_and_frames():
    explanation = explanation_of()
    overlay = explanation.overlay(0)
    assert hop_strip(explanation).size == (3 * 120 + 2 * 8, overlay.height)
    frames = hop_frames(explanation)
    assert [frame.size for frame in frames] == [overlay.size] * 3
    assert frames[0].crop((0, 0, 120, 60)).tobytes() == explanation.image.tobytes()
    assert frames[2].tobytes() == explanation.overlay(1).tobytes()


def test_faithfulness_figure_shows_curves_and_areas():
    results = {
        "fractions": [0.0, 0.5, 1.0],
        "questions": 7,
        "curves": {
            source: {curve: {"positive": {"probability": [0.9, middle, 0.1]}} for curve in ("deletion", "insertion")}
            for source, middle in (("relevance", 0.2), ("cls_attention", 0.6))
        },
        "auc": {
            source: {curve: {"positive": {"probability": area}} for curve in ("deletion", "insertion")}
            for source, area in (("relevance", 0.35), ("cls_attention", 0.55))
        },
    }
    figure = faithfulness_figure(results)
    for axis in figure.axes:
        assert [line.get_ydata()[1] for line in axis.lines] == [0.2, 0.6]
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == ["relevance (0.350)", "cls attention (0.550)"]
        assert "7 questions" in axis.get_title()


@pytest.mark.parametrize(
    ("method", "fields"), [("relevance", {"token_budget": 9, "token_budget_layer": 1}), ("gradient", {})]
)
def test_writes_the_files_of_an_explanation(tmp_path, method, fields):
    save_tiny_model(tmp_path / "checkpoint", **fields)
    tiny_image(size=(90, 60)).save(tmp_path / "image.png")
    output = tmp_path / "looks" / "here"
    written = explain_to_files(str(tmp_path / "checkpoint"), str(tmp_path / "image.png"), QUESTIONS, output, method)
    names = {"1.png", "1-overlay.png", "2.png", "2-overlay.png", "questions.png", "explanation.json"}
    if method == "relevance":
        names |= {f"{number}-{what}" for number in (1, 2) for what in ("hops.png", "hops.gif", "kept.png")}
        assert Image.open(output / "1-hops.gif").n_frames == 3
    assert {path.name for path in written} == {path.name for path in output.iterdir()} == names
    assert Image.open(output / "1-overlay.png").width == 90
    numbers = json.loads((output / "explanation.json").read_text())
    assert [entry["question"] for entry in numbers["questions"]] == QUESTIONS
    for entry in numbers["questions"]:
        relevance = np.array(entry["relevance"])
        np.testing.assert_allclose(relevance.sum((1, 2)), 1, atol=1e-5)
        assert (entry["kept"] is None) == (method == "gradient")


def test_writes_nothing_for_an_unreadable_image(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="Cannot read the image"):
        explain_to_files(str(tmp_path / "checkpoint"), "nowhere.png", QUESTIONS, tmp_path / "looks")
    assert not (tmp_path / "looks").exists()


def test_explain_of_a_model_without_hops_draws_the_gradient_and_says_so(tmp_path, caplog):
    save_tiny_model(tmp_path / "checkpoint", num_attention_layers=0)
    tiny_image().save(tmp_path / "image.png")
    arguments = str(tmp_path / "checkpoint"), str(tmp_path / "image.png"), QUESTIONS
    explain_to_files(*arguments, tmp_path / "looks")
    assert "has no hops: the pictures show the gradient of the answer's score" in caplog.text
    numbers = json.loads((tmp_path / "looks" / "explanation.json").read_text())
    assert {entry["method"] for entry in numbers["questions"]} == {"gradient"}
    first, _ = answer_questions(*arguments, 3, tmp_path / "overlay.png")
    assert (first.map_name, first.overlay) == ("gradient map (the model has no hops)", tmp_path / "overlay-1.png")
    assert re.match(r"\w+ [+-]\d+%, ", first.words)
