"""An error of the server, whatever API it is told in."""

from __future__ import annotations

from choreo.server.openai_responses import Error


class ApiError(Exception):
    """An error as OpenAI's API gives it. headers: sent with it, as Retry-After is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body: Error = {"error": {"message": message, "type": type, "param": param, "code": code}}


def internal() -> ApiError:
    """An error of our code. The client learns nothing of it."""
    return ApiError(500, "internal error", type="server_error", code="internal_error")
