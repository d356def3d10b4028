"""The requests of the page of `choreo watch`. All of them read; nothing can be written through it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from pathlib import Path
from secrets import compare_digest
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from choreo.errors import BadInput
from choreo.files.durable import finite, read_lines
from choreo.server.incoming import HANDLERS, caller
from choreo.server.keys import Key
from choreo.server.openai_requests import ApiError
from choreo.server.pages import pages
from choreo.watch.curves import curve_figures, values_of
from choreo.watch.figures import WatchedRun
from choreo.watch.games import shown_game
from choreo.watch.index import CHOICES, ORDERS, TRAINING, GameSearch
from choreo.watch.pieces import pieces
from choreo.watch.recipes import said_of_settings, side_by_side
from choreo.watch.watcher import Watcher

PAGE = Path(__file__).parent / "page"
MOST = 200  # games in one answer

NOT_STORED = {"Cache-Control": "no-store"}
# A report runs a script of its own. In a sandbox it has another origin than the page, whose key it cannot read then.
OF_A_REPORT = NOT_STORED | {
    "Content-Security-Policy": "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def watch_page(watcher: Watcher, keys: Sequence[Key]) -> Starlette:
    """All routes of the page."""

    def guarded(work: Callable[[Watcher, QueryParams], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        """A route that takes a key, and does its work in a thread, since it waits for files."""

        async def answer(request: Request) -> Response:
            caller(keys, request.headers.get("authorization"))

            def told() -> str:  # in ASCII, so that half a character of a model's is no error
                return json.dumps(finite(work(watcher, request.query_params)))

            return Response(await asyncio.to_thread(told), media_type="application/json", headers=NOT_STORED)

        return answer

    async def runs(request: Request) -> Response:
        """The table; status 304 where the client has it as it is."""
        caller(keys, request.headers.get("authorization"))
        told, tag = watcher.told, watcher.tag
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(told, media_type="application/json", headers={"ETag": tag, "Cache-Control": "no-cache"})

    async def report(request: Request) -> Response:
        """The report of a run, for whoever has been told its address: the table has it."""
        told = request.path_params["secret"].encode()
        run = next((one for one in list(watcher.runs.values()) if compare_digest(one.secret.encode(), told)), None)
        try:
            page = await asyncio.to_thread((run.path / "report.html").read_bytes) if run else None
        except OSError:
            page = None
        if page is None:
            raise ApiError(404, "there is no such report any more; open it from the table of runs", param="report")
        return Response(page, media_type="text/html; charset=utf-8", headers=OF_A_REPORT)

    return Starlette(
        routes=[
            Route("/runs", runs),
            Route("/report/{secret}", report),
            Route("/curves", guarded(curves)),
            Route("/recipes", guarded(recipes)),
            Route("/choices", guarded(lambda watcher, asked: watcher.index.choices(numbers(asked, "runs")))),
            Route("/games", guarded(games)),
            Route("/game", guarded(game)),
            *pages(PAGE, shared=("words.js",)),
        ],
        exception_handlers=HANDLERS,
    )


def curves(watcher: Watcher, asked: QueryParams) -> dict[str, Any]:
    """{figures, runs: [{run, steps, values}]}: see `choreo.watch.curves`."""
    found = []
    fields: dict[str, None] = {}
    for run in _runs(watcher, asked):
        lines = list(run.metrics.lines)
        values = values_of(lines)
        fields |= dict.fromkeys(values)
        found.append({"run": run.number, "steps": [line["step"] for line in lines], "values": values})
    return {"figures": curve_figures(fields), "runs": found}


def recipes(watcher: Watcher, asked: QueryParams) -> dict[str, Any]:
    """{runs, rows: [{key, values, differs, meaning}]}"""
    runs = _runs(watcher, asked)
    said: dict[str, str] = {}
    for run in runs:
        said |= said_of_settings(run.path / "recipe.toml")
    rows = side_by_side([run.recipe for run in runs], [run.info for run in runs])
    return {
        "runs": [run.number for run in runs],
        "rows": [{**row, "meaning": said.get(row["key"], "")} for row in rows],
    }


def games(watcher: Watcher, asked: QueryParams) -> dict[str, Any]:
    """A part of a list of games: see `GameIndex.page`."""
    order = asked.get("order", "newest")
    if order not in ORDERS:
        raise ApiError(400, f"expected one of {', '.join(ORDERS)}", param="order")
    chosen: dict[str, Any] = {name: asked.get(name) for name in (*CHOICES, "agent")}
    if chosen["source"] == "training":
        chosen["source"] = TRAINING
    question = GameSearch(
        runs=numbers(asked, "runs"),
        **chosen,
        first_step=number(asked, "first_step"),
        last_step=number(asked, "last_step"),
        words=asked.get("words", ""),
        order=order,
    )
    most = min(number(asked, "most") or 50, MOST)
    return watcher.index.page(question, number(asked, "at") or 0, most, number(asked, "version"))


def game(watcher: Watcher, asked: QueryParams) -> dict[str, Any]:
    """One game, whole: see `choreo.watch.games.shown_game`."""
    wanted = number(asked, "game")
    place = None if wanted is None else watcher.index.game(wanted)
    run = watcher.runs.get(place["run"]) if place else None
    if place is None or run is None:
        raise ApiError(404, "there is no such game any more", param="game")
    file = Path(place["path"])
    try:
        record = next(islice(read_lines(file), place["place"], None), None)
    except BadInput as error:
        raise ApiError(404, str(error), param="game") from None
    if record is None:
        raise ApiError(404, f"{file} has changed", param="game")
    told = shown_game(record, lambda agent, ids: pieces(run.base(agent), ids))
    return {"run": run.number, "source": place["source"], "step": place["step"], "file": str(file), **told}


def _runs(watcher: Watcher, asked: QueryParams) -> list[WatchedRun]:
    return [run for one in numbers(asked, "runs") if (run := watcher.runs.get(one))]


def numbers(asked: QueryParams, name: str) -> tuple[int, ...]:
    """Whole numbers, with commas between them. Raises 400."""
    try:
        return tuple(int(one) for one in asked.get(name, "").split(",") if one)
    except ValueError:
        raise ApiError(400, "expected whole numbers with commas between them", param=name) from None


def number(asked: QueryParams, name: str) -> int | None:
    """A whole number from 0 on, or None where none is given. Raises 400."""
    text = asked.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ApiError(400, "expected a whole number", param=name)
    return int(text)
