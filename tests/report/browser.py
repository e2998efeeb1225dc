"""A headless Chromium, driven over a pipe by the DevTools protocol: no package is needed for that."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 30.0


def find_browser() -> str | None:
    """The command of a browser that speaks the protocol."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """A page of the browser.

    Attributes:
        complaints: what the console said since the page was opened: errors, warnings, what could not be loaded.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._session: str | None = None
        self._number = 0
        self._pending = b""
        self._loaded = False
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, theme: str = "light", media: str = "screen") -> None:
        """Show a file in a window of this width, by the light or the dark theme, on screen or as printed."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self._call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": theme}]
        )
        self.complaints, self._loaded = [], False
        self._call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        image = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(image))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser said nothing for {_SECONDS:g} s"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has gone"
            self._pending += part
        text, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "Page.loadEventFired"}:
                self._loaded = True
            case {"method": "Runtime.consoleAPICalled", "params": said}:
                self.complaints.append(f"console: {said['args']}")
            case {"method": "Runtime.exceptionThrown", "params": said}:
                self.complaints.append(f"exception: {said['exceptionDetails']['text']}")
            case {"method": "Log.entryAdded", "params": said}:
                self.complaints.append(f"log: {said['entry']['text']}")
            case {"method": "Network.requestWillBeSent", "params": said} if said["type"] != "Document":
                if not said["request"]["url"].startswith("data:"):
                    self.complaints.append(f"request: {said['request']['url']}")


@contextmanager
def browser_tab(profile: Path) -> Iterator[Tab]:
    """A browser with one page; it ends with the context."""
    command = find_browser()
    assert command is not None
    from_us, to_browser = os.pipe()
    from_browser, from_them = os.pipe()
    options = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    # As root it has no sandbox; the page is ours, and loads nothing.
    options += ["--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    # The protocol's pipe is at 3 and 4.
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{from_them}', "bash", command, *options],
        pass_fds=(from_us, from_them),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(from_them)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        # It ends when its pipe does.
        os.close(to_browser)
        os.close(from_browser)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
