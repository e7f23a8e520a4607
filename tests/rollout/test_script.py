"""The real script, in real processes: killed, resumed, and given bad input."""

import base64
import json
import random
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import av
import pytest

from vega_policy.rollout.ledger import read_header, read_rows

ROOT = Path(__file__).resolve().parents[2]


def command(out_dir, *overrides):
    return [
        sys.executable,
        str(ROOT / "scripts" / "rollout.py"),
        "suite=fake_reach",
        "checkpoint=fake",
        "rollout.tasks=[0,4]",
        "rollout.init_states=3",
        f"out_dir={out_dir}",
        "name=run",
        *overrides,
    ]


def play(out_dir, *overrides):
    return subprocess.run(
        command(out_dir, *overrides), cwd=ROOT, capture_output=True, text=True, check=False
    )


def timeless(run_dir):
    rows = {}
    for row in read_rows(run_dir):
        values = row.to_json()
        del values["wall_s"], values["info"]["run"]
        rows[row.key.name()] = values
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out_dir = tmp_path_factory.mktemp("whole")
    done = play(out_dir)
    assert done.returncode == 0, done.stderr
    return out_dir / "run", json.loads(done.stdout.splitlines()[-1]), done


def test_the_last_line_is_the_result(whole):
    run_dir, result, done = whole
    rows = read_rows(run_dir)
    won = sum(r.outcome == "success" for r in rows)
    assert (result["episodes"], result["successes"], result["missing"]) == (6, won, 0)
    assert result["success_rate"] == pytest.approx(won / 6)
    assert result["interval"][0] < won / 6 <= result["interval"][1]
    assert Path(result["report"]).is_file()
    assert "reach the red block" in done.stdout
    assert "Wilson" in done.stdout


def test_killed_at_random_moments_and_resumed_gives_the_same_ledger(whole, tmp_path):
    run_dir = tmp_path / "run"
    moments = random.Random(0)  # noqa: S311
    ledger = run_dir / "ledger.jsonl"
    n_kills = 0
    for n_rows in range(4):
        process = subprocess.Popen(
            command(tmp_path, "suite.step_s=0.004"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            if ledger.exists() and ledger.read_bytes().count(b"\n") >= n_rows:
                time.sleep(moments.uniform(0.0, 0.4))
                process.kill()
                n_kills += 1
                break
            time.sleep(0.01)
        process.wait()
        if run_dir.exists():
            _all_videos_play(run_dir)
    last = play(tmp_path)
    assert last.returncode == 0, last.stderr
    assert n_kills > 1
    assert timeless(run_dir) == timeless(whole[0])
    assert len(list((run_dir / "videos").iterdir())) == 6
    assert not [p for p in run_dir.rglob(".*") if p.is_file()]
    _all_videos_play(run_dir)


def _all_videos_play(run_dir):
    for path in (run_dir / "videos").glob("[!.]*.mp4"):
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) > 3


def test_a_finished_run_is_not_played_again_and_can_be_extended(whole):
    run_dir, result, _ = whole
    before = (run_dir / "ledger.jsonl").read_bytes()
    again = play(run_dir.parent)
    assert json.loads(again.stdout.splitlines()[-1]) == result
    assert (run_dir / "ledger.jsonl").read_bytes() == before


def test_the_whole_chunk_is_recorded_as_a_number_of_actions(whole):
    run_dir, result, _ = whole
    assert read_header(run_dir).defines["n_execute"] == 8
    again = play(run_dir.parent, "rollout.n_execute=8")
    assert json.loads(again.stdout.splitlines()[-1]) == result


def test_simulator_processes_end_with_a_killed_script(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "suite.step_s=0.05"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 20
    workers = []
    while len(workers) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
        workers = children.read_text().split()
    process.kill()
    process.wait()
    assert workers
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("suite=fake_raech", "fake_reach"),
        ("rollout.tasks=[0,12]", "tasks 0 to 9"),
        ("rollout.init_states=51", "rollout.init_states=50"),
        ("rollout.cameras=[agentviw]", "did you mean 'agentview'"),
        ("rollout.workers=0", "workers is 0"),
        ("rollout.vidoe=none", "rollout.video"),
        ("rollout.video=chunk", "did you mean 'chunks'"),
        ("checkpoint=nano-libero-objekt", "no checkpoint 'nano-libero-objekt'"),
        ("name=../elsewhere", "letters, digits"),
        ("rollout.n_execute=9", "choose 1 to 8"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, override, said):
    answer = play(tmp_path / "out", override)
    assert answer.returncode == 2, answer.stderr
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_continued_with_other_settings(whole):
    run_dir, _, _ = whole
    answer = play(run_dir.parent, "rollout.seed=1", "rollout.max_steps=16")
    assert answer.returncode == 2
    assert "seed: the run has 0, now it is 1" in answer.stderr
    assert "max_steps" in answer.stderr


class _Page(HTMLParser):
    """Collects what the page refers to and checks that tags close."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.refers = [], set(), []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            if name in ("src", "href", "poster"):
                self.refers.append((tag, name, value))

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_stands_alone_and_shows_every_episode(whole):
    run_dir, _, _ = whole
    text = (run_dir / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open
    assert page.ids >= {row.key.name() for row in read_rows(run_dir)}
    assert not re.search(r"https?://", text)
    assert all(v.startswith(("data:", "#")) for _, _, v in page.refers)
    assert {v[1:] for _, _, v in page.refers if v.startswith("#")} <= page.ids
    videos = [v for tag, name, v in page.refers if (tag, name) == ("video", "src")]
    stored = {p.read_bytes() for p in (run_dir / "videos").iterdir()}
    assert {base64.b64decode(v.partition(",")[2]) for v in videos} == stored


@pytest.mark.sim
def test_the_real_simulator_and_a_real_policy_agree_on_everything(tmp_path):
    from vega_policy.testing.tiny_policy import tiny_policy

    tiny_policy(tmp_path / "tiny")
    done = play(
        tmp_path,
        "suite=libero_object",
        f"checkpoint={tmp_path / 'tiny'}",
        "rollout.tasks=[0]",
        "rollout.init_states=2",
        "rollout.max_steps=16",
        "rollout.workers=1",
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "run")
    assert [r.key.init_state_id for r in rows] == [0, 1]
    assert {(r.n_steps, r.n_chunks) for r in rows} == {(16, 2)}
    assert rows[0].state_sha256 != rows[1].state_sha256
    assert all((tmp_path / "run" / r.info["video"]).is_file() for r in rows)
    assert all(len(r.info["gate_mean"]["wrist"]) == 2 for r in rows)
