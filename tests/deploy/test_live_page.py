"""The live page: what it says is true, what is old looks old, and its button stops the server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

from vega_policy.control.estop import EmergencyStop
from vega_policy.deploy.client import Client, Refused
from vega_policy.deploy.feed import Feed
from vega_policy.deploy.live import live_response
from vega_policy.deploy.wire import RequestExtras
from vega_policy.spec import CAMERAS, ActionChunk, Observation
from vega_policy.testing import browser as chrome

ROOT = Path(__file__).parents[2]
needs_browser = pytest.mark.skipif(
    chrome.PATH is None, reason="no Chromium: apt-get install chromium"
)
REPORT = {
    "state": "running",
    "reason": "",
    "schedule": "OpenLoop",
    "ticks": 200,
    "actions": 150,
    "stops": 1,
    "failed": 2,
    "latency_ms": 41.0,
    "latency_p99_ms": 93.0,
    "interventions": {"step_m": 30, "workspace": 3},
    "holds": {"no_action": 50},
}
NASTY = "<img src=x onerror=\"document.title='owned'\">"


def observation(instruction="reach the red block"):
    rng = np.random.default_rng(0)
    return Observation(
        images={c: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for c in CAMERAS},
        proprio=np.zeros(8, np.float32),
        instruction=instruction,
    )


# ---- without a browser ---------------------------------------------------------------------------


@pytest.fixture
def asked():
    feed, estop = Feed(), EmergencyStop()
    feed.answered(observation(), ActionChunk(actions=np.zeros((8, 7), np.float32)), robot="a")
    return lambda path: live_response(path, feed=feed, estop=estop)


def test_every_file_the_page_names_is_there_and_nothing_else_is(asked):
    page = asked("/")[2].decode()
    named = [part.partition('"')[0] for part in page.split('="/')[1:]]
    assert sorted(named) == ["live/page.css", "live/page.js"]
    assert [asked(f"/{name}")[0] for name in named] == [200, 200]
    assert asked("/live/page.html") is None
    assert asked("/live/../__init__.py") is None


def test_nothing_inline_and_nothing_foreign_runs_in_the_page(asked):
    status, headers, body = asked("/")
    rules = dict(headers)["Content-Security-Policy"].split("; ")
    assert status == 200
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(rules)
    assert "unsafe" not in "".join(rules)
    for text in (body, asked("/live/page.js")[2], asked("/live/page.css")[2]):
        assert b"http" not in text.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"innerHTML" not in text


@pytest.mark.parametrize("since", ["-1", "x", "", "1e3", "9" * 30, "٣"])
def test_a_snapshot_is_asked_for_with_a_number(asked, since):
    assert asked(f"/live/snapshot?since={since}")[0] == 400


def test_a_snapshot_says_whether_the_emergency_stop_is_pressed():
    feed, estop = Feed(), EmergencyStop()
    estop.press("smoke", by="a person")
    said = json.loads(live_response("/live/snapshot", feed=feed, estop=estop)[2])
    assert said["estop"] == {"pressed": True, "reason": "smoke (pressed by a person)"}


# ---- in a browser, against a server process ------------------------------------------------------


class Server:
    """scripts/serve.py with a policy without weights."""

    def __init__(self, folder, port=0):
        address = folder / f"address of {port}"
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "scripts/serve.py"),
                "checkpoint=fake",
                f"serve.port={port}",
                f"serve.port_file='{address}'",
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("w"),
        )
        end_s = time.monotonic() + 180
        while not address.exists():
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end_s
            time.sleep(0.05)
        self.url = address.read_text().strip()
        self.page = "http" + self.url.removeprefix("ws") + "/"

    def release(self):
        headers = {"X-Vega": "1"}
        request = Request(f"{self.page}estop/release?by=test", headers=headers, method="POST")  # noqa: S310
        with urlopen(request) as answer:  # noqa: S310
            assert answer.read() == b"released\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def robot(server):
    client = Client(server.url, timeout_s=60)
    client.connect()

    def ask(name="bench-left", *, instruction="reach the red block", **report):
        extras = RequestExtras(robot=name, report={**REPORT, **report})
        return client.infer(observation(instruction), extras)

    yield ask
    client.close()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chrome.chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.size(1280, 800)
        yield opened


@pytest.fixture
def page(tab, server, robot):
    """The page, with one robot on it."""
    robot()
    tab.open(server.page)
    tab.until(says("instruction", "reach the red block"))
    tab.run("choose('bench-left')")
    tab.until("known.views !== null && document.querySelectorAll('#views canvas').length === 2")
    return tab


def says(name, text):
    return f"document.getElementById({name!r}).textContent === {text!r}"


def pressed(name):
    return f"document.querySelector('[data-robot={name}]')?.getAttribute('aria-pressed') === 'true'"


def cells(page, table):
    return page.run(
        f"[...document.querySelectorAll('#{table} tr')].map("
        "r => [...r.cells].map(c => c.textContent))"
    )


@needs_browser
def test_the_page_says_what_the_server_and_the_robot_said(page, server, robot):
    robot(interventions={"step_m": 31, "workspace": 3})
    page.until("document.getElementById('interventions').textContent.includes('31')")
    with urlopen(f"{server.page}live/snapshot?robot=bench-left") as answer:  # noqa: S310
        said = json.load(answer)
    assert page.run("document.getElementById('answered').textContent") == str(said["answered"])
    assert page.run(f"Math.abs(parseFloat(at('p50').textContent) - {said['latency']['p50']}) < 0.6")
    assert sum(said["latency"]["counts"]) == int(page.run("at('of').textContent"))
    assert cells(page, "interventions") == [
        ["step_m", "31", "20.7 %"],
        ["workspace", "3", "2.0 %"],
    ]
    assert cells(page, "holds") == [["no_action", "50", "25.0 %"]]
    facts = dict(cells(page, "facts"))
    assert facts["actions, of steps"] == "150, 200"
    assert facts["answer after, p99"] == "41 ms, 93 ms"
    assert page.run("at('state').textContent") == "running"
    assert page.run("document.querySelectorAll('#timeline .in-force').length") >= 1
    assert page.run("document.body.dataset.connection") == "live"


@needs_browser
def test_the_gate_map_lies_over_the_picture_and_can_be_taken_away(page):
    corner = "[...document.querySelector('#views canvas').getContext('2d').getImageData(5, 5, 1, 1).data]"
    gated = page.run(corner)
    low, high = page.run("[Number(at('low').textContent), Number(at('high').textContent)]")
    assert 0 <= low < high <= 1
    page.click("#gate")
    page.until("at('scale').hidden")
    plain = page.run(corner)
    assert gated != plain
    assert page.run("at('gate').getAttribute('aria-pressed')") == "false"
    page.click("#gate")
    page.until("!at('scale').hidden")
    assert page.run(corner) == gated


@needs_browser
def test_the_robot_that_is_chosen_is_the_one_that_is_shown(page, robot):
    robot("bench-right", instruction="open the drawer", state="stopped", reason="no camera")
    page.until("!!document.querySelector('[data-robot=bench-right]')")
    assert page.run(pressed("bench-left"))
    page.run("document.querySelector('[data-robot=bench-right]').click()")
    page.until(says("instruction", "open the drawer"))
    assert page.run(pressed("bench-right"))
    page.until(says("reason", "no camera"))


@needs_browser
def test_what_a_robot_calls_itself_stays_text(page, robot):
    robot(NASTY, instruction=NASTY, reason=NASTY, interventions={NASTY: 3}, holds={NASTY: 1})
    name = json.dumps(NASTY)
    page.until(f"known.said.robots[{name}] !== undefined")
    page.run(f"choose({name})")
    page.until(f"at('instruction').textContent === {name}")
    assert NASTY in page.run("at('interventions').textContent")
    assert page.run("document.querySelector('img')") is None
    assert page.run("document.title") == "Policy server"


@needs_browser
def test_a_robot_that_asks_no_more_is_not_shown_as_now(page, robot):
    robot()
    page.until("!document.querySelector('.views').classList.contains('old')")
    page.until("document.querySelector('.views').classList.contains('old')")
    assert page.run("document.body.dataset.connection") == "live"
    assert page.run("document.querySelector('.robot').classList.contains('old')")
    assert page.run("at('state').textContent") == "was running"
    assert page.run("getComputedStyle(document.querySelector('#views canvas')).filter") != "none"


@needs_browser
@pytest.mark.parametrize("by", ["mouse", "Enter"])
def test_the_button_stops_the_server_until_a_person_releases_it(page, server, robot, by):
    robot()
    assert page.run("at('banner').checkVisibility()") is False
    if by == "mouse":
        page.click("#estop")
    else:
        page.run("at('estop').focus()")
        page.press("Enter")
    page.until("at('banner').checkVisibility()")
    page.until("at('why').textContent.includes('live page')")
    with pytest.raises(Refused, match="live page") as refusal:
        robot()
    assert refusal.value.kind == "stopped"
    assert page.run("at('estop').getAttribute('aria-pressed')") == "true"
    page.until("at('events').textContent.includes('pressed by live page')")
    page.click("#estop")  # again: it latches, and does not toggle
    page.run("ask()")
    with pytest.raises(Refused):
        robot()
    assert "/estop/release?by=NAME" in page.run("at('release').textContent")
    server.release()
    page.until("!at('banner').checkVisibility()")
    assert robot().actions.shape == (8, 7)
    assert page.run("at('estop').textContent.includes('Emergency stop')")


@needs_browser
def test_the_space_bar_does_not_press_the_button(page, robot):
    page.run("at('estop').focus()")
    page.press(" ")
    page.press("Tab")
    said = page.run("fetch('/live/snapshot').then(a => a.json()).then(said => said.estop.pressed)")
    assert said is False
    robot()


@needs_browser
def test_nothing_is_asked_of_a_network_and_nothing_is_complained_about(page, server):
    asked = {e["request"]["url"].partition("?")[0] for e in page.of("Network.requestWillBeSent")}
    base = server.page
    known = {base, *(f"{base}live/{name}" for name in ("page.css", "page.js", "snapshot"))}
    assert {url for url in asked if not url.startswith("data:")} == known
    for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
        assert page.of(kind) == []


@needs_browser
@pytest.mark.parametrize("width", [360, 800, 1280, 1700])
def test_the_page_fits_its_window(page, width):
    page.size(width, 800)
    assert page.run("document.documentElement.scrollWidth") <= width
    if width == 1280:
        assert page.run("document.documentElement.scrollHeight") <= 800
    page.size(1280, 800)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, robot, scheme):
    page.prefer(scheme)
    robot()
    page.until("document.querySelector('#state.running') !== null && at('age').textContent !== ''")
    contrasts = page.run(
        """(() => {
          const lightness = colour => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(
              v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const behind = e => {
            const colour = getComputedStyle(e).backgroundColor;
            return colour !== 'rgba(0, 0, 0, 0)' || !e.parentElement ? colour
              : behind(e.parentElement);
          };
          at('banner').hidden = false;
          return ['h1', 'h2', '.soft', '#connection', '#state', '#estop b', '#banner p',
                  '#banner code', '[aria-pressed="true"]', '#robots button', 'td', 'th',
                  'figcaption', '#events .kind', '#events time', '.keys span'].map(s => {
            const e = document.querySelector(s);
            const [a, b] = [lightness(getComputedStyle(e).color), lightness(behind(e))];
            return [s, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
          });
        })()"""
    )
    page.prefer("light")
    assert [pair for pair in contrasts if pair[1] < 4.4] == []


@needs_browser
def test_a_server_that_hangs_or_is_gone_leaves_nothing_that_looks_live(tmp_path, tab):
    server = Server(tmp_path)
    gone = "document.body.dataset.connection === 'gone'"
    live = "document.body.dataset.connection === 'live'"
    grey = "getComputedStyle(document.querySelector('main')).filter"
    try:
        tab.open(server.page)
        tab.until(live)
        assert tab.run(grey) == "none"
        assert tab.run("GONE_MS + 100 <= 2000")
        os.kill(server.process.pid, signal.SIGSTOP)  # takes connections, and never answers
        tab.until(gone)
        assert "grayscale" in tab.run(grey)
        assert tab.run("at('connection').textContent").startswith("no answer since")
        os.kill(server.process.pid, signal.SIGCONT)
        tab.until(live)
        assert tab.run(grey) == "none"
    finally:
        server.process.kill()
        server.process.wait()
    tab.until(gone)
    assert tab.run("document.title") == "(no answer) Policy server"
    # A press that cannot arrive says so, and arrives as soon as there is a server again.
    tab.click("#estop")
    tab.until("at('estop-note').textContent.includes(\"robot's own button\")")
    server = Server(tmp_path, port=int(server.page.rpartition(":")[2].strip("/")))
    try:
        tab.until("at('banner').checkVisibility() && !pressing")
        with urlopen(f"{server.page}live/snapshot") as answer:  # noqa: S310
            assert json.load(answer)["estop"]["pressed"]
    finally:
        server.process.kill()
        server.process.wait()
