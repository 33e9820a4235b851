"""Label Studio exports: percents, rotation about the corner, brush masks, annotators, and what is left out."""

import copy
from itertools import pairwise

import numpy as np
import pytest
from helpers.data_files import write_json
from helpers.marked_pictures import cells, make_maps, marked_folder

from modeling_qca.training.supervision.annotations.label_studio import decode_brush, read_label_studio

BED = {"x": 50, "y": 50, "width": 37.5, "height": 50, "rotation": 0, "rectanglelabels": ["bed"]}
BED_MAP = cells(row2="0 0 0 0 1 1 1", row3="0 0 0 0 1 1 1")
WIDE_MAP = cells(row2="0 0 0 0 1 1 1 1", row3="0 0 0 0 1 1 1 1")


@pytest.fixture
def folder(tmp_path):
    return marked_folder(tmp_path / "rooms")


def region(value, kind="rectanglelabels", **further):
    size = {"original_width": 80, "original_height": 40, "image_rotation": 0}
    return {"id": "r1", "type": kind, "from_name": "label", "to_name": "image", "value": value, **size, **further}


def task(*regions, number=1, image="/data/upload/3/0a1b2c3d-room.png", **annotation):
    submitted = {"id": 10 * number, "completed_by": 1, "was_cancelled": False, "result": list(regions)} | annotation
    return {"id": number, "data": {"image": image}, "annotations": [submitted], "predictions": []}


def maps_of(folder, *tasks):
    write_json(folder / "export.json", list(tasks))
    return make_maps(folder, "label_studio", folder / "export.json")


def page(folder):
    return (folder / "train_relevance.html").read_text()


def test_percents_and_upload_prefix(folder):
    assert maps_of(folder, task(region(BED)))[1] == pytest.approx(np.stack([BED_MAP, BED_MAP])[:1], abs=1e-3)


@pytest.mark.parametrize(
    "image",
    ["room.png", "s3://bucket/rooms/room.png", "/data/local-files/?d=photos/room.png", "http://x/y/room.png?token=1"],
)
def test_image_is_found_by_its_name_in_paths_and_urls(folder, image):
    assert 1 in maps_of(folder, task(region(BED), image=image))


def test_rotation_is_clockwise_about_the_upper_left_corner(folder):
    """40 x 10 pixels at (50, 0), turned by 90 degrees: from (40, 0) to (50, 40)."""
    turned = {"x": 62.5, "y": 0, "width": 50, "height": 25, "rotation": 90, "rectanglelabels": ["bed"]}
    expected = cells(**{f"row{row}": "0 0 0 0 1" for row in range(4)})
    assert maps_of(folder, task(region(turned)))[1][0] == pytest.approx(expected, abs=1e-3)


def test_rotation_in_percents_keeps_angles_of_the_picture(folder):
    """A square turned by 45 degrees stays a square, although the sides of the picture differ."""
    corner = {"x": 50, "y": 0, "width": 25, "height": 50, "rotation": 45, "rectanglelabels": ["bed"]}
    drawn = maps_of(folder, task(region(corner)))[1][0]
    assert drawn.sum() * 100 == pytest.approx(400, rel=0.01)
    assert drawn == pytest.approx(drawn[:, ::-1], abs=1e-2)  # its diagonal is upright, at x = 40


def test_polygons_and_ellipses(folder):
    polygon = {"points": [[50, 50], [87.5, 50], [87.5, 100], [50, 100]], "polygonlabels": ["bed"]}
    assert maps_of(folder, task(region(polygon, "polygonlabels")))[1][0] == pytest.approx(BED_MAP, abs=1e-3)
    (folder / "train_relevance.npz").unlink()
    ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0, "ellipselabels": ["bed"]}
    drawn = maps_of(folder, task(region(ellipse, "ellipselabels")))[1][0]
    assert drawn.sum() * 100 == pytest.approx(np.pi * 20 * 10, rel=0.01)


def encode_brush(values):
    """@thi.ng/rle-pack: runs of equal bytes, and bytes as they are, with lengths of 3, 4, 8 and 16 bits."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    borders = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, end in pairwise(borders):
        while start < end:
            length = min(end - start, 2**16)
            size = next(index for index, width in enumerate((3, 4, 8, 16)) if length <= 2**width)
            bits += f"1{size:02b}{length - 1:0{(3, 4, 8, 16)[size]}b}{values[start]:08b}"
            start += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[index : index + 8], 2) for index in range(0, len(bits), 8)]


def test_brush_masks(folder):
    pixels = np.zeros((40, 80, 4), dtype=np.uint8)
    pixels[20:, 40:70] = (255, 0, 0, 255)
    value = {"format": "rle", "rle": encode_brush(pixels.ravel().astype(int)), "brushlabels": ["bed"]}
    assert maps_of(folder, task(region(value, "brushlabels")))[1][0] == pytest.approx(BED_MAP, abs=1e-3)


def test_brush_bytes_that_are_no_runs_are_read():
    values = np.arange(5)
    bits = f"{5:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + "000100"  # not a run, 5 bytes
    bits += "".join(f"{value:08b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    encoded = np.array([int(bits[index : index + 8], 2) for index in range(0, len(bits), 8)], dtype=np.uint8)
    assert decode_brush(encoded).tolist() == values.tolist()


def test_annotators_are_averaged(folder):
    both = task(region(BED))
    second = {"id": 11, "completed_by": {"id": 2, "email": "a@b.c"}, "was_cancelled": False}
    both["annotations"].append(second | {"result": [region(BED | {"width": 50})]})
    assert maps_of(folder, both)[1][0] == pytest.approx((BED_MAP + WIDE_MAP) / 2, abs=1e-3)


def test_cancelled_and_empty_annotations_and_predictions_are_left_out_and_counted(folder):
    cancelled = task(region(BED | {"x": 0}), was_cancelled=True)
    empty = task(number=2) | {"predictions": [{"result": [region(BED | {"x": 0})]}]}
    unseen = task(number=3) | {"annotations": []}
    drawn = maps_of(folder, cancelled, empty, unseen, task(region(BED), number=4))
    assert drawn[1][0] == pytest.approx(BED_MAP, abs=1e-3)
    assert "1 cancelled annotations, 3 tasks without a submitted annotation" in page(folder)


def test_json_min_is_read_alike(folder):
    flat = {**BED, "original_width": 80, "original_height": 40}
    entry = {"image": "/data/upload/0a1b2c3d-room.png", "id": 1, "label": [flat], "annotator": 1, "annotation_id": 1}
    assert maps_of(folder, entry, {"image": "room.png", "id": 2})[1][0] == pytest.approx(BED_MAP, abs=1e-3)


def test_label_of_a_tag_of_its_own_belongs_to_the_shape(folder):
    shape = {key: value for key, value in BED.items() if key != "rectanglelabels"}
    regions = (region(shape, "rectangle"), region(shape | {"labels": ["bed"]}, "labels"))
    relation = {"type": "relation", "from_id": "r1", "to_id": "r1", "direction": "right"}
    assert maps_of(folder, task(*regions, relation))[1][0] == pytest.approx(BED_MAP, abs=1e-3)


def test_question_id_of_a_task_names_its_question(folder):
    asked = task(region(BED | {"rectanglelabels": ["answer"]}))
    asked["data"]["question_id"] = "train-2"
    assert list(maps_of(folder, asked)) == [2]


def test_region_belongs_to_the_image_that_it_names(folder):
    two = task(region(BED), region(BED | {"x": 0, "width": 50}, id="r2", to_name="photo"))
    two["data"]["photo"] = "phone.jpg"
    write_json(folder / "export.json", [two])
    found = read_label_studio(folder / "export.json").annotations
    assert [annotation.image for annotation in found] == [two["data"]["image"], "phone.jpg"]


def test_key_points_are_left_out_and_counted(folder):
    point = region({"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["bed"]}, "keypointlabels", id="r2")
    maps_of(folder, task(region(BED), point))
    assert "1 regions of the kind keypointlabels" in page(folder)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task(region(BED, image_rotation=90))], "task 1: its picture is turned in Label Studio"),
        ([task(region(BED | {"height": 0}))], "a rectangle without width or height"),
        ([task(region({"points": [[1, 2]], "polygonlabels": ["bed"]}, "polygonlabels"))], "not a polygon"),
        ([task(region({"rle": [1, 2], "brushlabels": ["bed"]}, "brushlabels"))], "its brush mask cannot be decoded"),
        ([{"id": 4, "data": {"image": "room.png"}}], "task 4: has no list `annotations`"),
        ([task(region(BED)) | {"data": {"a": "a.png", "b": "b.png"}}], "has 2 image names"),
        (
            [task(region(BED, to_name="left")) | {"data": {"image": "a.png", "b": "b.png"}}],
            r"2 image names \(image, b\), and the `to_name` of a region is 'left'; keep one",
        ),
        ([{"id": 1, "image": "a.png", "b": "b.png", "label": [BED]}], "the `to_name` of a region is None; keep one"),
        ([task(region(BED)), task(region(BED), image="9f9f9f9f-room.png")], "both fit the picture"),
    ],
)
def test_refuses_a_malformed_export(folder, tasks, message):
    with pytest.raises(ValueError, match=message):
        maps_of(folder, *tasks)
    assert not (folder / "train_relevance.npz").exists()


def test_email_of_an_annotator_is_not_kept(tmp_path):
    who = {"id": 2, "email": "a@b.c"}
    write_json(tmp_path / "export.json", [task(region(BED), completed_by=who)])
    (annotation,) = read_label_studio(tmp_path / "export.json").annotations
    assert annotation.annotator == "2"


def places(value, path=()):
    """The paths to all values inside lists and dicts."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("junk", [None, "", -1, "x", [], {}, [1], True, float("inf")], ids=repr)
def test_any_value_replaced_is_read_or_refused_with_one_message(tmp_path, junk):
    polygon = region({"points": [[1, 2], [3, 4], [5, 0]], "polygonlabels": ["bed"]}, "polygonlabels", id="r2")
    export = [task(region(BED), polygon), {"image": "room.png", "label": [BED | {"original_width": 80}], "id": 2}]
    for path in places(export):
        changed = copy.deepcopy(export)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = junk
        write_json(tmp_path / "export.json", changed)
        try:
            read_label_studio(tmp_path / "export.json")
        except ValueError as refused:
            assert "export.json" in str(refused)
