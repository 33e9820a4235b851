"""The folder of annotations: a data set with marked objects, kept by several annotators."""

import json
import threading

import datasets
import numpy as np
import pytest
from helpers.data_files import draw, write_csv
from PIL import Image

from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.supervision.annotation_folder import AnnotationFolder
from modeling_qca.training.supervision.marked_objects import MarkedObject, read_objects
from modeling_qca.training.supervision.regions import Box

LINES = (
    "room,is the lamp left of the bed,yes",
    "room,where is the lamp,left",
    "room,how many beds are there,1",
    "hall,is there a lamp,no",
)
LAMP, BED = MarkedObject("room", "lamp", Box(0, 0, 20, 10)), MarkedObject("room", "bed", Box(20, 10, 40, 20))


def rows_of(data, **options):
    return load_rows(str(data), **options).cast_column("image", datasets.Image(decode=False))


@pytest.fixture
def data(tmp_path):
    for name in ("room", "hall"):
        draw(tmp_path / "data" / "images" / f"{name}.png", size=(40, 20))
    write_csv(tmp_path / "data" / "train.csv", "image_id,question,answer", *LINES)
    return tmp_path / "data"


@pytest.fixture
def folder(data):
    return AnnotationFolder(data.parent / "annotated", rows_of(data), hops=2)


def masks(folder):
    """Row number -> maps, read by numpy alone."""
    file = np.load(folder.folder / "train_relevance.npz")
    return dict(zip(file["row"].tolist(), file["mask"], strict=True))


def answers(folder):
    return [[answer["answer"] for answer in row] for row in load_rows(str(folder.folder))["answers"]]


def test_untouched_folder_is_the_same_data_set(folder, data):
    given, copied = rows_of(data), rows_of(folder.folder)
    for column in ("image_id", "question", "question_id", "question_type", "answers", "relevance"):
        assert copied[column][:] == given[column][:]
    paths = ([image["path"] for image in rows["image"]] for rows in (copied, given))
    assert [Image.open(path).tobytes() for path in next(paths)] == [Image.open(path).tobytes() for path in next(paths)]
    assert folder.counts == (4, 0, 0, 0)


def test_one_object_serves_every_question_that_names_it_in_the_hop_of_the_question(folder):
    assert folder.save(0, "eva", "yes", [LAMP]).with_maps == 2
    lamp = np.zeros((16, 16))
    lamp[:8, :8] = 1
    assert masks(folder).keys() == {0, 1}
    for maps in masks(folder).values():
        assert (maps == lamp).all()  # both hops
    assert folder.save(2, "eva", "1", [BED]).with_maps == 3
    assert (masks(folder)[0] == [lamp, lamp[::-1, ::-1]]).all()  # "is the lamp left of the bed"
    assert (masks(folder)[2] == lamp[::-1, ::-1]).all()
    assert load_rows(str(folder.folder))["relevance"][3] is None  # the lamp of the other picture


def test_object_that_the_question_does_not_name_serves_its_last_hop(folder):
    folder.save(0, "eva", "yes", [LAMP, BED])
    folder.save(1, "eva", "beside the window", [MarkedObject("room", "window", Box(0, 10, 20, 20))])
    window = np.zeros((16, 16))
    window[8:, :8] = 1
    assert (masks(folder)[1] == [window[::-1], window]).all()  # the lamp it names, then the window
    assert masks(folder).keys() == {0, 1, 2}


def test_unnamed_object_alone_leaves_the_hops_before_the_last_without_a_map(folder):
    folder.save(2, "eva", "1", [MarkedObject("room", "window", Box(0, 10, 20, 20))])
    window = np.zeros((16, 16))
    window[8:, :8] = 1
    assert (masks(folder)[2] == [np.zeros((16, 16)), window]).all()


def test_corrected_answer_is_in_the_table_and_an_equal_one_changes_nothing(folder):
    folder.save(1, "eva", "right")
    folder.save(2, "eva", "1")
    assert answers(folder) == [["yes"], ["right"], ["1"], ["no"]]
    assert folder.answer(1) == "right"
    assert folder.counts.saved == 2


@pytest.mark.parametrize(("most", "other"), [("right", "in the corner"), ("left", "right")])  # the table has "left"
def test_answers_of_several_annotators_are_votes_also_if_they_confirm(folder, most, other):
    for name, answer in (("eva", most), ("tom", other), ("ann", most)):
        folder.save(1, name, answer)
    assert load_rows(str(folder.folder))["answers"][1] == [
        {"answer": most, "count": 2},
        {"answer": other, "count": 1},
    ]
    assert folder.answer(1) == most


def test_wrong_object_is_removed_by_whomever(folder):
    folder.save(0, "eva", "yes", [LAMP])
    [marked] = folder.objects("room")
    folder.save(1, "tom", "left", removed=[marked])
    assert folder.objects("room") == []
    assert not (folder.folder / "train_relevance.npz").exists()


def test_new_given_objects_are_added_and_removed_ones_stay_removed(folder, data):
    def start(*given):
        return AnnotationFolder(folder.folder, rows_of(data), 2, given)

    assert start(LAMP).objects("room") == [LAMP]
    again = start(LAMP, BED)
    assert again.objects("room") == [LAMP, BED] and again.counts.with_maps == 3
    again.save(1, "eva", "left", [MarkedObject("room", "rug", LAMP.region)], removed=[LAMP])
    assert [item.label for item in start(LAMP, BED).objects("room")] == ["bed", "rug"]
    assert [item.label for item in start(BED).objects("room")] == ["bed", "rug"]
    assert [item.label for item in start(LAMP, BED).objects("room")] == ["bed", "rug"]


def test_folder_of_an_older_version_has_taken_over_what_is_given(folder, data):
    def start(*given):
        return AnnotationFolder(folder.folder, rows_of(data), 2, given)

    start(LAMP, BED).save(1, "eva", "left", removed=[LAMP])
    (folder.folder / "given_objects.jsonl").unlink()  # which older versions did not write
    assert start(LAMP, BED).objects("room") == [BED]
    rug = MarkedObject("room", "rug", LAMP.region)
    assert start(LAMP, BED, rug).objects("room") == [BED, rug]


@pytest.mark.parametrize("label", ["lamp", ""])
@pytest.mark.parametrize("hop", [None, 1])
def test_object_added_to_a_question_with_a_mark_of_its_own_serves_its_last_hop(data, label, hop):
    own = MarkedObject("room", label, LAMP.region, question_id="train-0", hop=hop)
    folder = AnnotationFolder(data.parent / "annotated", rows_of(data), 2, [own])
    folder.save(0, "eva", "yes", [BED])  # is the lamp left of the bed
    lamp = np.zeros((16, 16))
    lamp[:8, :8] = 1
    assert (masks(folder)[0] == [lamp, lamp[::-1, ::-1]]).all()
    assert masks(folder).keys() == {0, 2}  # the bed serves the other question too, the lamp does not
    folder.save(0, "eva", "yes", removed=[own])
    assert (masks(folder)[0][-1] == lamp[::-1, ::-1]).all()


def test_work_goes_on_where_it_stopped(folder, data):
    order = [2, 0, 1, 3]
    assert folder.open_next("eva", order) == 2
    folder.save(2, "eva", "2", [BED])
    assert folder.open_next("eva", order) == 0
    again = AnnotationFolder(folder.folder, rows_of(data), hops=2)
    assert again.open_next("eva", order) == 0
    assert again.counts == (4, 1, 2, 1)
    assert again.answer(2) == "2"


def test_skipped_question_comes_again_at_the_end(folder):
    order = [0, 1, 2, 3]
    seen = []
    for _ in order:
        seen.append(folder.open_next("eva", order))
        folder.skip(seen[-1], "eva")
    assert seen == order
    assert folder.open_next("eva", order) == 0
    for index in order:
        folder.save(index, "eva", "yes")
    assert folder.open_next("eva", order) is None


def test_two_annotators_get_different_questions(folder, data):
    other = AnnotationFolder(folder.folder, rows_of(data), hops=2)
    order = [0, 1, 2, 3]
    assert [folder.open_next("eva", order), other.open_next("tom", order)] == [0, 1]
    folder.save(0, "eva", "no")
    other.save(1, "tom", "right")
    assert [folder.open_next("eva", order), other.open_next("tom", order)] == [2, 3]
    assert answers(folder) == [["no"], ["right"], ["1"], ["no"]]


def test_question_that_somebody_left_open_comes_at_the_end(folder):
    assert folder.open_next("tom", [0]) == 0
    order = [0, 1, 2, 3]
    seen = []
    while (index := folder.open_next("eva", order)) is not None:
        seen.append(index)
        folder.save(index, "eva", "yes")
    assert seen == [1, 2, 3, 0]


def test_annotators_who_save_at_once_lose_nothing(folder, data):
    def work(name):
        own = AnnotationFolder(folder.folder, rows_of(data), hops=2)
        for number in range(5):
            own.save(1, name, f"{name}", [MarkedObject("room", "lamp", Box(number, 0, number + 1, 1))])

    threads = [threading.Thread(target=work, args=(name,)) for name in ("eva", "tom", "ann")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    objects = list(read_objects(folder.folder / "objects.jsonl"))
    assert sorted((item.annotator, item.region.left) for item in objects) == sorted(
        (name, float(number)) for name in ("eva", "tom", "ann") for number in range(5)
    )
    assert sorted(answers(folder)[1]) == ["ann", "eva", "tom"]


def test_given_maps_stay_until_an_object_replaces_them(data):
    given = np.zeros((2, 1, 4, 4))
    given[:, 0, 0, 0] = 1
    np.savez(data / "train_relevance.npz", mask=given, row=np.array([1, 3]))
    folder = AnnotationFolder(data.parent / "annotated", rows_of(data), hops=2)
    assert {row: maps.shape for row, maps in masks(folder).items()} == {1: (2, 4, 4), 3: (2, 4, 4)}
    folder.save(1, "eva", "left", [LAMP])
    assert masks(folder).keys() == {0, 1, 3}
    assert masks(folder)[1][0].sum() == 4 and masks(folder)[3][0].sum() == 1
    folder.save(1, "eva", "left", removed=folder.objects("room"))
    assert masks(folder).keys() == {1, 3} and masks(folder)[1][0].sum() == 1


def test_picture_without_a_file_is_written_beside_the_table(tmp_path):
    rows = [{"image": Image.new("RGB", (8, 4), "red"), "question": "where is the lamp", "answer": "left"}]
    folder = AnnotationFolder(tmp_path / "annotated", rows_of_memory(rows), hops=2)
    [row] = load_rows(str(folder.folder))
    assert row["image"].size == (8, 4) and row["image"].convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert (folder.folder / json.loads((folder.folder / "train.jsonl").read_text())["image"]).exists()


def rows_of_memory(rows):
    return load_rows(rows).cast_column("image", datasets.Image(decode=False))


def test_upright_picture_is_marked_where_exif_turns_it(tmp_path, data):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(data / "images" / "room.png", exif=exif)
    folder = AnnotationFolder(tmp_path / "annotated", rows_of(data), hops=2)
    assert folder.picture("room").size == (20, 40)
    folder.save(1, "eva", "left", [MarkedObject("room", "lamp", Box(0, 0, 20, 20))])
    assert masks(folder)[1][0].sum(axis=1).tolist() == [16] * 8 + [0] * 8


def test_refuses_annotations_of_another_data_set(folder, data, tmp_path):
    folder.save(1, "eva", "left", [LAMP])
    write_csv(data / "train.csv", "image_id,question,answer", LINES[1], LINES[0])
    with pytest.raises(ValueError, match=r"annotations of question train-1, 'where is the lamp' about room"):
        AnnotationFolder(folder.folder, rows_of(data), hops=2)


def test_added_questions_are_taken_over(folder, data):
    folder.save(1, "eva", "left", [LAMP])
    write_csv(data / "train.csv", "image_id,question,answer", *LINES, "room,what color is the lamp,red")
    assert AnnotationFolder(folder.folder, rows_of(data), hops=2).counts == (5, 1, 3, 1)


@pytest.mark.parametrize(
    ("answer", "label", "message"), [(" ", "lamp", "the right answer is empty"), ("left", " ", "has no name")]
)
def test_refuses_an_empty_answer_and_an_object_without_a_name(folder, answer, label, message):
    with pytest.raises(ValueError, match=message):
        folder.save(1, "eva", answer, [MarkedObject("room", label, LAMP.region)])
    assert folder.objects("room") == [] and answers(folder)[1] == ["left"]


def test_damaged_file_of_work_is_named(folder, data):
    (folder.folder / "annotators.json").write_text("[]")
    with pytest.raises(ValueError, match=r"annotators\.json: not the work of annotators"):
        AnnotationFolder(folder.folder, rows_of(data), hops=2)
