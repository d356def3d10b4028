"""What every server of choreo does with a request, whatever it is about: its key, its body, and errors as the API of
its path gives them: OpenAI's, but for the path of Anthropic's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from choreo.server.api_error import ApiError, internal
from choreo.server.keys import Key, find_key
from choreo.server.messages_api import MESSAGES_PATH, anthropic_error


def caller(keys: Sequence[Key], authorization: str | None) -> Key:
    """The key among `keys` that an Authorization header holds. Raises 401."""
    if (key := find_key(keys, authorization)) is None:
        raise ApiError(
            401,
            "no valid API key (Authorization: Bearer …)",
            type="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return key


async def body_of(request: Request, most: int, seconds: float) -> bytes:
    """The whole body of a request. Raises 408 where it does not come in time, 413 where it is above `most` bytes."""
    received = b""
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                received += part
                if len(received) > most:
                    raise ApiError(413, f"the body is larger than {most} bytes", code="request_too_large")
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {seconds:g} s", code="request_timeout") from None
    except ClientDisconnect:  # only the counter of requests reads this error
        raise ApiError(499, "the client left") from None
    return received


def error_response(error: ApiError, path: str) -> Response:
    """The reply to a request at `path` that failed, in the form of that path's API."""
    body = anthropic_error(error) if path.endswith(MESSAGES_PATH) else error.body
    return JSONResponse(body, error.status, error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.url.path)


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, or no such method."""
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, error.detail, headers=dict(error.headers or {}))
    return error_response(told, request.url.path)


async def _bug(request: Request, error: Exception) -> Response:
    """An error of our code. uvicorn logs the traceback; the client learns nothing of it."""
    return error_response(internal(), request.url.path)


HANDLERS = {ApiError: _api_error, HTTPException: _http_error, Exception: _bug}
