"""The page a server shows to browsers on its machine: it shows, and can do one thing, stop.

Plain HTML, one script and one style sheet, nothing loaded from elsewhere. The page asks for
``/live/snapshot`` four times a second; its button is a POST to the server's emergency stop.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vega_policy.control.estop import EmergencyStop
    from vega_policy.deploy.feed import Feed

Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers, body."""

_FILES: Mapping[str, tuple[str, str]] = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/live/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/live/page.css": ("page.css", "text/css; charset=utf-8"),
}
# Nothing inline, nothing foreign, in nobody's frame: what a robot calls itself stays text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


def live_response(path: str, *, feed: Feed, estop: EmergencyStop) -> Answer | None:
    """Answer a GET of a path with its query; None where the page has nothing there.

    The caller has made sure that whoever asks may look.
    """
    url = urlsplit(path)
    if url.path in _FILES:
        name, kind = _FILES[url.path]
        return _answer(200, kind, _read(name))
    if url.path != "/live/snapshot":
        return None
    query = parse_qs(url.query, keep_blank_values=True)
    since = query.get("since", ["0"])[0]
    if not (since.isascii() and since.isdigit() and len(since) < 16):
        return _answer(400, "text/plain; charset=utf-8", b"since is a whole number, 0 at first\n")
    said = feed.snapshot(int(since), query.get("robot", [None])[0])
    said["estop"] = {"pressed": estop.is_pressed, "reason": estop.reason}
    body = json.dumps(said, allow_nan=False, separators=(",", ":")).encode()
    return _answer(200, "application/json", body)


def _answer(status: int, kind: str, body: bytes) -> Answer:
    return status, [("Content-Type", kind), *_HEADERS], body


@cache
def _read(name: str) -> bytes:
    return files(__name__).joinpath(name).read_bytes()
