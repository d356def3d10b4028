"""Headless Chromium over its debugging pipe (Chrome DevTools Protocol): as much as the test of the page needs."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Navigated(Exception):
    """The page went to an address, or was loaded anew, before it had answered the call."""


class Browser:
    """A Chromium. It ends when its pipe does: with this process, at the latest."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def pipes() -> None:  # the browser reads commands from 3 and answers on 4
            low, high = os.dup(to_read), os.dup(to_write)
            os.dup2(low, 3)
            os.dup2(high, 4)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command = [CHROMIUM, *options, f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number = b"", 0
        atexit.register(self.close)

    def call(self, method: str, session: str, events: list[dict[str, Any]], **params: Any) -> dict[str, Any]:
        """The answer to a command. events: gets what the session's page said of itself meanwhile."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                part = os.read(self._read, 2**20)
                assert part, "the browser is gone"
                self._buffer += part
            raw, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(raw)
            if answer.get("id") == self._number:
                return answer
            if answer.get("sessionId") == session:
                events.append(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


browser = cache(Browser)


class Page:
    """A page that shares nothing but its browser with others. complaints: what it wrote to the console or threw."""

    def __init__(self, url: str, width: int = 1000, height: int = 900, dark: bool = False):
        self._session = ""
        self.complaints: list[str] = []
        self._profile = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=self._profile)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        events: list[dict[str, Any]] = []
        answer = browser().call(method, self._session, events, **params)
        for event in events:
            if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.complaints.append(json.dumps(event["params"])[:500])
        if "navigated or closed" in answer.get("error", {}).get("message", ""):
            raise Navigated(method)
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not self._holds(expression):
            assert time.monotonic() < deadline, f"never came: {expression}; {self.complaints}"
            time.sleep(0.1)

    def _holds(self, expression: str) -> bool:
        try:
            return bool(self.js(expression))
        except Navigated:  # the question was put to the page that left
            return False

    def press(self, key: str, code: int, ctrl: bool = False, text: str = "") -> None:
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self) -> str:
        """The whole page as PNG in base64."""
        return self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]

    def close(self) -> None:
        self._session = ""
        self.call("Target.disposeBrowserContext", browserContextId=self._profile)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
