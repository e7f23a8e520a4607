"""The report in a real browser: no request, no error, filters that filter, a page that fits."""

import numpy as np
import pytest

from vega_policy.rollout.doctor import Verdict
from vega_policy.rollout.gate_map import GateTrace
from vega_policy.rollout.ledger import Ledger, RunHeader
from vega_policy.rollout.plan import Plan
from vega_policy.rollout.report import write_report
from vega_policy.rollout.video import write_mp4
from vega_policy.spec import CAMERAS, Check, EpisodeResult
from vega_policy.testing.browser import PATH, chromium

needs_browser = pytest.mark.skipif(PATH is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with everything on it: arms, perturbations, a forced preflight, an open episode."""
    run_dir = tmp_path_factory.mktemp("run")
    plan = Plan(
        suite="s",
        tasks={0: "pick <it>", 1: "place"},
        init_state_ids=(0, 1),
        perturbations=("none", "camera-1", "camera-2", "pro_lan"),
        arms=("full", "gate_clamped"),
    )
    verdict = Verdict(
        checks=(
            Check(area="machine", name="memory", status="ok", found="30 GB"),
            Check(
                area="simulator",
                name="fixture_placement",
                status="failed",
                found="2 cm off",
                expected="0",
                fix="pip install mujoco==2.3.7",
            ),
        ),
        is_forced=True,
    )
    header = RunHeader(
        defines={"suite": "s"},
        versions={"mujoco": "2.3.7"},
        plans=[plan.to_json()],
        configuration={"checkpoint": "somewhere/policy"},
        doctor=verdict.short,
    )
    rng = np.random.default_rng(0)
    gates = [{c: rng.random((4, 4), np.float32) for c in CAMERAS} for _ in range(3)]
    images = [{c: np.full((32, 32, 3), 90, np.uint8) for c in CAMERAS} for _ in range(3)]
    with Ledger.open(run_dir, header) as ledger:
        verdict.save(run_dir)
        for job in plan.jobs()[:-1]:
            wins = job.key.perturbation == "none" and job.arm == "full"
            files = {"video": f"videos/{job.name}.mp4"}
            write_mp4(run_dir / files["video"], [np.zeros((64, 128, 3), np.uint8)] * 3, fps=5)
            if job.arm == "full":
                files["gates"] = f"gates/{job.name}.npz"
                GateTrace.of(gates, images).save(run_dir / files["gates"])
            ledger.append(
                EpisodeResult(
                    key=job.key,
                    arm=job.arm,
                    outcome="success" if wins else "failure",
                    n_steps=20,
                    n_chunks=3,
                    state_sha256="",
                    wall_s=2.0,
                    info={
                        **files,
                        "run": {
                            "wait_ms": rng.gamma(2.0, 20.0, 3).tolist(),
                            "policy_ms": [{"total": float(ms)} for ms in rng.gamma(2.0, 9.0, 3)],
                            "simulate_s": 1.2,
                            "reset_s": 0.2,
                            "build_s": 0.1,
                        },
                    },
                )
            )
    return write_report(run_dir)


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(page)
        yield opened


VISIBLE = "[...document.querySelectorAll('[data-outcome]')].filter(e => e.checkVisibility())"


@needs_browser
def test_nothing_is_asked_of_a_network_and_nothing_is_complained_about(browser, page):
    browser.run("Promise.all([...document.images].map(i => i.decode()))")
    asked = {e["request"]["url"].partition(":")[0] for e in browser.of("Network.requestWillBeSent")}
    assert asked <= {"file", "data"}
    documents = [
        e["request"]["url"]
        for e in browser.of("Network.requestWillBeSent")
        if e["request"]["url"].startswith("file:")
    ]
    assert documents == [page.resolve().as_uri()]
    assert browser.of("Runtime.exceptionThrown") == []
    assert browser.of("Runtime.consoleAPICalled") == []
    assert browser.of("Log.entryAdded") == []


@needs_browser
def test_every_link_within_leads_somewhere_and_names_are_unique(browser):
    assert (
        browser.run(
            "[...document.querySelectorAll('a[href^=\"#\"]')].filter("
            "a => !document.getElementById(a.getAttribute('href').slice(1))).map(a => a.outerHTML)"
        )
        == []
    )
    ids = browser.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    wanted = {"results", "arms", "robustness", "episodes", "gates", "timing", "preflight"}
    assert wanted <= set(ids)


@needs_browser
def test_filters_combine_and_a_link_to_what_is_filtered_away_shows_it(browser):
    n_all = browser.run(f"{VISIBLE}.length")
    assert n_all == 31
    click = 'document.querySelector(\'[data-filter="{}"] [data-is="{}"]\').click()'
    browser.run(click.format("arm", "gate_clamped"))
    browser.run(click.format("perturbation", "camera-2"))
    seen = browser.run(f"{VISIBLE}.map(e => e.dataset.arm + ' ' + e.dataset.perturbation)")
    assert seen == ["gate_clamped camera-2"] * 4
    assert browser.run("document.getElementById('shown').textContent") == "4 of 31 episodes shown"
    browser.run(click.format("outcome", "success"))
    assert browser.run(f"{VISIBLE}.length") == 0
    browser.run("document.querySelector('.strip a').click()")
    assert browser.run(f"{VISIBLE}.length") == n_all
    assert browser.run("location.hash.slice(1)") == "s-task00-init000-seed0-rep0"


@needs_browser
def test_a_video_plays(browser):
    played = browser.run(
        "(async () => { const v = document.querySelector('video'); await v.play(); v.pause(); "
        "return [v.videoWidth, v.videoHeight, v.error]; })()"
    )
    assert played == [128, 64, None]


@needs_browser
def test_everything_is_reached_by_keyboard(browser):
    browser.run("document.body.focus(); location.hash = ''; window.scrollTo(0, 0)")
    browser.run("document.activeElement.blur()")
    reached = set()
    for _ in range(150):
        browser.press("Tab")
        reached.add(
            browser.run(
                "(e => e.tagName + ' ' + (e.className || e.parentElement.className))"
                "(document.activeElement)"
            )
        )
    for wanted in ("BUTTON filters", "VIDEO card clip", "A success", "DIV card scroll results"):
        assert wanted in reached, reached


@needs_browser
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_page_fits_its_window(browser, width):
    browser.size(width)
    assert browser.run("document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, scheme):
    browser.prefer(scheme)
    browser.size(1200)
    contrasts = browser.run(
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
          return ['h1', '.soft', 'nav a', '.rate', 'td', 'th', '.badge', '.banner', '.verdict',
                  '.filters button', '.mark.failed'].map(s => {
            const e = document.querySelector(s);
            const [a, b] = [lightness(getComputedStyle(e).color), lightness(behind(e))];
            return [s, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
          });
        })()"""
    )
    assert [pair for pair in contrasts if pair[1] < 4.4] == []
