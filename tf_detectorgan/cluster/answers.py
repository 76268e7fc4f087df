"""What an API server's refusals say, in one sentence each."""

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
    """No answer now, but perhaps in a moment: whoever waits for something asks again."""


@contextlib.contextmanager
def one_sentence(doing: str) -> Iterator[None]:
    """What the API server says against `doing` is raised as InputError, or as Later."""
    try:
        yield
    except ApiException as error:
        passing = (error.status or 0) >= 500 or error.status == TOO_MANY_REQUESTS
        raise (Later if passing else InputError)(f"{doing}: {message(error)}") from error
    except pydantic.ValidationError as error:  # the client itself refuses what the API does not have
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{doing}: {field}: {first['msg']} (given: {first['input']!r:.80})") from error
    except urllib3.exceptions.HTTPError as error:
        raise Later(f"{doing}: no answer from the API server ({error})") from error


def or_none(doing: str, ask: Callable[..., T], *given: Any) -> T | None:
    """Returns ask(*given), or None where the API server does not know the object."""
    with one_sentence(doing):
        try:
            return ask(*given)
        except ApiException as error:
            if error.status != 404:
                raise
    return None


def message(error: ApiException) -> str:
    """The server's own words: `message` of the Status object that it answers with."""
    try:
        return json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        if error.status:
            return f"{error.status} {error.reason}"
        # A refused websocket: the client puts headers and the Status object into one string.
        found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.reason))
        return found[1].replace("\\", "") if found else str(error.reason).split(" -+-+- ")[0]


def exists(error: ApiException) -> bool:
    """Whether something of that name is there: 409 alone may also be a quota that is just being changed."""
    try:
        return error.status == 409 and json.loads(error.body or "")["reason"] == "AlreadyExists"
    except (ValueError, KeyError, TypeError):
        return False
