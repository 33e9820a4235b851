"""Views of labeled pictures: picture and label map are cut alike, and a failure leaves no files."""

import numpy as np
import pytest
from PIL import Image

from modeling_qca.image_qca import ORIENTATION
from modeling_qca.training.data.splits import group_key
from modeling_qca.training.supervision.views import make_views


@pytest.fixture
def scene(tmp_path):
    """A picture whose red channel is its label map (scaled), so that a view can be checked against its labels."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    labels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((20, 20), np.uint8))
    Image.fromarray(labels).save(tmp_path / "labels" / "image25.png")
    color = np.zeros((60, 80, 3), np.uint8)
    color[..., 0] = 20 * labels
    Image.fromarray(color).resize((160, 120), Image.Resampling.NEAREST).save(tmp_path / "images" / "image25.png")
    return tmp_path


@pytest.mark.parametrize("on_its_side", [False, True])
def test_label_map_is_cut_like_the_picture(scene, on_its_side):
    if on_its_side:  # as phones store photos, and show them upright
        path, exif = scene / "images" / "image25.png", Image.Exif()
        exif[ORIENTATION] = 6
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert make_views(scene / "images", scene / "labels", scene / "out", 6, seed=1) == 7
    mirrored = []
    for path in sorted((scene / "out" / "labels").iterdir()):
        labels = np.asarray(Image.open(path)).astype(float)
        with Image.open(scene / "out" / "images" / f"{path.stem}.jpg") as picture:
            red = np.asarray(picture.resize(labels.shape[::-1], Image.Resampling.BOX))[..., 0].astype(float)
        assert np.corrcoef(red.ravel(), labels.ravel())[0, 1] > 0.97, path.stem
        mirrored.append(labels[0, 0] > labels[0, -1])
        assert group_key(path.stem, 12) == "2"
    assert any(mirrored) and not all(mirrored)


def test_same_seed_gives_the_same_files(scene):
    make_views(scene / "images", scene / "labels", scene / "a", 2, seed=3)
    make_views(scene / "images", scene / "labels", scene / "b", 2, seed=3)
    make_views(scene / "images", scene / "labels", scene / "c", 2, seed=4)

    def content(name):
        return [path.read_bytes() for path in sorted((scene / name).rglob("*")) if path.is_file()]

    assert content("a") == content("b") != content("c")


def test_each_view_gets_the_row_of_its_picture(scene):
    for folder, suffix in (("images", "png"), ("labels", "png")):
        (scene / folder / f"image26.{suffix}").write_bytes((scene / folder / f"image25.{suffix}").read_bytes())
    (scene / "streets.csv").write_text("street,file_name\nhigh,image26.png\nlow,image25.png\nnone,image27.png\n")
    make_views(scene / "images", scene / "labels", scene / "out", 2, image_table=scene / "streets.csv")
    rows = (scene / "out" / "images.csv").read_text().split()
    names = {path.stem for path in (scene / "out" / "images").iterdir()}
    expected = {f"{name},{'low' if name.endswith('25') else 'high'}" for name in names}
    assert len(names) == 6 and rows[0] == "image_id,street" and set(rows[1:]) == expected and len(rows) == 7


def test_refuses_a_table_without_a_row_of_a_picture(scene):
    (scene / "streets.csv").write_text("image,street\nimage26,high\n")
    with pytest.raises(ValueError, match="no row for image 'image25'"):
        make_views(scene / "images", scene / "labels", scene / "out", 1, image_table=scene / "streets.csv")
    assert not [path for path in scene.iterdir() if "out" in path.name]


def test_missing_picture_is_named_and_leaves_no_files(scene):
    Image.new("L", (8, 8)).save(scene / "labels" / "image26.png")
    with pytest.raises(ValueError, match="image26"):
        make_views(scene / "images", scene / "labels", scene / "out", 1)
    assert not [path for path in scene.iterdir() if "out" in path.name]


def test_refuses_a_folder_without_label_maps(scene):
    (scene / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no label maps"):
        make_views(scene / "images", scene / "empty", scene / "out", 1)
    assert not (scene / "out").exists()


def test_refuses_an_existing_output_folder(scene):
    with pytest.raises(ValueError, match="already exists"):
        make_views(scene / "images", scene / "labels", scene / "images", 1)
