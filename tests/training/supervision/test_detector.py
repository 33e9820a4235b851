"""Objects from zero-shot detection models with random weights."""

import json

import pytest
import torch
from helpers.detectors import save_grounding_dino, save_owlv2
from helpers.tiny import save_tiny_model, tiny_image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from modeling_qca.training.supervision.detection.detector import Detector, detect_objects
from modeling_qca.training.supervision.regions import Box

PICTURE = tiny_image(size=(48, 32))
QUESTIONS = [("a", "is the red cube left of the ball"), ("b", "where is the ring"), ("a", "is there a cube")]


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    return save_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory):
    return save_grounding_dino(tmp_path_factory.mktemp("dino"))


class CountingDetector(Detector):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked = []

    def find(self, picture, phrases):
        self.asked.append(list(phrases))
        return super().find(picture, phrases)


def test_owlv2_boxes_are_those_of_its_outputs_in_pixels_of_the_picture(owlv2):
    phrases = ["red cube", "ball"]
    found = Detector(str(owlv2), 0.5).find(PICTURE, phrases)
    model, processor = AutoModelForZeroShotObjectDetection.from_pretrained(owlv2), AutoProcessor.from_pretrained(owlv2)
    with torch.no_grad():
        outputs = model(**processor(images=PICTURE, text=phrases, return_tensors="pt"))
    expected = []
    for logits, (x, y, width, height) in zip(outputs.logits[0].sigmoid(), outputs.pred_boxes[0] * 48, strict=True):
        edges = [float(edge) for edge in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]
        cut = Box(max(0, edges[0]), max(0, edges[1]), min(48, edges[2]), min(32, edges[3]))  # padded to 48 x 48
        if logits.max() > 0.5 and cut.left < cut.right and cut.top < cut.bottom:
            expected.append((phrases[logits.argmax()], float(logits.max()), cut))
    assert len(expected) > 3
    for (phrase, score, box), (wanted, probability, cut) in zip(
        found, sorted(expected, key=lambda one: -one[1]), strict=True
    ):
        assert (phrase, score) == (wanted, pytest.approx(probability))
        assert [box.left, box.top, box.right, box.bottom] == pytest.approx(
            [cut.left, cut.top, cut.right, cut.bottom], abs=1e-3
        )


def test_grounding_dino_names_the_phrase_it_was_asked_for(grounding_dino):
    found = Detector(str(grounding_dino), 0.3).find(PICTURE, ["red cube", "ball"])
    assert {detection.phrase for detection in found} == {"red cube", "ball"}
    for _, score, box in found:
        assert 0.3 < score <= 1
        assert 0 <= box.left < box.right <= 48 and 0 <= box.top < box.bottom <= 32
    alone = Detector(str(grounding_dino), 0.3).find(PICTURE, ["ball"])
    assert alone == [detection for detection in found if detection.phrase == "ball"]


def test_each_picture_is_searched_once_for_all_its_phrases(owlv2, tmp_path):
    detector = CountingDetector(str(owlv2), 0.5)
    found = detect_objects(QUESTIONS, lambda _: PICTURE, detector, tmp_path / "boxes.jsonl")
    assert detector.asked == [["red cube", "ball", "cube"], ["ring"]]
    assert {item.image for item in found} == {"a", "b"}
    assert all(item.label in ("red cube", "ball", "cube", "ring") for item in found)


def test_stopped_search_goes_on_and_gives_the_same_objects(owlv2, tmp_path):
    whole = detect_objects(QUESTIONS, lambda _: PICTURE, Detector(str(owlv2), 0.5), tmp_path / "whole.jsonl")

    def read(image):
        if image == "b":
            raise KeyboardInterrupt
        return PICTURE

    file = tmp_path / "boxes.jsonl"
    with pytest.raises(KeyboardInterrupt):
        detect_objects(QUESTIONS, read, Detector(str(owlv2), 0.5), file)
    with open(file, "a") as lines:
        lines.write('{"image": "b", "bo')  # cut by the interruption
    detector = CountingDetector(str(owlv2), 0.5)
    assert detect_objects(QUESTIONS, lambda _: PICTURE, detector, file) == whole
    assert detector.asked == [["ring"]]
    assert detect_objects(QUESTIONS, lambda _: PICTURE, detector, file) == whole
    assert detector.asked == [["ring"]]


def test_new_questions_search_for_new_phrases_only(owlv2, tmp_path):
    detector, file = CountingDetector(str(owlv2), 0.5), tmp_path / "boxes.jsonl"
    detect_objects(QUESTIONS, lambda _: PICTURE, detector, file)
    detect_objects([*QUESTIONS, ("b", "is the ring below the ball")], lambda _: PICTURE, detector, file)
    assert detector.asked[2:] == [["ball"]]


def test_other_threshold_begins_anew(owlv2, tmp_path):
    file = tmp_path / "boxes.jsonl"
    few = detect_objects(QUESTIONS, lambda _: PICTURE, Detector(str(owlv2), 0.7), file)
    many = detect_objects(QUESTIONS, lambda _: PICTURE, Detector(str(owlv2), 0.2), file)
    assert len(few) < len(many)
    assert json.loads(file.read_text().splitlines()[0])["threshold"] == 0.2


@pytest.mark.parametrize("threshold", [-0.1, 1])
def test_refuses_a_threshold_outside_0_to_1(owlv2, threshold):
    with pytest.raises(ValueError, match="0 or more and less than 1"):
        Detector(str(owlv2), threshold)


def test_refuses_another_kind_of_model(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(ValueError, match="no model for zero-shot object detection there"):
        Detector(str(tmp_path), 0.1)
