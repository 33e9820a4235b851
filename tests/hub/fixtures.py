"""The local Hub and its clients as pytest fixtures: ``pytest_plugins = ["hub.fixtures"]``."""

from collections.abc import Iterator

import pytest

from .client import Client
from .local_hub import LocalHub


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def client(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(local_hub, tmp_path_factory.mktemp("clients"))
