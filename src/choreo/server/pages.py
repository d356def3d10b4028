"""A page: files that a browser can run as they are. The one at / here, and those of other servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
GUARDED = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def pages(folder: Path = PAGE, shared: Sequence[str] = ()) -> list[Route]:
    """The routes of the page whose files are in `folder`: index.html is at /, the others are at /NAME. They take no
    key: they hold nothing of anybody's, and the browser has to fetch them before it can send one.

    shared: names of files that it has in common with the page here.
    """
    files = files_of(folder) | {f"/{name}": files_of()[f"/{name}"] for name in shared}
    return [Route(path, _page(file, kind)) for path, (file, kind) in files.items()]


def files_of(folder: Path = PAGE) -> dict[str, tuple[Path, str]]:
    """The files of the page in `folder`, with their media types, by their paths on the server."""
    files = sorted(file for file in folder.iterdir() if file.suffix in KINDS)
    return {"/" if file.name == "index.html" else f"/{file.name}": (file, KINDS[file.suffix]) for file in files}


def _page(file: Path, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=GUARDED)

    return page
