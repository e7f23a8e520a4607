"""A headless Chromium for tests of pages: driven over a pipe, with the standard library alone.

The protocol is Chrome's DevTools protocol, https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
PATH = next(filter(None, map(shutil.which, _NAMES)), None)
"""Of the browser; None where there is none: apt-get install chromium."""


class Browser:
    """One page of a headless Chromium that reaches nothing but files and 127.0.0.1."""

    def __init__(self, read: int, write: int, *, timeout_s: float = 120.0) -> None:
        """Attach to the page that is there; ``timeout_s`` is the longest it may say nothing."""
        self._read, self._write = read, write
        self._timeout_s = timeout_s
        self._n = 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        """What the browser told unasked since the last `open`."""
        targets = self.call("Target.getTargets", session=False)["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attach = {"targetId": target, "flatten": True}
        self._session = self.call("Target.attachToTarget", attach, session=False)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(
        self, method: str, params: dict[str, Any] | None = None, *, session: bool = True
    ) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._n += 1
        message: dict[str, Any] = {"id": self._n, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._n:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path | str) -> None:
        """Load a file or an address."""
        self.events.clear()
        url = page.resolve().as_uri() if isinstance(page, Path) else page
        self.call("Page.navigate", {"url": url})
        while not self.of("Page.loadEventFired"):
            self.events.append(self._message())

    def of(self, method: str) -> list[dict[str, Any]]:
        """Return the events of a kind since the last `open`."""
        return [e["params"] for e in self.events if e.get("method") == method]

    def run(self, script: str) -> Any:  # noqa: ANN401 - whatever the script returns
        """Evaluate a script in the page and return its value."""
        options = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", options)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, script: str, *, timeout_s: float = 60.0) -> Any:  # noqa: ANN401
        """Return the first value of a script that is true.

        Raises:
            AssertionError: There was none in time.
        """
        end_s = time.monotonic() + timeout_s
        while not (value := self.run(script)):
            if time.monotonic() > end_s:
                raise AssertionError(f"never true: {script}\n{self.run('document.body.innerText')}")
            time.sleep(0.02)
        return value

    def press(self, key: str) -> None:
        """Press and let go of a key: ``Tab``, ``Enter`` or the space bar."""
        code, text = _KEYS[key]
        named = {"key": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", {**named, **down})
        self.call("Input.dispatchKeyEvent", {**named, "type": "keyUp"})

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element, whatever lies over it."""
        x, y = self.run(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", {"type": kind, **where})

    def size(self, width: int, height: int = 900) -> None:
        """Set the size of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def prefer(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", {"features": [feature]})

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], self._timeout_s)[0]:
                raise TimeoutError(f"the browser said nothing for {self._timeout_s:g} s")
            part = os.read(self._read, 1 << 16)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)


@contextmanager
def chromium(profile: Path) -> Generator[Browser]:
    """Yield a `Browser` that keeps its files in ``profile``; its process ends with the block."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = [
        str(PATH),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-extensions",
        "--disable-background-networking",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    # The protocol's pipe is at descriptors 3 and 4, which only a shell puts there portably.
    shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(  # noqa: S603 - a command of ours
        ["/bin/bash", "-c", shell, "bash", *command],
        pass_fds=[theirs_in, theirs_out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_in, ours_out)
    finally:
        process.kill()
        process.wait()
        os.close(ours_in)
        os.close(ours_out)
