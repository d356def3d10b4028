"""The page at /, three files that a browser can run as they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = Path(__file__).parent / "page"
PAGES = {  # without a key: they hold nothing of anybody's, and the browser has to fetch them before it can send one
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
GUARDED = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def pages() -> list[Route]:
    return [Route(path, _page(file, kind)) for path, (file, kind) in PAGES.items()]


def _page(file: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (PAGE / file).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=GUARDED)

    return page
