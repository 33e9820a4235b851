"""Labels found in the words of questions."""

import unicodedata

import pytest

from modeling_qca.training.supervision.object_matching import LabelMatcher


def found(labels, question, **options):
    return [(words, set(labels)) for words, labels in LabelMatcher(labels, **options).mentions(question)]


@pytest.mark.parametrize(
    ("label", "question"),
    [
        ("lamp", "how many lamps are there"),
        ("lamps", "is there a lamp"),
        ("shelf", "what is on the shelves?"),
        ("person", "are there people"),
        ("child", "how many children play"),
        ("Glass", "how many GLASSES are there"),
        ("TV", "what is below the tv's stand"),
        ("night_stand", "what is on the Night-Stands"),
        ("potted plant", "where are the potted plants"),
        ("scissors", "where are the scissors"),
    ],
)
def test_case_plural_and_separators_do_not_matter(label, question):
    assert [labels for _, labels in found([label], question)] == [{label}]


def test_part_of_a_word_names_nothing():
    assert found(["car", "bus"], "is the carpet on the cargo business") == []


def test_longest_label_wins():
    labels = ["table", "dining table", "lamp"]
    assert found(labels, "is the dining table below the lamp") == [
        ("dining table", {"dining table"}),
        ("lamp", {"lamp"}),
    ]


@pytest.mark.parametrize("photo", ["picture", "image", "photo"])
def test_photo_itself_is_no_label(photo):
    labels = ["picture", "image", "photo", "bed"]
    question = f"is there a bed in the left half of the {photo}"
    assert found(labels, question) == [("bed", {"bed"})]
    assert found(labels, f"is the {photo} above the bed in this {photo}") == [(photo, {photo}), ("bed", {"bed"})]
    assert found(labels, f"what is at the top-right of the {photo}") == []
    assert found(labels, f"is the bed to the left of the {photo}") == [("bed", {"bed"}), (photo, {photo})]


@pytest.mark.parametrize(
    ("label", "question"),
    [
        ("picture frame", "is there a cat in the picture frame"),
        ("picture frame", "what is on the left of the picture frame"),
        ("photo album", "what is in the photo album"),
    ],
)
def test_label_that_begins_with_a_word_for_the_photo_is_named(label, question):
    assert found([label], question) == [(label, {label})]


def test_can_that_begins_a_question_is_no_object():
    labels = ["can", "can opener", "bottle"]
    assert found(labels, "Can you see the bottle?") == [("bottle", {"bottle"})]
    assert found(labels, "can you see the can") == [("can", {"can"})]
    assert found(labels, "can opener or bottle") == [("can opener", {"can opener"}), ("bottle", {"bottle"})]


def test_combining_marks_do_not_end_a_word():
    labels = ["कार", "मेज"]  # car and table
    assert found(labels, "क्या कुर्सी मेज के पास है") == [("मेज", {"मेज"})]  # is the chair near the table
    assert found(labels, "क्या कार मेज के पास है?") == [("कार", {"कार"}), ("मेज", {"मेज"})]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_letters_are_the_same(forms):
    label, question = map(unicodedata.normalize, forms, ["Stühle", "wo sind die Stühle"])
    assert found([label, "hle"], question) == [("stühle", {label})]


def test_order_of_first_mention_is_kept():
    labels = ["bed", "lamp"]
    assert [words for words, _ in found(labels, "is the lamp left of the bed or is the bed left of it")] == [
        "lamp",
        "bed",
    ]


def test_labels_that_differ_in_case_are_one_mention():
    assert found(["Lamp", "lamp"], "where is the lamp") == [("lamp", {"Lamp", "lamp"})]


def test_words_replace_a_label_or_leave_it_out():
    words = {"couch": ["couch", "sofa"], "picture": []}
    question = "are there sofas in the picture"
    assert found(["couch", "picture"], question, words=words) == [("sofas", {"couch"})]


def test_refuses_words_of_an_unknown_label():
    with pytest.raises(ValueError, match="no object has the label 'coach'; the labels are couch"):
        LabelMatcher(["couch"], {"coach": ["sofa"]})


@pytest.mark.parametrize("label", ["", "?!", "  "])
def test_label_without_words_matches_nothing(label):
    assert found([label, "lamp"], "where is the ?! lamp") == [("lamp", {"lamp"})]
