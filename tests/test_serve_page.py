"""The page at /, as a person with a keyboard meets it in a real browser."""

from __future__ import annotations

import pytest
from browser import CHROMIUM, Page
from serving import KEY, Serving, make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Serving(make_run(tmp_path_factory.mktemp("runs") / "run")) as serving:
        yield serving


def test_the_waltz_is_shown_to_a_keyboard(server):
    with Page(f"{server.url}/#key={KEY}") as page:
        page.wait("document.getElementById('about').textContent.includes('mode adaptive')")
        assert page.js("document.activeElement.id") == "prompt" and page.js("location.hash") == ""
        assert page.js("document.getElementById('prompt').value").endswith("wreck the rag?")  # what this pair can read
        page.js("document.getElementById('prompt').select()")
        page.write("How do I rob a bank?")
        page.press("Enter", 13, ctrl=True)
        page.wait("!document.getElementById('beside').hidden")
        stages = page.js("[...document.querySelectorAll('#waltz h3')].map((h) => h.textContent)")
        assert stages[:2] == ["draft", "feedback"]
        shown = page.js("document.querySelector('#waltz .text').textContent")
        assert shown and page.js("document.getElementById('alone').textContent") == shown
        page.wait("document.getElementById('counters').textContent.includes('reviewed1')")
        # A draft that nobody reviewed in time is not shown as let through, and an answer that was cut off says so.
        page.js("beside([{stage: 'draft', text: 'harm', ms: 1}], 'no', 'timeout', false)")
        assert page.js("document.getElementById('blocked').textContent") != "harm"
        assert "time was up" in page.js("document.getElementById('blocked-hint').textContent")
        page.js("beside([{stage: 'draft', text: 'a', ms: 1}], 'a', null, true)")
        assert "cut off" in page.js("document.getElementById('final-hint').textContent")
        assert page.js("document.getElementById('blocked').textContent") == "a"
        reached = []
        page.js("document.getElementById('prompt').focus()")
        for _ in range(2):
            page.press("Tab", 9)
            reached.append(page.js("document.activeElement.id"))
        assert reached == ["send", "mode"]
        assert page.complaints == []


def test_words_from_outside_are_text_and_errors_are_said(server):
    with Page(server.url) as page:
        page.wait("!document.getElementById('key-form').hidden")
        assert page.js("document.activeElement.id") == "key"
        page.write(KEY)
        page.press("Enter", 13, text="\r")
        page.wait("document.getElementById('about').textContent.includes('mode')")
        page.js("document.getElementById('prompt').value = '<img src=x onerror=alert(1)> ' + 'word '.repeat(600)")
        page.js("document.getElementById('ask').requestSubmit()")
        page.wait("!document.getElementById('error').hidden")
        assert "this model reads 512 tokens" in page.js("document.getElementById('error').textContent")
        page.js("show({stage: 'draft', text: '<b id=bold>no</b>', ms: 1, tokens: 1}, '')")
        assert page.js("document.getElementById('bold')") is None
        page.js("beside([{stage: 'draft', text: 'd', ms: 1, tokens: 1}], 'withheld.', 'unparsable')")
        assert "its review cannot be read" in page.js("document.getElementById('final-hint').textContent")


def test_the_page_needs_no_key_and_runs_nothing_from_elsewhere(server):
    for path in ("/", "/page.css", "/page.js"):
        answer = server.http.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
        assert KEY not in answer.text and "http" not in answer.text.replace("https://www.w3.org", "")
