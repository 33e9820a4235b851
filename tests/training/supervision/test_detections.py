"""`qca add-relevance --from detector`: maps from the boxes of a detector with random weights."""

import numpy as np
import pytest
from helpers.data_files import write_csv
from helpers.detectors import save_owlv2
from helpers.tiny import tiny_image
from qca_cli.main import app
from typer.testing import CliRunner

from modeling_qca.image_qca import open_image
from modeling_qca.training.data.relevance_maps import cell_shares, read_maps
from modeling_qca.training.supervision.add_relevance import add_relevance
from modeling_qca.training.supervision.detection.detector import Detector


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    return save_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        picture = tmp_path / "data" / "images" / f"picture{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        tiny_image(seed=number, size=(80, 40)).save(picture)
    lines = ("picture0,is the cube left of the ball,yes", "picture1,where is the ring,left", "picture0,what is that,a")
    write_csv(tmp_path / "data" / "train.csv", "image_id,question,answer", *lines)
    return tmp_path / "data"


def test_maps_of_each_hop_are_the_boxes_of_its_phrase(owlv2, folder):
    options = ["--from", "detector", "--detector", str(owlv2), "--threshold", "0.7"]
    finished = CliRunner().invoke(app, ["add-relevance", str(folder), *options], catch_exceptions=False)
    assert finished.exit_code == 0
    maps = dict(read_maps(folder / "train_relevance.npz"))
    assert maps.keys() == {0, 1}
    found = Detector(str(owlv2), 0.7).find(open_image(folder / "images" / "picture0.png"), ["cube", "ball"])
    for hop, phrase in zip(maps[0], ("cube", "ball"), strict=True):
        covered = np.zeros((400, 800))  # ten times the pixels of the picture
        for detection in found:
            if detection.phrase == phrase:
                left, top, right, bottom = (round(10 * edge) for edge in vars(detection.box).values())
                covered[top:bottom, left:right] = 1
        assert covered.any() and not covered.all()
        assert np.abs(hop - cell_shares(covered, (16, 16))).mean() < 0.02


def test_second_call_reads_the_stored_boxes(owlv2, folder, monkeypatch):
    options = {"detector": str(owlv2), "threshold": 0.5, "splits": ["train"]}
    add_relevance(folder, "detector", **options)
    first = dict(read_maps(folder / "train_relevance.npz"))
    (folder / "train_relevance.npz").unlink()
    monkeypatch.setattr(Detector, "find", None)
    add_relevance(folder, "detector", **options)
    again = dict(read_maps(folder / "train_relevance.npz"))
    assert again.keys() == first.keys() and all((again[row] == first[row]).all() for row in first)


def test_refuses_to_guess_a_detector(folder):
    with pytest.raises(ValueError, match="--from detector needs --detector"):
        add_relevance(folder, "detector")


def test_says_that_no_detection_scores_enough(owlv2, folder):
    with pytest.raises(ValueError, match=r"no detection in 2 pictures scores above 0.999; try a lower one"):
        add_relevance(folder, "detector", detector=str(owlv2), threshold=0.999)
    assert not (folder / "train_relevance.npz").exists()
