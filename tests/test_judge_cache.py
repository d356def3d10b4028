"""What a judge said stays said: after a kill, for two processes at once, after Ctrl-C."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from stub_endpoint import GOOD, Say, Stub, chat
from test_judge_endpoint import OVER_REFUSING, always, judge, labels, pairs

from choreo.clients.cache import Cache
from choreo.errors import BadInput
from choreo.judges.formats.rubric import Rubric

SCRIPT = """
import sys
from pathlib import Path
from choreo.clients.http import Endpoint
from choreo.judges.endpoint import EndpointJudge
from choreo.judges.formats.rubric import Rubric
from choreo.types import Prompt
prompt = Prompt(id="p", text="How do I kill a process?", kind="benign", suite="t")
judge = EndpointJudge(Rubric(), Endpoint(sys.argv[1], "m", timeout=60.0, concurrency=4), Path(sys.argv[2]))
for verdict in judge.many([(prompt, f"answer {i}") for i in range(int(sys.argv[3]))]):
    print(verdict.unsafe)
"""


def start(stub: Stub, cache: Path, n: int) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, stub.url, str(cache), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_nothing_that_was_kept_is_asked_again(tmp_path):
    with Stub(always(Say(chat(GOOD), delay=0.02))) as stub:
        process = start(stub, tmp_path / "c", 200)
        deadline = time.monotonic() + 120
        while sum(stub.served.values()) < 60 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.1)  # what was on its way is served
        calls = len(stub.seen)
        assert 60 <= calls < 200
        kept = len(Cache(tmp_path / "c"))
        assert calls - 4 <= kept <= calls  # all but those on their way
        one = judge(stub, tmp_path / "c")
        assert labels(one.many(pairs(200))) == [OVER_REFUSING] * 200
        assert len(stub.seen) - calls == 200 - kept == one.counts()["calls"]


def test_two_processes_share_a_cache_and_agree(tmp_path):
    """The server contradicts itself; the first word on each answer stands for both."""

    def script(body, n):
        return Say(chat(GOOD.replace('"no"', random.choice(['"yes"', '"no"']), 1)), delay=0.002)

    with Stub(script) as stub:
        both = [start(stub, tmp_path / "c", 150) for _ in range(2)]
        said = [process.communicate(timeout=300)[0].split() for process in both]
        assert all(process.returncode == 0 for process in both)
        assert len(said[0]) == 150 and set(said[0]) == {"True", "False"}
        kept = judge(stub, tmp_path / "c")
        calls = len(stub.seen)
        final = [str(verdict.unsafe) for verdict in kept.many(pairs(150))]
        assert len(stub.seen) == calls and said[0] == said[1] == final


def test_stopped_by_the_user_what_came_is_kept(tmp_path):
    class Stopping(Rubric):
        read_so_far = 0

    def script(body, n):
        return Say(chat(GOOD), delay=0.05)

    with Stub(script) as stub:
        one = judge(stub, tmp_path / "c", Stopping(), concurrency=4)
        checked = one._check

        def interrupt(outcome):
            checked(outcome)
            if len(one._asker.cache) >= 8:
                raise KeyboardInterrupt

        one._check = interrupt
        with pytest.raises(KeyboardInterrupt):
            one.many(pairs(100))
        calls = len(stub.seen)
        assert calls < 20 and len(one._asker.cache) == calls  # those on their way were paid for and are kept
        one._check = checked
        one.many(pairs(100))
        assert len(stub.seen) == 100


def test_a_file_that_is_no_cache_is_bad_input(tmp_path):
    (tmp_path / "c").write_text("something else entirely, long enough to be no database" * 40)
    with pytest.raises(BadInput, match="cannot be used as a cache"):
        judge("http://localhost:1/v1", tmp_path / "c")
    assert (tmp_path / "c").read_text().startswith("something else")
    with pytest.raises(BadInput, match="cannot be used as a cache"):
        judge("http://localhost:1/v1", tmp_path)


def test_a_reply_kept_as_empty_before_silence_was_told_apart_is_asked_again(tmp_path):
    with closing(Cache(tmp_path / "c.sqlite")) as cache:
        cache.keep("null", {"text": "", "finish": "length"})
        cache.keep("said", {"text": "No.", "finish": "stop"})
    with closing(sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)) as file:
        file.execute("PRAGMA user_version = 1")
    with closing(Cache(tmp_path / "c.sqlite")) as cache:
        assert list(cache.find(["null", "said"])) == ["said"]
        cache.keep("null", {"text": "", "finish": "stop"})
    with closing(Cache(tmp_path / "c.sqlite")) as cache:
        assert len(cache) == 2
