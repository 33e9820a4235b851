"""From marked objects and a question to a map for each hop."""

import numpy as np
import pytest

from modeling_qca.training.supervision.marked_objects import MarkedObject
from modeling_qca.training.supervision.object_maps import draw_hop_maps, draw_objects, objects_by_hop
from modeling_qca.training.supervision.object_matching import LabelMatcher
from modeling_qca.training.supervision.regions import Box

SIZE, GRID = (40, 20), (2, 4)  # cells of 10 x 10 pixels
BED = MarkedObject("a.jpg", "bed", Box(0, 0, 10, 20))
LAMP = MarkedObject("a.jpg", "lamp", Box(20, 0, 30, 5))
LAMP_TOO = MarkedObject("a.jpg", "lamp", Box(30, 10, 40, 20))
MATCHER = LabelMatcher(["bed", "lamp", "chair"])


def hops(question, *objects, question_id="q"):
    return [(hop.words, list(hop.objects)) for hop in objects_by_hop(question, question_id, objects, MATCHER)]


def test_order_of_mention_is_the_order_of_hops():
    assert hops("is a lamp right of the bed", BED, LAMP, LAMP_TOO) == [("lamp", [LAMP, LAMP_TOO]), ("bed", [BED])]


def test_question_that_names_no_marked_object_has_no_hops():
    assert hops("is there a chair", BED) == hops("what is it", BED) == []


def test_named_object_that_the_picture_does_not_have_gives_an_empty_hop():
    assert hops("is the bed left of the chair", BED) == [("bed", [BED]), ("chair", [])]


def test_objects_of_a_question_serve_it_alone_in_their_hops():
    first = MarkedObject("a.jpg", "", Box(0, 0, 5, 5), question_id="q", hop=1)
    second = MarkedObject("a.jpg", "", Box(5, 5, 9, 9), question_id="q", hop=2)
    assert hops("where is the bed", second, first, BED) == [("", [first]), ("", [second])]
    assert hops("where is the bed", second, first, BED, question_id="other") == [("bed", [BED])]


def test_labeled_objects_of_a_question_without_hops_come_by_its_words():
    own = [MarkedObject("a.jpg", label, BED.region, question_id="q") for label in ("bed", "lamp")]
    assert hops("is the lamp above the bed", *own, LAMP_TOO) == [("lamp", [own[1]]), ("bed", [own[0]])]
    assert hops("what is it", *own, LAMP_TOO) == [("bed, lamp", own)]


def test_label_that_objects_of_the_question_leave_out_is_served_by_those_of_the_picture():
    own = MarkedObject("a.jpg", "lamp", LAMP.region, question_id="q")
    assert hops("is the lamp left of the bed", own, LAMP_TOO, BED) == [("lamp", [own]), ("bed", [BED])]
    assert hops("is the chair left of the bed", own, BED) == [("lamp", [own])]  # nothing says which hop it replaces


def test_stated_hop_overrides_the_order_of_mention():
    bed = MarkedObject("a.jpg", "bed", BED.region, hop=2)
    lamp = MarkedObject("a.jpg", "lamp", LAMP.region, hop=1)
    assert hops("is the bed below the lamp", bed, lamp) == [("lamp", [lamp]), ("bed", [bed])]


def test_maps_hold_the_shares_of_cells():
    maps = draw_hop_maps(
        objects_by_hop("is a lamp right of the bed", "q", [BED, LAMP, LAMP_TOO], MATCHER), SIZE, GRID, 2
    )
    assert maps == pytest.approx(
        np.array([[[0, 0, 0.5, 0], [0, 0, 0, 1]], [[1, 0, 0, 0], [1, 0, 0, 0]]], dtype=np.float32)
    )


def test_single_hop_is_repeated_and_further_hops_are_united():
    one = draw_hop_maps(objects_by_hop("where is the bed", "q", [BED], MATCHER), SIZE, GRID, 3)
    assert one.shape == (3, 2, 4)
    assert (one == one[0]).all() and one[0].sum() == pytest.approx(2)
    two = objects_by_hop("is a lamp right of the bed", "q", [BED, LAMP_TOO], MATCHER)
    assert draw_hop_maps(two, SIZE, GRID, 1)[0] == pytest.approx(np.array([[1, 0, 0, 0], [1, 0, 0, 1]]))


def test_overlapping_objects_count_once():
    other = MarkedObject("a.jpg", "bed", Box(5, 0, 15, 20))
    assert draw_objects((BED, other), SIZE, GRID) == pytest.approx(np.array([[1, 0.5, 0, 0]] * 2))


def test_annotators_are_averaged():
    wide = MarkedObject("a.jpg", "bed", Box(0, 0, 20, 20), annotator="two")
    assert draw_objects((BED, wide), SIZE, GRID) == pytest.approx(np.array([[1, 0.5, 0, 0]] * 2))


def test_large_pictures_give_the_same_map():
    big = MarkedObject("a.jpg", "bed", Box(0, 0, 1000, 1500))
    assert draw_objects((big,), (4000, 3000), GRID) == pytest.approx(np.array([[1, 0, 0, 0], [0, 0, 0, 0]]), abs=1e-3)
