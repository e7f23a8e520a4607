"""The real script on runs made by hand: what pairs, what is refused, what the page holds."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from vega_policy.rollout.compare import compare, pair_rows, seen, to_json
from vega_policy.rollout.comparison_page import page
from vega_policy.rollout.ledger import ROWS, Ledger, RunHeader
from vega_policy.rollout.plan import Plan
from vega_policy.spec import ContractError, EpisodeKey, EpisodeResult
from vega_policy.spec.intervals import wilson

ROOT = Path(__file__).resolve().parents[2]
TASKS = {0: "pick_the_soup", 1: "pick_the_milk"}


def row(state, outcome, *, task=0, arm="full", perturbation="none", suite="s", **more):
    values = {
        "key": EpisodeKey(suite, task, state, perturbation),
        "outcome": outcome,
        "n_steps": 10,
        "n_chunks": 2,
        "state_sha256": f"{suite} {task} {state} {outcome}",
        "wall_s": 0.5,
        "arm": arm,
        "state_hashes": ("start",),
    }
    return EpisodeResult(**{**values, **more})


def rows_of(outcomes, **more):
    """One row per letter: + won, - lost, ! policy fault, space not played."""
    names = {"+": "success", "-": "failure", "!": "policy_fault"}
    return [row(i, names[letter], **more) for i, letter in enumerate(outcomes) if letter != " "]


def write_run(path, rows, *, n_planned=None, **settings):
    arms = tuple(dict.fromkeys(r.arm for r in rows)) or ("full",)
    changes = tuple(dict.fromkeys(r.key.perturbation for r in rows)) or ("none",)
    states = n_planned or 1 + max((r.key.init_state_id for r in rows), default=0)
    suite = settings.get("suite", "s")
    plan = Plan(
        suite=suite,
        tasks={t: TASKS[t] for t in sorted({r.key.task_id for r in rows} or {0})},
        init_state_ids=tuple(range(states)),
        arms=arms,
        perturbations=changes,
    )
    defines = {
        "checkpoint_sha256": path.name,
        "device": "cpu",
        "suite": "s",
        "seed": 0,
        "starts": "evaluation",
        "max_steps": None,
        "n_execute": 8,
        "camera_px": 128,
    }
    versions = {"mujoco": "2.3.7", "robosuite": "1.4.0", "torch": "2.13.0", "libero": "0.1.1"}
    header = RunHeader(
        defines={**defines, **{k: v for k, v in settings.items() if k in defines}},
        versions={**versions, **{k: v for k, v in settings.items() if k in versions}},
        plans=[plan.to_json()],
        configuration={"checkpoint": path.name},
        created="2026-01-01",
        commit=settings.get("commit", ""),
        host={"renderer": settings.get("renderer", "osmesa")},
        doctor=settings.get("doctor", {}),
    )
    with Ledger.open(path, header) as ledger:
        for r in rows:
            ledger.append(r)
    return str(path)


def play(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


A = "++++++++++++++++++-- "
B = "--------------+++++++"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two runs that differ, and what the script says of them."""
    folder = tmp_path_factory.mktemp("both")
    rows_a = [*rows_of(A), *rows_of("++!--", task=1)]
    rows_b = [*rows_of(B), *rows_of("++-- ", task=1)]
    won = rows_a[0]
    rows_a[0] = dataclasses.replace(won, info={"video": f"videos/{won.name} #1.mp4"})
    write_run(folder / "runs" / "first", rows_a, n_planned=25)
    write_run(folder / "runs" / "second", rows_b)
    (folder / "runs" / "first" / "videos").mkdir()
    (folder / "runs" / "first" / "videos" / f"{won.name} #1.mp4").write_bytes(b"no film")
    return folder, play("runs/first", "runs/second", cwd=folder)


def test_the_last_line_has_what_the_pairs_say(both):
    folder, done = both
    result = result_of(done)
    assert result["n_pairs"] == 24
    assert result["difference"] == pytest.approx((14 - 2) / 24)
    assert result["interval"][0] < 0.5 < result["interval"][1]
    assert result["p_value"] == pytest.approx(2 * (1 + 16 + 120) / 2**16)
    assert result["verdict"] == "separated: A is better"
    assert result["detectable"] > 0
    first, second = result["tasks"]
    assert (first["n_a_only"], first["n_b_only"], first["n_pairs"]) == (14, 2, 20)
    assert (first["name"], first["verdict"]) == ("pick the soup", "separated: A is better")
    assert first["p_adjusted"] == pytest.approx(2 * first["p_value"])
    # A policy fault is an episode without success, and says so.
    assert (second["n_a_only"], second["n_b_only"]) == (0, 0)
    assert second["verdict"] == "not separated"
    assert any("policy faults: 1 in A, 0 in B" in note for note in result["notes"])
    assert json.loads((folder / "runs/compare-first-second/comparison.json").read_text())
    assert not result["is_forced"]


def test_the_table_says_it_in_words(both):
    _, done = both
    assert "not separated" in done.stdout
    assert "pick the milk" in done.stdout
    assert "20/24 [64, 93 %]" in done.stdout
    assert "8/24" in done.stdout
    assert "exact McNemar p = 0.0042" in done.stdout
    assert "in 80 % of comparisons" in done.stdout
    assert "equal" not in done.stdout.replace("unequal", "")


def test_unpaired_rows_are_counted_with_the_reason(both):
    _, done = both
    unpaired = {(u["side"], u["why"].split()[1]): u["n"] for u in result_of(done)["unpaired"]}
    assert unpaired == {("A", "planned"): 1, ("B", "planned"): 1}
    assert "the other side has not finished them" in done.stdout


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        self.addresses += [v for k, v in attrs if k in ("href", "src", "poster") and v]


def test_the_page_stands_alone_and_its_links_lead_somewhere(both):
    folder, done = both
    path = folder / result_of(done)["report"]
    text = path.read_text()
    links = Links()
    links.feed(text)
    assert "http" not in text.replace("http-equiv", "")
    assert "not separated" in text
    files = [a for a in links.addresses if not a.startswith(("#", "data:"))]
    assert len(files) == 1
    assert (path.parent / unquote(files[0])).is_file()
    ids = [a[1:] for a in links.addresses if a.startswith("#")]
    assert all(f'id="{i}"' in text for i in ids)
    assert text.count("<tr data-won=") == 16


def test_two_arms_of_one_run(tmp_path):
    rows = [*rows_of("++++++++-", arm="gate_clamped"), *rows_of("+-------+", arm="full")]
    write_run(tmp_path / "run", rows)
    result = result_of(play("run", cwd=tmp_path))
    assert (result["a"]["label"], result["b"]["label"]) == ("run:full", "run:gate_clamped")
    assert result["difference"] == pytest.approx((1 - 7) / 9)
    assert result["verdict"] == "not separated"
    same = result_of(play("run:full", "run:gate_clamped", "out=here", cwd=tmp_path))
    assert same["difference"] == result["difference"]
    assert (tmp_path / "here" / "comparison.html").is_file()


def test_clean_episodes_are_the_headline_and_perturbations_a_family(tmp_path):
    for name, clean, camera in (("a", "++++++++", "++++++++"), ("b", "+++++++-", "--------")):
        write_run(tmp_path / name, [*rows_of(clean), *rows_of(camera, perturbation="camera-2")])
    result = result_of(play("a", "b", cwd=tmp_path))
    assert (result["n_pairs"], result["of"]) == (8, "clean episodes")
    clean, camera = result["perturbations"]
    assert (clean["perturbation"], clean["verdict"]) == ("none", "not separated")
    assert (camera["perturbation"], camera["n_a_only"]) == ("camera-2", 8)
    assert camera["p_adjusted"] == pytest.approx(2 * 2 / 2**8)


def test_perturbed_episodes_pair_with_their_clean_ones(tmp_path):
    rows = [
        *rows_of("++++++++-"),
        *rows_of("--------+", perturbation="camera-2"),
        *rows_of("++++++++ ", perturbation="wording-1"),
        row(30, "success", perturbation="wording-1"),
        *rows_of("--", arm="gate_clamped", perturbation="camera-2"),
    ]
    write_run(tmp_path / "run", rows)
    result = result_of(play("run", "by=perturbation", cwd=tmp_path))
    assert result["n_pairs"] == 17
    assert any("part of up to 2 pairs" in note for note in result["notes"])
    camera, wording = result["perturbations"]
    assert [camera["difference"], wording["difference"]] == [pytest.approx(-7 / 9), 0]
    assert (camera["rate_a"], camera["rate_b"]) == (pytest.approx(1 / 9), pytest.approx(8 / 9))
    assert wording["verdict"] == "not separated"
    assert result["unpaired"] == [{"side": "A", "n": 1, "why": "the clean episode was not played"}]


def test_a_side_may_have_a_run_per_suite(tmp_path):
    for suite in ("s", "t"):
        for name, outcomes in (("a", "++++++++"), ("b", "-------+")):
            write_run(tmp_path / f"{name}-{suite}", rows_of(outcomes, suite=suite), suite=suite)
    result = result_of(play("a=[a-s,a-t]", "b=[b-s,b-t]", cwd=tmp_path))
    assert (result["n_pairs"], result["n_a_only"]) == (16, 14)
    assert [s["suite"] for s in result["suites"]] == ["s", "t"]
    assert result["suites"][0]["p_adjusted"] == pytest.approx(2 * 2 / 2**7)
    assert len(result["tasks"]) == 2


def test_settings_that_decide_results_are_refused_all_at_once_unless_forced(tmp_path):
    write_run(tmp_path / "a", rows_of("++++"))
    other = {"max_steps": 300, "mujoco": "3.3.0", "torch": "2.14.0", "renderer": "egl"}
    write_run(tmp_path / "b", rows_of("+-+-"), n_execute=4, **other)
    done = play("a", "b", cwd=tmp_path)
    assert done.returncode == 2
    for part in (
        "max_steps: A has None, B has 300",
        "n_execute",
        "version of mujoco",
        "renderer: A has osmesa, B has egl",
    ):
        assert part in done.stderr
    assert "torch" not in done.stderr
    assert "force=true" in done.stderr
    assert not (tmp_path / "runs").exists()
    forced = play("a", "b", "force=true", cwd=tmp_path)
    result = result_of(forced)
    assert result["is_forced"]
    assert len(result["disagreements"]) == 4
    assert any("torch: A has 2.13.0, B has 2.14.0" in note for note in result["notes"])
    assert not any("renderer" in note for note in result["notes"])
    assert "FORCED" in forced.stdout
    assert "Forced." in (tmp_path / result["report"]).read_text()


def test_what_comes_with_the_policy_or_decides_nothing_is_a_note(tmp_path):
    """A checkpoint says how large its images are; an older run does not say what drew them."""
    write_run(tmp_path / "a", rows_of("++++"), renderer="llvmpipe (LLVM 15.0.6, 256 bits)")
    other = {"camera_px": 256, "libero": "0.2.0", "commit": "abc", "device": "cuda"}
    write_run(tmp_path / "b", rows_of("++++"), renderer="llvmpipe (LLVM 15.0.6, 128 bits)", **other)
    found = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found.disagreements == ()
    assert {
        "camera_px: A has 128, B has 256",
        "version of libero: A has 0.1.1, B has 0.2.0",
        "commit: A has none, B has abc",
        "device: A has cpu, B has cuda",
    } == set(found.notes)
    write_run(tmp_path / "c", rows_of("++++"), renderer="")
    old = compare(str(tmp_path / "c"), str(tmp_path / "a"))
    assert "renderer: A has unknown, B has llvmpipe (LLVM 15.0.6)" in old.notes


def test_intervals_of_rates_follow_alpha(tmp_path):
    for name, outcomes in (("a", "+++++++-"), ("b", "++------")):
        write_run(tmp_path / name, rows_of(outcomes))
    usual, strict = (
        compare(str(tmp_path / "a"), str(tmp_path / "b"), alpha=alpha) for alpha in (0.05, 0.01)
    )
    assert usual.total.a.interval == pytest.approx(wilson(7, 8, confidence=0.95))
    for group in (strict.total, *strict.tasks.values()):
        assert group.a.interval == pytest.approx(wilson(7, 8, confidence=0.99))
        assert group.b.interval == pytest.approx(wilson(2, 8, confidence=0.99))


def test_the_best_case_is_called_so(tmp_path):
    write_run(tmp_path / "a", rows_of("++++++++++++++++++++"))
    write_run(tmp_path / "b", rows_of("+++++++++++++++++++-"))
    found = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "5 % end differently, as here, no difference is found in 80 %" in seen(found)
    assert "one policy wins all of these" in seen(found)
    assert to_json(found)["is_best_case"]
    assert "at best" in page(found, folder=tmp_path)


def test_other_starts_seeds_and_suites_are_refused(tmp_path):
    write_run(tmp_path / "a", rows_of("++++"))
    for name, setting in (("starts", "sampled"), ("seed", 3), ("suite", "t")):
        write_run(tmp_path / name, rows_of("++++", suite="s"), **{name: setting})
        with pytest.raises(ContractError, match=f"{name}: A has"):
            compare(str(tmp_path / "a"), str(tmp_path / name))


def test_unequal_start_states_are_refused_on_one_kind_of_processor(tmp_path):
    write_run(tmp_path / "a", rows_of("++"))
    write_run(tmp_path / "b", [row(0, "success"), row(1, "success", state_hashes=("moved",))])
    with pytest.raises(ContractError, match="1 of 2 pairs begin from unequal simulator states"):
        compare(str(tmp_path / "a"), str(tmp_path / "b"))
    elsewhere = row(1, "success", state_hashes=("moved",), made_with={"cpu_class": "aarch64"})
    write_run(tmp_path / "c", [row(0, "success"), elsewhere])
    found = compare(str(tmp_path / "a"), str(tmp_path / "c"))
    assert any("processor" in note for note in found.notes)


def test_repetitions_without_anything_new_are_pointed_out(tmp_path):
    def again(r):
        return dataclasses.replace(r, key=dataclasses.replace(r.key, repetition=1))

    for name in "ab":
        rows = rows_of("++-")
        write_run(tmp_path / name, [*rows, *map(again, rows)])
    notes = " ".join(compare(str(tmp_path / "a"), str(tmp_path / "b")).notes)
    assert "3 pairs repeat another" in notes


def test_a_failed_preflight_is_mentioned(tmp_path):
    write_run(tmp_path / "a", rows_of("++"), doctor={"failed": ["gripper"], "is_forced": True})
    write_run(tmp_path / "b", rows_of("++"))
    notes = " ".join(compare(str(tmp_path / "a"), str(tmp_path / "b")).notes)
    assert "preflight of a did not pass: gripper" in notes


def test_pairing_ignores_the_arm_and_the_order():
    a, b = rows_of("+-+", arm="full"), rows_of(" --", arm="other")
    pairs, only_a, only_b = pair_rows(reversed(a), b)
    assert [p.won for p in pairs] == [(False, False), (True, False)]
    assert [r.key.init_state_id for r in only_a] == [0]
    assert only_b == []


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    runs = folder / "runs"
    write_run(runs / "good", [*rows_of("++-"), *rows_of("++-", arm="gate_clamped")])
    write_run(runs / "copy", rows_of("++-"))
    write_run(runs / "elsewhere", rows_of("+", task=1))
    write_run(runs / "empty", [])
    write_run(runs / "damaged", rows_of("++-"))
    content = (runs / "damaged" / ROWS).read_bytes()
    (runs / "damaged" / ROWS).write_bytes(b"{" + content)
    (runs / "no-run").mkdir()
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a run, two runs, or plan"),
        (["runs/good", "runs/damaged"], "line 1 is damaged"),
        (["runs/good", "by=pertubation"], "did you mean 'perturbation'"),
        (["runs/good", "pairs=500"], "compare.py plan"),
        (["a=5", "b=6"], "there is no run 5"),
        (["plan", "runs/good"], "looks at no run"),
        (["plan", "difference=0.05", "discordant=0.01"], "at least that share"),
        (["plan", "difference=0.96"], "no two success rates differ by 0.96"),
    ],
)
def test_bad_input_ends_the_script_with_what_to_do(bad, arguments, said):
    done = play(*arguments, cwd=bad)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(bad.glob("runs/compare*"))


@pytest.mark.parametrize(
    ("a", "b", "more", "said"),
    [
        ("runs/god", "runs/good", {}, "did you mean 'good'"),
        ("runs/no-run", "runs/good", {}, "has no run.json"),
        ("runs/good", "runs/good", {}, "is on both sides"),
        ("runs/good:full", "runs/../runs/good", {}, "is on both sides"),
        (
            "runs/good",
            "runs/elsewhere",
            {},
            "no common episode: A has s, tasks 0, initial states 0-2",
        ),
        ("runs/good", "runs/empty", {}, "no finished episode"),
        ("runs/good:gate_clampt", "runs/elsewhere", {}, "did you mean 'gate_clamped'"),
        ("runs/elsewhere", None, {}, "give two sides"),
        (["runs/good", "runs/good:full"], "runs/elsewhere", {}, "the same :arm"),
        (["runs/good", "runs/copy"], "runs/elsewhere", {}, "both have episode"),
        ("runs/good", None, {"by": "perturbation"}, "no perturbed episode whose clean one"),
        ("runs/good", "runs/elsewhere", {"by": "perturbation"}, "leave out the second run"),
        ("runs/good", None, {"alpha": 2.0}, "alpha is 2.0"),
    ],
)
def test_bad_input_is_answered_with_what_to_do(bad, monkeypatch, a, b, more, said):
    monkeypatch.chdir(bad)
    with pytest.raises(ContractError, match=re.escape(said)):
        compare(a, b, **more)


def test_a_plan_answers_before_anything_is_run(tmp_path):
    done = play("plan", "pairs=500", "discordant=0.02", cwd=tmp_path)
    result = result_of(done)
    assert (result["pairs"], result["discordant"]) == (500, 0.02)
    assert 0.017 < result["detectable"] < 0.019
    assert result["detectable_unpaired"] > 0.04
    assert {row["pairs"] for row in result["table"]} > {50, 500, 2000}
    assert "a difference of 1.8 points is found in 80 % of comparisons" in done.stdout
    assert " 15.4*" in done.stdout
    assert "* at best" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_a_difference_gives_the_pairs(tmp_path):
    result = result_of(play("plan", "difference=0.003", "discordant=0.01", cwd=tmp_path))
    assert 8_700 < result["pairs"] < 9_300
    both = result_of(play("plan", "difference=0.02", "pairs=500", "discordant=0.05", cwd=tmp_path))
    assert 0.4 < both["power_reached"] < 0.5
