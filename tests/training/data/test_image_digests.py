"""Digests of the images of rows: equal content has equal digests, whatever its path and wherever it is stored."""

import datasets
from helpers.data_files import draw

from modeling_qca.training.data.image_digests import image_digest, image_digests


def test_equal_content_has_equal_digests(tmp_path):
    one, copy, other = (draw(tmp_path / name, shade) for name, shade in (("a.png", 10), ("b.png", 10), ("c.png", 20)))
    stored = [{"path": str(path), "bytes": None} for path in (one, copy, other)]
    stored.append({"path": None, "bytes": other.read_bytes()})
    digests = [image_digest(image) for image in stored]
    assert digests[0] == digests[1] != digests[2] == digests[3]
    assert all(len(digest) == 16 for digest in digests)
    rows = datasets.Dataset.from_dict({"image": stored}, datasets.Features({"image": datasets.Image()}))
    assert image_digests(rows) == {digests[0], digests[2]}
