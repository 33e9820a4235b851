"""`objects.jsonl`: written, read back, and refused where a line is wrong."""

import json

import numpy as np
import pytest

from modeling_qca.training.supervision.marked_objects import MarkedObject, read_objects, write_objects
from modeling_qca.training.supervision.regions import Box, Mask, Polygon

OBJECTS = [
    MarkedObject("a.jpg", "bed", Box(1, 2, 3.5, 4)),
    MarkedObject("a.jpg", "lamp", Polygon((((0, 0), (2, 0), (2, 2)),)), annotator="eva"),
    MarkedObject("b.jpg", "ring", Polygon((((0, 0), (9, 0), (9, 9)), ((1, 1), (2, 1), (2, 2)))), hop=2),
    MarkedObject("b.jpg", "", Mask.from_array(np.eye(3, dtype=bool)), question_id="7"),
]


def test_objects_survive_writing(tmp_path):
    write_objects(tmp_path / "objects.jsonl", OBJECTS)
    assert list(read_objects(tmp_path / "objects.jsonl")) == OBJECTS


def test_line_has_the_documented_keys(tmp_path):
    write_objects(tmp_path / "objects.jsonl", OBJECTS[:1])
    assert json.loads((tmp_path / "objects.jsonl").read_text()) == {
        "image": "a.jpg",
        "label": "bed",
        "box": [1, 2, 3.5, 4],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not a line of JSON"),
        ("[1]", r"line 2: an object is \{image, label, box or polygon or mask\}"),
        ('{"label": "bed", "box": [0, 0, 1, 1]}', "line 2: an object is"),
        ('{"image": "a.jpg", "label": "bed"}', "line 2: an object has one of box, polygon, mask, not none"),
        ('{"image": "a.jpg", "box": [0, 0, 1, 1], "polygon": []}', "not box and polygon"),
        ('{"image": "a.jpg", "box": [5, 0, 1, 1]}', "line 2: not a box: .* .right must be greater than left"),
        ('{"image": "a.jpg", "box": [0, 0, 1]}', "line 2: not a box"),
        ('{"image": "a.jpg", "box": [0, 0, 1, NaN]}', "nan is not a number"),
        ('{"image": "a.jpg", "polygon": [[0, 0], [1, 1]]}', "an outline has three points or more"),
        ('{"image": "a.jpg", "mask": {"size": [2, 2], "counts": [1, 1]}}', "`counts` must sum to the pixels"),
        ('{"image": "a.jpg", "mask": {"size": [2, 2], "counts": "ab"}}', "compressed `counts`"),
        ('{"image": "a.jpg", "box": [0, 0, 1, 1], "hop": 0}', "`hop` is a number from 1, not 0"),
    ],
)
def test_refuses_a_wrong_line(tmp_path, line, message):
    path = tmp_path / "objects.jsonl"
    path.write_text('{"image": "a.jpg", "label": "bed", "box": [0, 0, 1, 1]}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        list(read_objects(path))
