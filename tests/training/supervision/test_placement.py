"""Photos that EXIF turns, and the names that exports give to pictures.

phone.jpg is upright 40 x 80 pixels and stored as 80 x 40. Its lamp is at the upper left of the upright photo, 20 x 20
pixels. In the stored photo it is at the lower left.
"""

import json

import numpy as np
import pytest
from helpers.data_files import write_csv, write_json
from helpers.marked_pictures import cells, make_maps, marked_folder

from modeling_qca.training.supervision.annotations.pictures import PictureNames

LAMP = cells(row0="1 1 1 1")
UPRIGHT, STORED = [0, 0, 20, 20], [0, 20, 20, 20]  # x, y, width, height
LOW = [0, 60, 20, 20]  # of the upright photo; no stored photo is as high


@pytest.fixture
def folder(tmp_path):
    return marked_folder(tmp_path / "rooms")


def lamp_map(folder, *boxes, size=None, **options):
    stated = dict(zip(("width", "height"), size, strict=True)) if size else {}
    content = {
        "images": [{"id": 1, "file_name": "phone.jpg", **stated}],
        "categories": [{"id": 1, "name": "lamp"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
    }
    write_json(folder / "coco.json", content)
    return make_maps(folder, "coco", folder / "coco.json", **options)[3][0]


def test_size_of_the_upright_photo_means_upright_coordinates(folder):
    assert lamp_map(folder, UPRIGHT, size=(40, 80)) == pytest.approx(LAMP, abs=1e-3)


def test_without_a_size_coordinates_are_upright(folder):
    assert lamp_map(folder, UPRIGHT) == pytest.approx(LAMP, abs=1e-3)
    assert (
        "photos that EXIF turns: 1 (sideways: 1); coordinates were read as those of the upright photos"
        in (folder / "train_relevance.html").read_text()
    )


def test_swapped_size_with_coordinates_that_only_the_upright_photo_has(folder):
    """Label Studio's export to COCO marks the upright photo and states the size of the stored one."""
    expected = LAMP + cells(row3="1 1 1 1")
    assert lamp_map(folder, UPRIGHT, LOW, size=(80, 40)) == pytest.approx(expected, abs=1e-3)


def test_size_of_the_stored_photo_with_coordinates_that_only_it_has(folder):
    wide = [60, 0, 20, 20]
    expected = LAMP + cells(row3="0 0 0 0 1 1 1 1")
    assert lamp_map(folder, STORED, wide, size=(80, 40)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("orientation", "box"), [("upright", UPRIGHT), ("stored", STORED)])
def test_orientation_decides_where_nothing_tells(folder, orientation, box):
    with pytest.raises(ValueError, match=r"annotation 0: the photo phone.jpg is stored on its side.*--orientation"):
        lamp_map(folder, box, size=(80, 40))
    assert not (folder / "train_relevance.npz").exists()
    assert lamp_map(folder, box, size=(80, 40), orientation=orientation) == pytest.approx(LAMP, abs=1e-3)


def test_photos_that_disagree_are_refused(folder):
    with pytest.raises(ValueError, match="the export has 1 marks on upright photos and 1 on photos as they are"):
        lamp_map(folder, LOW, [60, 0, 20, 20], size=(80, 40))


def test_shares_of_the_sides_are_of_the_upright_photo(folder):
    (folder / "yolo").mkdir()
    (folder / "yolo" / "classes.txt").write_text("lamp\n")
    (folder / "yolo" / "phone.txt").write_text("0 0.25 0.125 0.5 0.25\n")
    assert make_maps(folder, "yolo", folder / "yolo")[3][0] == pytest.approx(LAMP, abs=1e-3)


def test_label_studio_export_with_swapped_sides_needs_the_orientation(folder):
    """`original_width` and `original_height` are those of the stored photo; percents are of the upright one."""
    value = {"x": 0, "y": 0, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["lamp"]}
    region = {"type": "rectanglelabels", "value": value, "original_width": 80, "original_height": 40}
    tasks = [{"id": 1, "data": {"image": "phone.jpg"}, "annotations": [{"completed_by": 1, "result": [region]}]}]
    write_json(folder / "export.json", tasks)
    with pytest.raises(ValueError, match="Pass --orientation upright or stored"):
        make_maps(folder, "label_studio", folder / "export.json")
    maps = make_maps(folder, "label_studio", folder / "export.json", orientation="upright")
    assert maps[3][0] == pytest.approx(LAMP, abs=1e-3)


def test_mask_of_a_stored_photo_is_turned(folder):
    stored = np.zeros((40, 80), dtype=bool)
    stored[20:, :20] = True
    counts = np.diff([0, *(np.flatnonzero(np.diff(stored.T.ravel())) + 1).tolist(), stored.size]).tolist()
    content = {
        "images": [{"id": 1, "file_name": "phone.jpg", "width": 80, "height": 40}],
        "categories": [{"id": 1, "name": "lamp"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": {"size": [40, 80], "counts": counts}},
        ],
    }
    write_json(folder / "coco.json", content)
    maps = make_maps(folder, "coco", folder / "coco.json", orientation="stored")
    assert maps[3][0] == pytest.approx(LAMP, abs=1e-3)


def test_marked_objects_are_of_the_upright_photo(folder):
    line = {"image": "phone.jpg", "label": "lamp", "box": [0, 0, 20, 20]}
    (folder / "objects.jsonl").write_text(json.dumps(line))
    assert make_maps(folder, "objects", orientation="stored")[3][0] == pytest.approx(LAMP, abs=1e-3)


# Names

PATHS = ("/data/images/a.jpg", "/data/images/x/b.jpg", "/data/images/y/b.jpg", "/data/images/My photo.JPG")


@pytest.fixture
def names():
    return PictureNames({path: path.removeprefix("/data/images/") for path in PATHS})


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.jpg", PATHS[0]),
        ("a", PATHS[0]),
        ("a.png", PATHS[0]),
        ("elsewhere/a.jpg", PATHS[0]),
        ("x\\b.jpg", PATHS[1]),
        ("images/y/b.jpg", PATHS[2]),
        ("My%20photo.JPG", PATHS[3]),
        ("/data/upload/1/0f1e2d3c-a.jpg", PATHS[0]),
        ("/data/local-files/?d=y/b.jpg", PATHS[2]),
        ("a_jpg.rf.0123456789abcdef0123456789abcdef.jpg", PATHS[0]),
        ("c.jpg", None),
        ("", None),
    ],
)
def test_picture_is_found_by_path_name_or_stem(names, name, found):
    assert names.find([name]) == ({} if found is None else {name: found})


def test_name_that_fits_two_pictures_is_refused(names):
    with pytest.raises(ValueError, match=r"'b.jpg' of the export fits /data/images/x/b.jpg and /data/images/y/b.jpg"):
        names.find(["b.jpg"])


def test_two_uploads_that_fit_one_picture_are_refused(names):
    with pytest.raises(ValueError, match=r"both fit the picture /data/images/a.jpg"):
        names.find(["0f1e2d3c-a.jpg", "00000000-a.jpg"])


@pytest.mark.parametrize(
    ("first", "second"),
    [("cam1/a.jpg", "cam2/a.jpg"), ("a.png", "a.bmp"), ("train/a", "val/a"), ("a.jpg", "0f1e2d3c-a.jpg")],
)
def test_names_of_two_files_that_fit_one_picture_equally_well_are_refused(names, first, second):
    with pytest.raises(ValueError, match=r"both fit the picture /data/images/a.jpg; remove one") as refused:
        names.find(["a", first, second])
    assert repr(first) in str(refused.value) and repr(second) in str(refused.value)


@pytest.mark.parametrize(("better", "worse"), [("x/b.jpg", "z/b.jpg"), ("a.jpg", "a.png"), ("x/b", "c/b")])
def test_of_names_of_two_files_the_better_fit_counts(better, worse):
    names = PictureNames({path: path for path in PATHS[:2]})
    for given in ([worse, better], [better, worse]):
        assert list(names.find(given)) == [better]
    assert not names.find([worse], unmarked=[better]).keys() & {worse}


@pytest.mark.parametrize("name", ["a", "./a.jpg", "images/a.jpg", "http://x/images/a.jpg?token=1"])
def test_shorter_names_of_one_file_are_read(names, name):
    assert names.find(["a.jpg", name]) == {"a.jpg": PATHS[0], name: PATHS[0]}


def test_boxes_of_a_table_without_sizes_are_of_the_upright_photo(folder):
    write_csv(folder / "boxes.csv", "image,x,y,width,height,label", "phone.jpg,0,0,20,20,lamp")
    assert make_maps(folder, "csv", folder / "boxes.csv")[3][0] == pytest.approx(LAMP, abs=1e-3)
    write_csv(folder / "boxes.csv", "image,x,y,width,height,label", "phone.jpg,0,20,20,20,lamp")
    (folder / "train_relevance.npz").unlink()
    maps = make_maps(folder, "csv", folder / "boxes.csv", orientation="stored")
    assert maps[3][0] == pytest.approx(LAMP, abs=1e-3)
