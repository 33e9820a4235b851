"""The local Hub and its clients as pytest fixtures: ``pytest_plugins = ["helpers.hub.fixtures"]``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.tiny import tiny_image

from .checkpoint import save_checkpoint
from .client import Client
from .local_hub import LocalHub
from .publishing import Published, run_pushes


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def client(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(local_hub, tmp_path_factory.mktemp("clients"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "assembled").mkdir()
    return tmp_path / "assembled"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    tiny_image(seed=5).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    place = tmp_path_factory.mktemp("published")
    save_checkpoint(place / "checkpoint")
    tiny_image(seed=5).save(place / "photo.png")
    with LocalHub() as hub:
        run_pushes(hub, place / "cache", (place / "checkpoint", "user/model", {"tag": "v1"}))
        client = Client(hub, tmp_path_factory.mktemp("clients"))
        yield Published(place / "checkpoint", place / "photo.png", hub, client)
