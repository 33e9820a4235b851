"""Each annotation format in its official form: maps as computed by hand, and one message for a wrong file."""

import json

import numpy as np
import pytest
from helpers.data_files import draw, write_csv, write_json
from helpers.marked_pictures import cells, make_maps, marked_folder
from PIL import Image
from pycocotools import mask as coco_mask

from modeling_qca.training.data.relevance_maps import read_maps

LAMP = cells(row0="0 .5 1", row1="0 .25 .5")  # from (15, 0) to (30, 15)
BED = cells(row2="0 0 0 0 1 1 1", row3="0 0 0 0 1 1 1")  # from (40, 20) to (70, 40)
PHONE_LAMP = cells(row0="1 1 1 1")  # the upper left 20 x 20 pixels of the upright photo


@pytest.fixture
def folder(tmp_path):
    return marked_folder(tmp_path / "rooms")


def check_rooms(maps):
    """The first question looks at the lamp and then at the bed, the second at the bed; none is about a cup."""
    assert sorted(maps) == [0, 1]
    assert maps[0] == pytest.approx(np.stack([LAMP, BED]), abs=1e-3)
    assert maps[1] == pytest.approx(np.stack([BED, BED]), abs=1e-3)


# COCO


def coco(*annotations, images=None, categories=("lamp", "bed")):
    return {
        "images": images or [{"id": 7, "file_name": "room.png", "width": 80, "height": 40}],
        "categories": [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(categories, start=1)],
        "annotations": [
            {"id": n, "image_id": 7, "iscrowd": 0, "area": 1, **entry} for n, entry in enumerate(annotations, start=1)
        ],
    }


BOXES = ({"category_id": 1, "bbox": [15, 0, 15, 15]}, {"category_id": 2, "bbox": [40, 20, 30, 20]})


def test_coco_boxes(folder):
    write_json(folder / "coco.json", coco(*BOXES))
    check_rooms(make_maps(folder, "coco", folder / "coco.json"))


def test_coco_polygons_of_several_parts(folder):
    left, right = [40, 20, 55, 20, 55, 40, 40, 40], [50, 20, 70, 20, 70, 40, 50, 40]
    lamp = {"category_id": 1, "bbox": [0, 0, 80, 40], "segmentation": [[15, 0, 30, 0, 30, 15, 15, 15]]}
    bed = {"category_id": 2, "bbox": [0, 0, 80, 40], "segmentation": [left, right]}
    write_json(folder / "coco.json", coco(lamp, bed))
    check_rooms(make_maps(folder, "coco", folder / "coco.json"))


@pytest.mark.parametrize("compressed", [False, True])
def test_coco_run_length_masks(folder, compressed):
    def encoded(left, top, right, bottom):
        pixels = np.zeros((40, 80), dtype=np.uint8, order="F")
        pixels[top:bottom, left:right] = 1
        if compressed:
            runs = coco_mask.encode(pixels)
            return {"size": runs["size"], "counts": runs["counts"].decode()}
        flat = pixels.ravel(order="F")
        edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
        return {"size": [40, 80], "counts": ([0] if flat[0] else []) + np.diff(edges).tolist()}

    lamp, bed = (
        {"category_id": number, "bbox": [0, 0, 1, 1], "iscrowd": 1, "segmentation": encoded(*box)}
        for number, box in ((1, (15, 0, 30, 15)), (2, (40, 20, 70, 40)))
    )
    write_json(folder / "coco.json", coco(lamp, bed))
    check_rooms(make_maps(folder, "coco", folder / "coco.json"))


def test_rotation_in_the_attributes_of_cvat_turns_a_coco_box_about_its_center(folder):
    lamp = {"category_id": 1, "bbox": [10, 15, 40, 10], "segmentation": [], "attributes": {"rotation": 90.0}}
    write_json(folder / "coco.json", coco(lamp))
    maps = make_maps(folder, "coco", folder / "coco.json")
    upright = cells(row0="0 0 .5 .5", row1="0 0 .5 .5", row2="0 0 .5 .5", row3="0 0 .5 .5")  # 10 wide, 40 high
    assert maps[0][0] == pytest.approx(upright, abs=1e-3)


def test_attributes_of_coco_name_question_and_hop(folder):
    first = {**BOXES[0], "attributes": {"question_id": "train-2", "hop": 2}}
    second = {**BOXES[1], "attributes": {"question_id": "train-2", "hop": 1}}
    write_json(folder / "coco.json", coco(first, second))
    maps = make_maps(folder, "coco", folder / "coco.json")
    assert list(maps) == [2]
    assert maps[2] == pytest.approx(np.stack([BED, LAMP]), abs=1e-3)


def test_export_of_resized_pictures_is_scaled(folder):
    image = {"id": 7, "file_name": "room.png", "width": 160, "height": 80}
    boxes = [{**box, "bbox": [2 * number for number in box["bbox"]]} for box in BOXES]
    write_json(folder / "coco.json", coco(*boxes, images=[image]))
    check_rooms(make_maps(folder, "coco", folder / "coco.json"))


@pytest.mark.parametrize("beds", [1, 0], ids=["marked", "unmarked"])
def test_coco_picture_of_another_folder_is_left_out_if_the_export_has_the_right_one(folder, beds):
    draw(folder / "images" / "cam2" / "1.png", size=(80, 40))
    write_csv(folder / "train.csv", "image,question,answer", "cam2/1.png,a lamp and a bed,yes", "room.png,a bed,yes")
    names = ("cam1/1.png", "cam2/1.png", "room.png")
    images = [{"id": n, "file_name": name, "width": 80, "height": 40} for n, name in enumerate(names)]
    other, own = BOXES[0] | {"image_id": 0}, BOXES[1] | {"image_id": 1}
    write_json(folder / "coco.json", coco(other, BOXES[1] | {"image_id": 2}, *[own] * beds, images=images))
    maps = make_maps(folder, "coco", folder / "coco.json")
    assert sorted(maps) == ([0, 1] if beds else [1])
    assert all(drawn == pytest.approx(BED[None], abs=1e-3) for drawn in maps.values())
    assert "without a question here: 1, such as cam1/1.png" in (folder / "train_relevance.html").read_text()


# Pascal VOC

VOC = """<annotation>
  <folder>images</folder><filename>room.png</filename>
  <size><width>80</width><height>40</height><depth>3</depth></size>
  <object><name>lamp</name><pose>Unspecified</pose><difficult>0</difficult>
    <bndbox><xmin>16</xmin><ymin>1</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>
  <object><name>bed</name><bndbox><xmin>41</xmin><ymin>21</ymin><xmax>70</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""


@pytest.mark.parametrize("as_folder", [False, True])
def test_pascal_voc_counts_pixels_from_one(folder, as_folder):
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "room.xml").write_text(VOC)
    path = folder / "Annotations" if as_folder else folder / "Annotations" / "room.xml"
    check_rooms(make_maps(folder, "voc", path))


@pytest.mark.parametrize(
    ("degrees", "rows"),
    [("0.0", {"row1": "0 1 1 1 1", "row2": "0 1 1 1 1"}), ("90.0", {f"row{n}": "0 0 1 1" for n in range(4)})],
)
def test_rotation_in_the_attributes_of_cvat_turns_a_pascal_voc_box_about_its_center(folder, degrees, rows):
    attributes = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    box = "<xmin>11</xmin><ymin>11</ymin><xmax>50</xmax><ymax>30</ymax>"
    (folder / "room.xml").write_text(
        "<annotation><filename>room.png</filename>"
        f"<object><name>lamp</name><bndbox>{box}</bndbox>{attributes}</object></annotation>"
    )
    assert make_maps(folder, "voc", folder / "room.xml")[0][0] == pytest.approx(cells(**rows), abs=1e-3)


# YOLO


@pytest.mark.parametrize(
    "lines",
    [
        ["0 0.28125 0.1875 0.1875 0.375", "1 0.6875 0.75 0.375 0.5"],
        ["0 0.28125 0.1875 0.1875 0.375 0.9", "1 0.6875 0.75 0.375 0.5 0.8"],
        ["0 0.1875 0 0.375 0 0.375 0.375 0.1875 0.375", "1 0.5 0.5 0.875 0.5 0.875 1 0.5 1"],
    ],
    ids=["boxes", "with confidence", "segments"],
)
@pytest.mark.parametrize("names", ["names: [lamp, bed]", "names:\n  0: lamp\n  1: bed"])
def test_yolo_labels(folder, lines, names):
    (folder / "yolo" / "labels" / "train").mkdir(parents=True)
    (folder / "yolo" / "train.txt").write_text("images/room.png\n")
    (folder / "yolo" / "data.yaml").write_text(f"path: .\ntrain: images/train\n{names}\n")
    (folder / "yolo" / "labels" / "train" / "room.txt").write_text("\n".join(lines) + "\n")
    check_rooms(make_maps(folder, "yolo", folder / "yolo"))


def test_yolo_names_in_classes_txt(folder):
    (folder / "yolo").mkdir()
    (folder / "yolo" / "classes.txt").write_text("lamp\nbed\n")
    (folder / "yolo" / "room.txt").write_text("0 0.28125 0.1875 0.1875 0.375\n1 0.6875 0.75 0.375 0.5\n")
    check_rooms(make_maps(folder, "yolo", folder / "yolo"))


@pytest.mark.parametrize("layout", ["labels/{}/room.txt", "{}/labels/room.txt"])
def test_yolo_labels_of_two_pictures_with_one_name_are_refused(folder, layout):
    (folder / "classes.txt").write_text("lamp\n")
    for split in ("train", "val"):
        file = folder / "yolo" / layout.format(split)
        file.parent.mkdir(parents=True)
        file.write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(ValueError, match=r"'.*train.*room' and '.*val.*room' of the export both fit"):
        make_maps(folder, "yolo", folder / "yolo")


def test_yolo_folder_of_the_labels_chooses_the_picture(folder):
    for split in ("train", "val"):
        (folder / "yolo" / "labels" / split).mkdir(parents=True)
        draw(folder / "images" / split / "a.png", size=(80, 40))
    (folder / "yolo" / "classes.txt").write_text("lamp\nbed\n")
    (folder / "yolo" / "labels" / "train" / "a.txt").write_text("0 0.28125 0.1875 0.1875 0.375\n")
    (folder / "yolo" / "labels" / "val" / "a.txt").write_text("1 0.6875 0.75 0.375 0.5\n")
    write_csv(folder / "train.csv", "image,question,answer", "train/a.png,a lamp,yes", "val/a.png,a bed,yes")
    maps = make_maps(folder, "yolo", folder / "yolo")
    assert maps[0] == pytest.approx(LAMP[None], abs=1e-3)
    assert maps[1] == pytest.approx(BED[None], abs=1e-3)


@pytest.mark.parametrize(
    ("names", "line", "message"),
    [
        ("kpt_shape: [4, 2]\n", "0 .5 .5 .5 .5 .4 .4 .5 .5 .6 .6 .5 .6", "data.yaml: `kpt_shape` says"),
        ("", "0 .5 .5 .5 .5 .4 .4 2 .6 .6 1", "room.txt line 1: holds key points"),
    ],
)
def test_yolo_key_points_are_refused(folder, names, line, message):
    (folder / "yolo").mkdir()
    (folder / "yolo" / "data.yaml").write_text(f"names: [lamp]\n{names}")
    (folder / "yolo" / "room.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        make_maps(folder, "yolo", folder / "yolo")


# CVAT

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <meta><task><mode>annotation</mode><labels><label><name>lamp</name></label></labels></task></meta>
  <image id="0" name="images/room.png" width="80" height="40">
    {shapes}
  </image>
</annotations>"""
CVAT_BED = '<box label="bed" occluded="0" xtl="40" ytl="20" xbr="70" ybr="40" z_order="0"></box>'


@pytest.mark.parametrize(
    "lamp",
    [
        '<box label="lamp" source="manual" occluded="0" xtl="15.00" ytl="0.00" xbr="30.00" ybr="15.00" z_order="0"/>',
        '<box label="lamp" occluded="0" xtl="15" ytl="0" xbr="30" ybr="15" rotation="180.0" z_order="0"/>',
        '<polygon label="lamp" occluded="0" points="15.00,0.00;30.00,0.00;30.00,15.00;15.00,15.00" z_order="0"/>',
        f'<mask label="lamp" occluded="0" rle="1, {"15, 3, " * 14}15, 2" left="14" top="0" width="18" height="15"/>',
    ],
    ids=["box", "turned box", "polygon", "mask"],
)
def test_cvat_shapes(folder, lamp):
    (folder / "annotations.xml").write_text(CVAT.format(shapes=lamp + CVAT_BED))
    check_rooms(make_maps(folder, "cvat", folder / "annotations.xml"))


def test_cvat_rotation_turns_a_box_about_its_center(folder):
    box = '<box label="lamp" xtl="10" ytl="15" xbr="50" ybr="25" rotation="90.00"/>'
    (folder / "annotations.xml").write_text(CVAT.format(shapes=box))
    upright = cells(row0="0 0 .5 .5", row1="0 0 .5 .5", row2="0 0 .5 .5", row3="0 0 .5 .5")
    assert make_maps(folder, "cvat", folder)[0][0] == pytest.approx(upright, abs=1e-3)


def test_cvat_ellipse_covers_its_area(folder):
    shape = '<ellipse label="lamp" cx="40" cy="20" rx="20" ry="10" rotation="90"/>'
    (folder / "annotations.xml").write_text(CVAT.format(shapes=shape))
    drawn = make_maps(folder, "cvat", folder)[0][0]
    assert drawn.sum() * 100 == pytest.approx(np.pi * 200, rel=0.01)
    assert drawn[:, 3:5].sum() == pytest.approx(drawn.sum(), abs=1e-3)  # 20 wide and 40 high
    assert drawn[0, 3:5].sum() > 0.5


def test_cvat_attributes_name_question_and_hop_and_points_are_counted(folder):
    own = CVAT_BED.replace(
        "></box>", '><attribute name="question_id">train-2</attribute><attribute name="hop"></attribute></box>'
    )
    (folder / "annotations.xml").write_text(CVAT.format(shapes=own + '<points label="bed" points="1,1"/>'))
    maps = make_maps(folder, "cvat", folder)
    assert list(maps) == [2]
    assert maps[2][0] == pytest.approx(BED, abs=1e-3)
    assert "left out of the annotations: 1 shapes of the kind points" in (folder / "train_relevance.html").read_text()


# Masks


def write_mask(path, *boxes, value=255):
    pixels = np.zeros((40, 80), dtype=np.uint8)
    for left, top, right, bottom, *number in boxes:
        pixels[top:bottom, left:right] = number[0] if number else value
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_for_each_question_and_hop(folder, value):
    write_mask(folder / "masks" / "train-0_hop1.png", (15, 0, 30, 15), value=value)
    write_mask(folder / "masks" / "train-0_hop2.png", (40, 20, 70, 40), value=value)
    write_mask(folder / "masks" / "train-1.png", (40, 20, 70, 40), value=value)
    check_rooms(make_maps(folder, "masks", folder / "masks"))


def test_pictures_of_class_numbers(folder):
    write_mask(folder / "labels" / "room.png", (15, 0, 30, 15, 1), (40, 20, 70, 40, 2))
    (folder / "classes.txt").write_text("lamp\nbed\n")
    check_rooms(make_maps(folder, "masks", folder / "labels", classes=folder / "classes.txt"))


# Tables


def test_boxes_in_a_csv_with_labels(folder):
    lines = ("room.png,15,0,15,15,lamp", "room.png,40,20,30,20,Bed")
    write_csv(folder / "boxes.csv", "image,x,y,width,height,label", *lines)
    check_rooms(make_maps(folder, "csv", folder / "boxes.csv"))


def test_boxes_in_a_csv_with_questions_and_hops(folder):
    lines = ("room,40,20,30,20,2,train-0", "room,15,0,15,15,1,train-0", "room,40,20,30,20,,train-1")
    write_csv(folder / "boxes.csv", "Image,X,Y,Width,Height,hop,question id", *lines)
    check_rooms(make_maps(folder, "csv", folder / "boxes.csv"))


def test_box_without_label_serves_the_only_question_of_its_picture(folder):
    write_csv(folder / "boxes.csv", "image,x,y,width,height", "phone.jpg,0,0,20,20")
    assert make_maps(folder, "csv", folder / "boxes.csv")[3] == pytest.approx(PHONE_LAMP[None], abs=1e-3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[15, 0, 30, 15], [40, 20, 70, 40]], [[40, 20, 70, 40], [40, 20, 70, 40]]),
        ([[[15, 0, 30, 15]], [[40, 20, 60, 40], [50, 20, 70, 40]]], [[], [[40, 20, 70, 40]]]),
    ],
    ids=["a box for each hop", "boxes for each hop"],
)
def test_boxes_in_a_column_of_the_table(folder, first, second):
    rows = [
        {"image": "room.png", "question": "is it left of it", "answer": "yes", "boxes": first},
        {"image": "room.png", "question": "what is on it", "answer": "cat", "boxes": second},
        {"image": "room.png", "question": "what is it", "answer": "cat"},
    ]
    (folder / "train.csv").unlink()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    maps = make_maps(folder, "columns")
    assert maps[0] == pytest.approx(np.stack([LAMP, BED]), abs=1e-3)
    assert maps[1] == pytest.approx(np.stack([BED if second[0] else 0 * BED, BED]), abs=1e-3)
    assert sorted(maps) == [0, 1]


def test_boxes_as_json_in_a_column_of_a_csv(folder):
    write_csv(folder / "train.csv", "image,question,answer,where", 'room.png,what is it,cat,"[40, 20, 70, 40]"')
    assert make_maps(folder, "columns", column="where")[0] == pytest.approx(BED[None], abs=1e-3)


def two_tables_of_question_7(folder):
    header = "question_id,image,question,answer,boxes"
    write_csv(folder / "train.csv", header, '7,room.png,what is it,cat,"[15, 0, 30, 15]"')
    write_csv(folder / "validation.csv", header, '7,phone.jpg,who is it,me,"[0, 0, 20, 20]"')


def test_boxes_in_a_column_stay_with_the_image_of_their_row(folder):
    two_tables_of_question_7(folder)
    assert make_maps(folder, "columns")[0] == pytest.approx(LAMP[None], abs=1e-3)
    assert dict(read_maps(folder / "validation_relevance.npz"))[0] == pytest.approx(PHONE_LAMP[None], abs=1e-3)


def test_boxes_in_a_column_of_two_questions_with_one_id_and_one_image_are_refused(folder):
    rows = ('7,room.png,what is it,cat,"[15, 0, 30, 15]"', '7,room.png,who is it,cat,"[40, 20, 70, 40]"')
    write_csv(folder / "train.csv", "question_id,image,question,answer,boxes", *rows)
    with pytest.raises(ValueError, match="two questions have the id '7'"):
        make_maps(folder, "columns")


def test_mask_of_an_id_that_two_questions_have_is_refused(folder):
    two_tables_of_question_7(folder)
    write_mask(folder / "masks" / "7.png", (15, 0, 30, 15))
    with pytest.raises(ValueError, match=r"7.png: two questions have the id '7': .*train.csv.* and .*validation.csv"):
        make_maps(folder, "masks", folder / "masks")


def test_shares_of_the_sides_are_refused_where_pixels_are_expected(folder):
    objects = {"image": "room.png", "label": "lamp", "box": [0.1, 0.1, 0.5, 0.5]}
    (folder / "objects.jsonl").write_text(json.dumps(objects))
    boxes = {"category_id": 1, "bbox": [0.1, 0.1, 0.5, 0.5]}
    write_json(folder / "boxes.json", coco(boxes))
    write_json(folder / "polygons.json", coco({"category_id": 1, "segmentation": [[0.1, 0.1, 0.5, 0.5, 0.1, 0.5]]}))
    write_csv(folder / "train.csv", "image,question,answer,boxes", 'room.png,a lamp,yes,"[0.1, 0.1, 0.5, 0.5]"')
    for source, file in (("objects", None), ("coco", "boxes.json"), ("coco", "polygons.json"), ("columns", None)):
        with pytest.raises(ValueError, match="coordinates are pixels, not shares of the sides"):
            make_maps(folder, source, file and folder / file)
    write_json(folder / "boxes.json", coco(boxes, BOXES[1]))  # one of them is in pixels
    write_csv(folder / "train.csv", "image,question,answer", "room.png,a lamp,yes")
    make_maps(folder, "coco", folder / "boxes.json")


def test_marked_objects(folder):
    lines = (
        {"image": "room.png", "label": "lamp", "box": [15, 0, 30, 15]},
        {"image": "room", "label": "bed", "polygon": [[40, 20], [70, 20], [70, 40], [40, 40]]},
    )
    (folder / "objects.jsonl").write_text("\n".join(map(json.dumps, lines)))
    check_rooms(make_maps(folder, "objects"))


# Wrong files


@pytest.mark.parametrize(
    ("source", "name", "content", "message"),
    [
        ("coco", "a.json", "{", "a.json: not JSON"),
        ("coco", "a.json", "[]", "not COCO: it needs the lists `images`, `annotations` and `categories`"),
        (
            "coco",
            "a.json",
            json.dumps(coco({"category_id": 9, "bbox": [0, 0, 1, 1]})),
            "annotation 1: its image or category",
        ),
        ("coco", "a.json", json.dumps(coco({"category_id": 1, "bbox": [0, 0, 0, 1]})), "annotation 1: not a box"),
        ("coco", "a.json", json.dumps(coco({"category_id": 1, "bbox": [0, 0, 1]})), "annotation 1: `bbox` is"),
        ("coco", "a.json", json.dumps(coco({"category_id": 1, "segmentation": [[0, 0, 1]]})), "a polygon is"),
        (
            "coco",
            "a.json",
            json.dumps(coco({"category_id": 1, "segmentation": {"size": [4, 4], "counts": "~~"}})),
            "annotation 1: its mask",
        ),
        (
            "coco",
            "a.json",
            json.dumps(coco({"category_id": 1, "bbox": [60, 0, 60, 20]})),
            "annotation 1: the box .* leaves the picture",
        ),
        (
            "coco",
            "a.json",
            json.dumps(coco(BOXES[0], images=[{"id": 7, "file_name": "room.png", "width": 40, "height": 40}])),
            "40 x 40 pixels, but the picture room.png has 80 x 40",
        ),
        (
            "coco",
            "a.json",
            json.dumps(coco(BOXES[0], images=[{"id": 7, "file_name": "other.png"}])),
            "no question is about a picture of the annotations: they name other.png",
        ),
        (
            "coco",
            "a.json",
            json.dumps(coco(BOXES[0], categories=("chair", "sofa"))),
            "no question names a label .* The labels are chair",
        ),
        ("coco", "a.json", json.dumps(coco()), "holds no annotation"),
        ("coco", "a.zip", "PK", "ZIP archive; unpack it"),
        ("voc", "a.xml", "<annotation>", "a.xml: not XML that can be read"),
        (
            "voc",
            "a.xml",
            "<annotations/>",
            "not Pascal VOC: its root is <annotations>, not <annotation>; use --from cvat",
        ),
        ("voc", "a.xml", VOC.replace("<xmin>16", "<xmin>x"), "object 1: `bndbox/xmin` is a number, not 'x'"),
        ("voc", "a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "not XML that can be read"),
        ("yolo", "a.yaml", "names: 3", "`names` is a list of class names"),
        ("yolo", "room.txt", "0 1 1 1 1", "pass the folder of the YOLO labels, or its data.yaml"),
        ("label_studio", "a.json", "{}", "not an export of Label Studio"),
        ("cvat", "a.xml", "<annotation/>", "not CVAT for images"),
        ("cvat", "a.xml", '<annotations><track id="0"/></annotations>', 'is "CVAT for video"'),
        (
            "cvat",
            "a.xml",
            CVAT.format(shapes='<mask label="bed" rle="1,2" left="0" top="0" width="2" height="2"/>'),
            "`rle` must sum to 2 x 2",
        ),
        ("cvat", "a.xml", CVAT.format(shapes='<polygon label="bed" points="1,2;3"/>'), "shape 1: `points` is"),
        ("csv", "a.csv", "image,x,y,width\nroom.png,1,1,1\n", "no column 'height'"),
        (
            "csv",
            "a.csv",
            "image,x,y,width,height,label\nroom.png,1,1,one,1,bed\n",
            "row 2: `width` is a number, not 'one'",
        ),
        (
            "csv",
            "a.csv",
            "image,x,y,width,height,label\nroom.png,.1,.1,.5,.5,bed\n",
            "coordinates are pixels, not shares",
        ),
        (
            "csv",
            "a.csv",
            "image,x,y,width,height\nroom.png,1,1,9,9\n",
            "room.png: has 3 questions and an object without a label",
        ),
        (
            "csv",
            "a.csv",
            "image,x,y,width,height,question_id\nroom.png,1,1,9,9,train-9\n",
            "no question has the id 'train-9'",
        ),
        (
            "csv",
            "a.csv",
            "image,x,y,width,height,question_id\nphone.jpg,1,1,9,9,train-0\n",
            "the question train-0 is about room.png, and the mark is on phone.jpg",
        ),
        (
            "csv",
            "a.csv",
            "image,x,y,width,height,label,hop\nroom.png,1,1,9,9,bed,first\n",
            "the hop is a number from 1, not 'first'",
        ),
        ("objects", "a.jsonl", "[]", "a.jsonl line 1: an object is"),
        ("masks", "a.png", "", "no such folder of masks"),
    ],
)
def test_wrong_file_ends_in_one_message_and_writes_nothing(folder, source, name, content, message):
    (folder / name).write_text(content)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        make_maps(folder, source, folder / name)
    assert sorted(folder.rglob("*")) == before


def test_yolo_line_of_another_length_is_refused(folder):
    (folder / "yolo").mkdir()
    (folder / "yolo" / "classes.txt").write_text("lamp\n")
    for line, message in (
        ("0 0.1 0.1 0.1", "3 numbers after the class"),
        ("0 10 10 20 20", "shares of the sides, from 0 to 1"),
        ("0 0.1 0.1 0.1 x", "could not convert"),
        ("1 0.1 0.1 0.1 0.1", "room.txt line 1: class '1' is not in"),
    ):
        (folder / "yolo" / "room.txt").write_text(line)
        with pytest.raises(ValueError, match=message):
            make_maps(folder, "yolo", folder / "yolo")


def test_mask_of_several_values_is_refused(folder):
    write_mask(folder / "masks" / "train-0.png", (15, 0, 30, 15, 1), (40, 20, 70, 40, 2))
    with pytest.raises(ValueError, match=r"has 3 values from 0 to 2; .* For pictures of class numbers pass --classes"):
        make_maps(folder, "masks", folder / "masks")
    write_mask(folder / "masks" / "train-0.png")
    with pytest.raises(ValueError, match="the mask chooses no pixel"):
        make_maps(folder, "masks", folder / "masks")


def test_missing_annotations_are_refused(folder):
    for source, path, message in (
        ("coco", None, "--from coco needs --annotations"),
        ("coco", folder / "gone.json", "no such file or folder of annotations"),
        ("columns", None, "no table has a column 'boxes'"),
        ("columns", folder / "a.csv", "--from columns reads the table itself and takes no --annotations"),
        ("detector", folder / "a.csv", "--from detector reads the table itself and takes no --annotations"),
        ("objects", None, "objects.jsonl: cannot be read"),
        ("kitti", None, "--from is one of coco, voc"),
    ):
        with pytest.raises(ValueError, match=message):
            make_maps(folder, source, path)
