"""The requests of a rater's page. A rater sees answers without their systems, and nothing of other raters.

An item is known to the page by its place in this rater's order, from 1: the number of an item would tell its system.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from choreo.arena.items import CHOICES, Item
from choreo.arena.store import Arena, Conflict
from choreo.files.messages import messages_of
from choreo.server.api_error import ApiError
from choreo.server.apis import Strict
from choreo.server.incoming import HANDLERS, body_of, caller
from choreo.server.pages import pages

PAGE = Path(__file__).parent / "page"
MOST, SECONDS = 4096, 30.0  # of a request's body

SIDES = {"left": {"a": "a", "b": "b"}, "right": {"a": "b", "b": "a"}}  # what is meant, by which answer is on the left


class Said(Strict):
    """What a rater says of an item. choice: left, right, tie or both bad; or unsafe, over-refusal or fine."""

    item: int
    choice: str
    degenerate: bool | None = None


class Undone(Strict):
    """Which rating a rater takes back."""

    item: int


def raters_page(arena: Arena) -> Starlette:
    """All routes of the arena's page."""

    def guarded(
        work: Callable[[Arena, str, bytes], dict[str, Any]],
    ) -> Callable[[Request], Awaitable[Response]]:
        """A route that takes a rater's key, and does its work in a thread, since a commit waits for the disk."""

        async def answer(request: Request) -> Response:
            keys = await asyncio.to_thread(arena.rater_keys)
            rater = caller(keys, request.headers.get("authorization")).name
            body = await body_of(request, MOST, SECONDS)
            return JSONResponse(
                await asyncio.to_thread(work, arena, rater, body), headers={"Cache-Control": "no-store"}
            )

        return answer

    return Starlette(
        routes=[
            Route("/guidelines", guarded(guidelines)),
            Route("/next", guarded(lambda arena, rater, _: next_item(arena, rater))),
            Route("/rate", guarded(rate), methods=["POST"]),
            Route("/undo", guarded(undo), methods=["POST"]),
            *pages(PAGE),
        ],
        exception_handlers=HANDLERS,
    )


def guidelines(arena: Arena, rater: str, body: bytes) -> dict[str, Any]:
    return {"guidelines": arena.about["guidelines"], "rater": rater, "mode": arena.mode}


def next_item(arena: Arena, rater: str) -> dict[str, Any]:
    """What the page shows next: {item, done, total, last}. item: None at the end. last: the place to undo, if any."""
    ratings, order = arena.ratings(rater), arena.order(rater)
    rated = {rating.item for rating in ratings}
    following = next(((place, item) for place, item in enumerate(order, 1) if item not in rated), None)
    return {
        "item": None if following is None else _blind(arena, rater, following[0], arena.items[following[1]]),
        "done": len(rated),
        "total": len(arena.items),
        "last": order.index(ratings[-1].item) + 1 if ratings else None,
    }


def rate(arena: Arena, rater: str, body: bytes) -> dict[str, Any]:
    said = _read(Said, body)
    item, choice = _placed(arena, rater, said.item), said.choice
    if arena.mode == "pairs":
        if choice in ("a", "b"):
            raise ApiError(400, "expected left or right", param="choice")
        choice = SIDES.get(choice, {}).get(arena.left(rater, item), choice)
    if choice not in CHOICES[arena.mode]:
        known = ("left", "right", *CHOICES["pairs"][2:]) if arena.mode == "pairs" else CHOICES["labels"]
        raise ApiError(400, f"expected one of {', '.join(known)}", param="choice")
    if (said.degenerate is None) != (arena.mode == "pairs"):
        raise ApiError(400, "expected true or false for an answer, and nothing for a pair", param="degenerate")
    try:
        arena.rate(rater, item, choice, said.degenerate)
    except Conflict as conflict:
        raise ApiError(409, str(conflict)) from None
    return next_item(arena, rater)


def undo(arena: Arena, rater: str, body: bytes) -> dict[str, Any]:
    try:
        arena.undo(rater, _placed(arena, rater, _read(Undone, body).item))
    except Conflict as conflict:
        raise ApiError(409, str(conflict)) from None
    return next_item(arena, rater)


def _placed(arena: Arena, rater: str, place: int) -> int:
    """The item at a place of the rater's order. Raises 404."""
    if not 1 <= place <= len(arena.items):
        raise ApiError(404, f"there is no item {place}", param="item")
    return arena.order(rater)[place - 1]


def _blind(arena: Arena, rater: str, place: int, item: Item) -> dict[str, Any]:
    answers = [answer.text for answer in item.answers]
    if arena.left(rater, item.id) == "b":
        answers.reverse()
    kind = {"kind": item.kind} if arena.mode == "labels" else {}
    return {"id": place, "earlier": messages_of(item.earlier), "prompt": item.prompt, "answers": answers, **kind}


def _read(model: type[Any], body: bytes) -> Any:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ApiError(400, f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}") from None
