"""What a server counts (Prometheus), named after vLLM's, and what it logs: one JSON line a request, without texts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from choreo.files.utf8 import REPLACED
from choreo.server.session import STAGES, Outcome

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """The counters of one server.

    running: the number of games in play. waiting: the number of sequences that wait for the decoder.
    """

    def __init__(self, running: Callable[[], float], waiting: Callable[[], float]):
        self.registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"choreo:{name}", what, labels, registry=self.registry)

        def histogram(name: str, what: str) -> Histogram:
            return Histogram(f"choreo:{name}", what, ["mode"], buckets=SECONDS, registry=self.registry)

        self.requests = counter("requests", "Requests by HTTP status", "key", "status")
        self.answers = counter("answers", "Answers given, one for each of n", "key", "mode")
        self.reviewed = counter("reviewed", "Answers that the feedback agent read", "key", "mode")
        self.lenient = counter("lenient", "Reviews that could only be read leniently", "key", "mode")
        self.triggered = counter("triggered", "Answers that it asked to revise (over reviewed: FTR)", "key", "mode")
        self.flagged = counter("flagged", "Answers that it called unsafe, or over-refusing", "key", "mode", "label")
        self.revised = counter("revised", "Answers that were revised", "key", "mode")
        self.blocked = counter("blocked", "Answers withheld, by what failed", "key", "failed")
        self.bypassed = counter("bypassed", "Answers let pass unchecked, by what failed", "key", "failed")
        self.unchecked = counter("unchecked", "Answers streamed before their review", "key")
        self.failed = counter("failed", "Failures, by stage", "stage")
        self.disconnected = counter("disconnected", "Clients that left before their answer", "key")
        self.broken = counter("broken", "Turns that hold a broken character (U+FFFD)", "stage")
        self.tokens = counter("tokens", "Tokens sampled, by stage", "stage")
        self.latency = histogram("e2e_request_latency_seconds", "From a request to the end of its answer")
        self.first = histogram("time_to_first_token_seconds", "From a request to the first token that the client gets")
        self.added = histogram("added_latency_seconds", "What feedback and revision took of that")
        for name, what, read in (
            ("num_requests_running", "Requests in play", running),
            ("num_requests_waiting", "Sequences that wait for the decoder", waiting),
        ):
            Gauge(f"choreo:{name}", what, registry=self.registry).set_function(read)

    def count(self, key: str, outcome: Outcome) -> None:
        mode = outcome.mode
        self.answers.labels(key, mode).inc()
        if outcome.game.reviews:
            self.reviewed.labels(key, mode).inc()
        if outcome.lenient:
            self.lenient.labels(key, mode).inc(outcome.lenient)
        if outcome.game.triggered:
            self.triggered.labels(key, mode).inc()
        for label, called in labels(outcome).items():
            if called:
                self.flagged.labels(key, mode, label).inc()
        if outcome.revised:
            self.revised.labels(key, mode).inc()
        if outcome.failed:
            if outcome.opened:
                self.bypassed.labels(key, outcome.failed).inc()
            elif outcome.withheld:  # a review in the shadow withholds nothing
                self.blocked.labels(key, outcome.failed).inc()
            self.failed.labels(outcome.failed).inc()
        for move in outcome.moves:
            if REPLACED in move.turn.text:
                self.broken.labels(move.stage).inc()
        for stage in STAGES:
            self.tokens.labels(stage).inc(outcome.tokens(stage))
        if mode not in ("off", "shadow"):  # in these modes the client does not wait for a review
            self.added.labels(mode).observe(outcome.seconds("feedback", "revision"))

    def text(self) -> bytes:
        return generate_latest(self.registry)


def log(event: str, level: str = "info", **facts: Any) -> None:
    """Writes one line of JSON to the error stream."""
    line = {"time": round(time.time(), 3), "level": level, "event": event, **facts}
    print(json.dumps(line), file=sys.stderr, flush=True)  # in ASCII, which every stream can write


def facts(outcome: Outcome) -> dict[str, Any]:
    """What a log may say of a game: no words of a user or an agent."""
    return {
        "triggered": outcome.game.triggered,
        **labels(outcome),
        "revised": outcome.revised,
        "failed": outcome.failed,
        "opened": outcome.opened,
        **({"why": outcome.why} if outcome.why else {}),
        **({"lenient": outcome.lenient} if outcome.lenient else {}),
        **{f"{stage}_ms": round(1000 * outcome.seconds(stage)) for stage in STAGES},
        **{f"{stage}_tokens": outcome.tokens(stage) for stage in STAGES},
    }


def labels(outcome: Outcome) -> dict[str, bool]:
    """What the feedback agent called any of the answers."""
    read = [f for f in outcome.game.feedback if f is not None]
    return {"unsafe": any(f.unsafe for f in read), "overrefuse": any(f.overrefuse for f in read)}
