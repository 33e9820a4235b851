"""Figures: what is drawn, at what size, and what files a checkpoint's explanation becomes."""

import json

import numpy as np
import pytest
import torch
from helpers.tiny import save_tiny_model, tiny_image
from PIL import Image

from modeling_qca.explanation_qca import VisualExplanation

pytest.importorskip("matplotlib", reason="the `figures` extra is not installed")

from modeling_qca.training.evaluation.figures import (
    explain_to_files,
    faithfulness_figure,
    hop_frames,
    hop_strip,
    look_figure,
    questions_figure,
    write_figure,
)

QUESTIONS = ["what is left of the ball", "is there a red cube"]


def look_at(size: tuple[int, int] = (120, 60), maps: int = 2, **fields) -> VisualExplanation:
    relevance = torch.zeros(maps, 4, 4)
    for index in range(maps):
        relevance[index, index, 3 - index] = 1.0
    answers = [{"answer": "red", "score": 0.75}, {"answer": "blue", "score": 0.2}]
    words = [[("what", 0.1), ("is", 0.2), ("left", 0.7)], [("what", 0.6), ("is", 0.1), ("left", 0.3)]]
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
def test_a_look_is_drawn_with_every_map_and_the_answers(size, maps, tmp_path):
    look = look_at(size, maps)
    figure = look_figure(look)
    picture, *panels, bars = figure.axes
    assert (np.asarray(picture.images[0].get_array()) == np.asarray(look.image)).all()
    assert len(panels) == maps
    for index, panel in enumerate(panels):
        assert (np.asarray(panel.images[0].get_array()) == np.asarray(look.overlay(index, caption=False))).all()
    assert [bar.get_width() for bar in bars.patches] == [0.2, 0.75]
    written = texts(figure)
    for expected in (QUESTIONS[0], "red", "blue", "75%", "20%", "left 70%"):
        assert expected in written
    assert ("hop 3" in written) == (maps == 3)
    path = write_figure(figure, tmp_path / "look.png")
    assert Image.open(path).width > 900
    assert [file.name for file in tmp_path.iterdir()] == ["look.png"]


def test_questions_stand_side_by_side():
    looks = [look_at(), look_at(maps=1)]
    figure = questions_figure(looks)
    pictures = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert [
        (picture == np.asarray(look.overlay(caption=False))).all()
        for picture, look in zip(pictures, looks, strict=True)
    ] == [True, True]
    assert (pictures[0] != pictures[1]).any()
    assert all("red (75%)" in axis.get_title() and QUESTIONS[0] in axis.get_title() for axis in figure.axes)


def test_hops_as_strip_and_frames():
    look = look_at()
    overlay = look.overlay(0)
    assert hop_strip(look).size == (3 * 120 + 2 * 8, overlay.height)
    frames = hop_frames(look)
    assert [frame.size for frame in frames] == [overlay.size] * 3
    assert frames[0].crop((0, 0, 120, 60)).tobytes() == look.image.tobytes()
    assert frames[2].tobytes() == look.overlay(1).tobytes()


def test_faithfulness_curves_are_drawn_with_their_area():
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
def test_an_explanation_becomes_files(tmp_path, method, fields):
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


def test_what_cannot_be_read_writes_nothing(tmp_path):
    save_tiny_model(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="Cannot read the image"):
        explain_to_files(str(tmp_path / "checkpoint"), "nowhere.png", QUESTIONS, tmp_path / "looks")
    assert not (tmp_path / "looks").exists()
