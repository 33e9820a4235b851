"""This process as a client of a local Hub."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants, hf_api

from .local_hub import TOKEN, LocalHub


@contextmanager
def connected(hub: LocalHub, cache: Path, token: str | None = TOKEN) -> Iterator[None]:
    """huggingface_hub and transformers talk to `hub`, with `token`, an empty cache and no pause between retries."""
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": token is None,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        patch.setenv("HF_TOKEN", token or "")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setattr(hf_api.api, "endpoint", hub.endpoint)  # of huggingface_hub's functions
        patch.setattr("transformers.utils.hub._hf_api", None)
        patch.setattr(time, "sleep", lambda seconds: None)
        close_session()  # the session keeps the proxy settings
        try:
            yield
        finally:
            close_session()
