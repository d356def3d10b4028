"""The raters' page, as a person with a keyboard meets it in a real browser."""

from __future__ import annotations

import pytest
from arena import make_arena
from browser import CHROMIUM, Page
from serving import Started

from choreo.arena.store import Arena

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")


def text(page, name):
    return page.js(f"document.getElementById('{name}').textContent")


def saved(page, count):
    page.wait(f"document.getElementById('count').textContent.startsWith('{count} of')")


@pytest.mark.slow
def test_pairs_are_rated_by_keyboard_alone(tmp_path):
    folder = make_arena(tmp_path, "pairs", ("ours", "<b id=bold>base"), 3)
    with Arena(folder) as arena:
        secret = arena.add_rater("alice")
    with Started("arena", "serve", str(folder), "--port", "0", environment={}) as server:
        with Page(f"{server.url}/#key={secret}") as page:
            page.wait("document.getElementById('guidelines').open")
            assert page.js("location.hash") == "" and "Which answer is better?" in text(page, "guidelines-text")
            page.press("1", 49)  # while the guidelines are read, no key rates
            page.press("Enter", 13, text="\r")
            page.wait("!document.getElementById('guidelines').open")
            assert text(page, "count") == "0 of 3" and text(page, "about") == "as alice"
            first = text(page, "prompt")
            page.press("ArrowLeft", 37)
            saved(page, 1)
            assert text(page, "prompt") != first
            page.press("u", 85)
            saved(page, 0)
            assert text(page, "prompt") == first and text(page, "said") == "undone"
            for number, (key, code) in enumerate((("4", 52), ("2", 50), ("3", 51)), 1):
                page.press(key, code)
                saved(page, number)
            page.wait("!document.getElementById('end').hidden")
            assert page.js("document.getElementById('choices').hidden && document.getElementById('bold') === null")
            page.press("u", 85)  # the last one too
            saved(page, 2)
            assert page.complaints == []
        with Page(f"{server.url}/#key=renewed") as page:
            page.wait("!document.getElementById('key-form').hidden")
            assert "This key is not known here" in text(page, "about")
        with Page(f"{server.url}/") as page:  # without the link: the key is asked for, and the work goes on
            page.wait("!document.getElementById('key-form').hidden")
            page.write(secret)
            page.press("Enter", 13, text="\r")
            saved(page, 2)
            assert not page.js("document.getElementById('guidelines').open")
    with Arena(folder) as arena:
        right, tie = arena.ratings()
        assert right.choice == {"a": "b", "b": "a"}[right.left] and tie.choice == "tie"


def test_labels_are_given_by_keyboard_and_a_server_that_is_gone_is_said(tmp_path):
    folder = make_arena(tmp_path, "labels", ("ours",), 4)
    with Arena(folder) as arena:
        secret = arena.add_rater("alice")
    server = Started("arena", "serve", str(folder), "--port", "0", environment={})
    with Page(f"{server.url}/#key={secret}", width=360, height=740, dark=True) as page:
        page.wait("document.getElementById('guidelines').open")
        page.press("Enter", 13, text="\r")
        page.wait("!document.getElementById('guidelines').open")
        assert text(page, "kind").strip(" ()") in ("harmful", "benign", "general")
        page.press("d", 68)
        assert page.js("document.getElementById('degenerate').getAttribute('aria-pressed')") == "true"
        page.press("3", 51)
        saved(page, 1)
        assert page.js("document.getElementById('degenerate').getAttribute('aria-pressed')") == "false"
        page.press("1", 49)
        saved(page, 2)
        assert page.js("document.documentElement.scrollWidth <= innerWidth"), "it is as narrow as the screen"
        server.close()
        page.press("2", 50)
        page.wait("!document.getElementById('error').hidden")
        assert "may not be saved" in text(page, "error") and text(page, "count") == "2 of 4"
    with Arena(folder) as arena:
        assert [(one.choice, one.degenerate) for one in arena.ratings()] == [("fine", True), ("unsafe", False)]
