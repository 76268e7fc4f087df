"""Turns errors of a Kubernetes API server into one-sentence errors."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pydantic
import urllib3
from kubernetes.client.exceptions import ApiException

from tf_detectorgan.errors import InputError

T = TypeVar("T")
TOO_MANY_REQUESTS = 429


class Later(InputError):
    """A temporary failure of the API server: the request may succeed when it is repeated."""


@contextlib.contextmanager
def one_sentence(doing: str) -> Iterator[None]:
    """Raises an error of the API server as InputError, or as Later if temporary, after the text `doing`."""
    try:
        yield
    except ApiException as error:
        temporary = (error.status or 0) >= 500 or error.status == TOO_MANY_REQUESTS
        raise (Later if temporary else InputError)(f"{doing}: {message(error)}") from error
    except pydantic.ValidationError as error:  # the client rejects fields that the API lacks
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{doing}: {field}: {first['msg']} (given: {first['input']!r:.80})") from error
    except urllib3.exceptions.HTTPError as error:
        raise Later(f"{doing}: no answer from the API server ({error})") from error


def or_none(doing: str, request: Callable[..., T], *given: Any) -> T | None:
    """Returns request(*given), or None if the object does not exist."""
    with one_sentence(doing):
        try:
            return request(*given)
        except ApiException as error:
            if error.status != 404:
                raise
    return None


def message(error: ApiException) -> str:
    """Returns the server's message, from the Status object in the body of the error."""
    try:
        return json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        if error.status:
            return f"{error.status} {error.reason}"
        # Rejected websocket: the client joins headers and the Status object in one string.
        found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.reason))
        return found[1].replace("\\", "") if found else str(error.reason).split(" -+-+- ")[0]


def exists(error: ApiException) -> bool:
    """Returns whether the object exists. Status 409 alone may also mean that a quota is being changed."""
    try:
        return error.status == 409 and json.loads(error.body or "")["reason"] == "AlreadyExists"
    except (ValueError, KeyError, TypeError):
        return False
