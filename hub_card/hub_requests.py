"""Requests to the Hub: timeout, retries, and one clear message for a failure."""

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError

RETRYABLE_STATUS = {408, 429, 500, 502, 503, 504}
ATTEMPTS = 3
REQUEST_TIMEOUT = 60.0  # seconds without a byte
RETRY_DEADLINE = 180.0  # seconds after the first attempt

Reply = TypeVar("Reply")


def retry(request: Callable[[], Reply]) -> Reply:
    """Make a request up to `ATTEMPTS` times. The request must be safe to repeat.

    huggingface_hub repeats the parts of an upload, but not the requests that create, commit or tag. After a lost
    reply, the second attempt at a commit finds it made and changes nothing.
    """
    started = time.monotonic()
    for attempt in range(1, ATTEMPTS):
        try:
            return with_timeout(request)
        except (HTTPError, json.JSONDecodeError) as error:  # a gateway may send HTML instead of JSON
            if not _is_retryable(error) or time.monotonic() - started > RETRY_DEADLINE:
                raise
            time.sleep(2**attempt)
    return with_timeout(request)


def _is_retryable(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in RETRYABLE_STATUS


def with_timeout(request: Callable[[], Reply]) -> Reply:
    """Make a request that fails after `REQUEST_TIMEOUT`. huggingface_hub alone would wait without end."""
    session = get_session()
    before, session.timeout = session.timeout, REQUEST_TIMEOUT
    try:
        return request()
    finally:
        session.timeout = before


def ignore_not_found(request: Callable[[], None]) -> None:
    """Make a deletion whose target may already be gone, for example after a lost reply."""
    try:
        request()
    except HfHubHTTPError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise


def clear_error(error: BaseException, outcome: str) -> OSError:
    """The error to show for a failed request.

    Args:
        error: of huggingface_hub or its HTTP client.
        outcome: what did not happen, for example "user/model was not published".
    """
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"{outcome}: the Hub cannot be reached ({error}). Run the command again.")
    status = error.response.status_code
    if status in (401, 403):
        return PermissionError(
            f"{outcome}: the Hub refuses the token ({status}). Log in with `hf auth login` and a token that may write."
        )
    reason = error.server_message or error.response.reason_phrase
    return ConnectionError(f"{outcome}: the Hub answers {status} {reason}. Run the command again.")
