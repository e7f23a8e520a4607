"""Each probe fails on the policy or machine that is broken in its way, and on no other."""

import dataclasses
import hashlib
import importlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vega_policy.rollout.doctor import (
    Machine,
    Needs,
    Verdict,
    keep,
    load_verdict,
    machine_checks,
    policy_checks,
    preflight,
    read_machine,
)
from vega_policy.rollout.doctor import machine as machine_of
from vega_policy.rollout.doctor.lines import line, summary
from vega_policy.rollout.doctor.machine import Gpu, parse_gpus
from vega_policy.rollout.doctor.samples import load_samples, suites
from vega_policy.rollout.ledger import Ledger, RunHeader, read_header
from vega_policy.spec import CAMERAS, ActionChunk, ActionSpec, Check, ContractError, PolicyFault
from vega_policy.testing.fake_policy import FakePolicy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def observations():
    return load_samples("libero_object", image_px=32)


class Sound:
    """A policy that reads everything and nothing else; subclasses break it in one way."""

    action_spec = ActionSpec()

    def act(self, batch, *, keys):
        return [self.answer(o, k) for o, k in zip(batch, keys, strict=True)]

    def answer(self, observation, key):
        return ActionChunk(actions=self.actions(observation, key), gate=self.gate(observation))

    def actions(self, observation, key):
        numbers = [observation.images[c].mean() / 255 for c in CAMERAS]
        numbers += [*observation.proprio[:3], self.read(observation.instruction)]
        rng = np.random.default_rng(3)
        weights = rng.normal(0, 0.3, (8, 7, len(numbers)))
        return np.tanh(weights @ np.array(numbers) + 0.01 * (key % 3)).astype(np.float32)

    def read(self, instruction):
        return int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:2]) / 65536

    def gate(self, observation):
        return {c: np.full((2, 2), 0.4, np.float32) for c in observation.images}


class BlindTo(Sound):
    def __init__(self, camera):
        self.camera = camera

    def actions(self, observation, key):
        images = {**observation.images, self.camera: np.zeros((2, 2, 3), np.uint8)}
        return super().actions(dataclasses.replace(observation, images=images), key)


class Deaf(Sound):
    def read(self, instruction):  # noqa: ARG002
        return 0.0


class WithoutProprio(Sound):
    def actions(self, observation, key):
        return super().actions(
            dataclasses.replace(observation, proprio=np.zeros(8, np.float32)), key
        )


class GlobalDraws(Sound):
    def actions(self, observation, key):
        noise = 1e-3 * np.random.normal(size=(8, 7)) + 1e-3 * random.random()  # noqa: NPY002, S311
        return np.clip(super().actions(observation, key) + noise, -1, 1).astype(np.float32)


class Leaking(Sound):
    """Answers everybody with the mean of the batch."""

    def act(self, batch, *, keys):
        chunks = super().act(batch, keys=keys)
        mean = np.mean([c.actions for c in chunks], axis=0)
        return [dataclasses.replace(c, actions=mean) for c in chunks]


class Shut(Sound):
    def gate(self, observation):
        return {c: np.full((2, 2), 0.9999, np.float32) for c in observation.images}


class Misshapen(Sound):
    def actions(self, observation, key):
        return super().actions(observation, key)[:5]


class NotFinite(Sound):
    def actions(self, observation, key):
        actions = super().actions(observation, key)
        actions[2, 3] = np.nan
        return actions


class TooLarge(Sound):
    def actions(self, observation, key):
        return 3 * super().actions(observation, key)


class Raising(Sound):
    def act(self, batch, *, keys):  # noqa: ARG002
        raise PolicyFault("the model returned actions that are not finite")


def examine(policy, observations, **options):
    found = list(policy_checks(policy, observations, suite="libero_object", **options))
    assert all(c.area == "policy" and c.found for c in found)
    assert all(c.expected and c.fix for c in found if c.status in ("failed", "warning"))
    return Verdict(tuple(found))


def test_a_sound_policy_passes_everything(observations):
    verdict = examine(Sound(), observations)
    assert verdict.word == "ok"
    assert [c.name for c in verdict.checks] == [
        "answers",
        "sees_agentview",
        "sees_wrist",
        "reads_instruction",
        "uses_proprio",
        "key_determinism",
        "batch_invariance",
        "gate",
    ]


@pytest.mark.parametrize(
    ("policy", "failed", "said"),
    [
        (BlindTo("agentview"), "sees_agentview", "0 (black), 0 (white), 0 (another scene)"),
        (BlindTo("wrist"), "sees_wrist", "0 (black)"),
        (Deaf(), "reads_instruction", "0 ('open the middle drawer"),
        (WithoutProprio(), "uses_proprio", "0 (-5 cm), 0 (+5 cm)"),
        (GlobalDraws(), "key_determinism", "the same key moves the commands by 0.0"),
        (Leaking(), "batch_invariance", "differ by up to 0."),
        (Misshapen(), "answers", "float32 (5, 7)"),
        (NotFinite(), "answers", "1 numbers of a chunk are not finite"),
        (TooLarge(), "answers", "a chunk reaches from"),
        (Raising(), "answers", "not finite"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sound) else None,
)
def test_exactly_the_probe_of_its_defect_fails(policy, failed, said, observations):
    verdict = examine(policy, observations)
    assert verdict.failed == [failed]
    assert said in next(c.found for c in verdict.checks if c.name == failed)


def test_rounding_in_a_batch_is_a_warning_and_one_at_a_time_no_question(observations):
    class Rounding(Leaking):
        def act(self, batch, *, keys):
            alone = Sound.act(self, batch, keys=keys)
            mixed = super().act(batch, keys=keys)
            return [
                dataclasses.replace(a, actions=a.actions + 0.04 * np.sign(m.actions - a.actions))
                for a, m in zip(alone, mixed, strict=True)
            ]

    assert examine(Rounding(), observations).warnings == ["batch_invariance"]
    alone = examine(Leaking(), observations, max_batch=1)
    assert alone.word == "ok"
    assert [c.name for c in alone.checks if c.status == "skipped"] == ["batch_invariance"]


def test_a_saturated_gate_is_a_warning_that_names_the_stream(observations):
    verdict = examine(Shut(), observations)
    assert (verdict.failed, verdict.warnings) == ([], ["gate"])
    assert "prior is shut out of agentview, wrist" in verdict.checks[-1].found


def test_inputs_a_policy_is_made_without_are_not_missed(observations):
    verdict = examine(Deaf(), observations, ignores=("instruction",))
    assert verdict.failed == []
    fake = examine(FakePolicy(), observations)
    assert [c.name for c in fake.checks if c.status == "skipped"] == [
        "sees_wrist",
        "reads_instruction",
    ]


def test_probing_leaves_the_global_generators_as_they_were(observations):
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    examine(Sound(), observations)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002


def test_a_policys_own_checks_are_made_too(observations):
    class Knowing(Sound):
        def checks(self, observations, *, suite):
            yield Check(
                area="policy", name="own", status="ok", found=f"{len(observations)} {suite}"
            )

    assert examine(Knowing(), observations).checks[-1].found == "2 libero_object"


def test_one_observation_is_not_enough(observations):
    with pytest.raises(ContractError, match="give two"):
        list(policy_checks(Sound(), observations[:1], suite="libero_object"))


def test_there_are_observations_of_every_suite_in_any_size():
    assert suites() == ["libero_10", "libero_90", "libero_goal", "libero_object", "libero_spatial"]
    for suite in suites():
        first, second = load_samples(suite, image_px=224)
        assert first.instruction != second.instruction
        assert first.images["wrist"].shape == (224, 224, 3)
        assert first.proprio.shape == (8,)
    with pytest.raises(ContractError, match="did you mean 'libero_goal'"):
        load_samples("libero_gaol", image_px=32)


# -- machine --------------------------------------------------------------------------------------

GOOD = Machine(
    available_gb=16.0,
    total_gb=24.0,
    cores=4,
    others_busy=0.0,
    disk_free_gb=50.0,
    file_system="",
    gpus=(Gpu(name="H200", total_gb=150.0, free_gb=149.0, driver="570.1"),),
    torch_cuda="12.8",
    architecture="x86_64",
    cpu_flags=frozenset({"avx2", "fma", "amx_bf16"}),
    environment={},
    has_memfd=True,
    open_files=1024,
)


def judge_machine(tmp_path, machine=GOOD, **needs):
    wanted = Needs(run_dir=tmp_path / "runs" / "run", **{"n_workers": 4, **needs})
    found = Verdict(tuple(machine_checks(wanted, machine=machine)))
    assert all(c.expected and c.fix for c in found.checks if c.status in ("failed", "warning"))
    return found


def test_a_good_machine_passes(tmp_path):
    assert judge_machine(tmp_path).word == "ok"
    bare = dataclasses.replace(GOOD, gpus=(), torch_cuda=None)
    assert judge_machine(tmp_path, bare).word == "ok"


@pytest.mark.parametrize(
    ("change", "failed", "warned", "said"),
    [
        ({"available_gb": 6.0}, ["memory"], [], "set rollout.workers=2"),
        ({"available_gb": 1.2}, ["memory"], [], "not even one worker fits"),
        ({"available_gb": 8.0}, [], ["memory"], "7.8 GB for 4 workers"),
        ({"cores": 2}, [], ["cores"], "set rollout.workers=3"),
        ({"others_busy": 3.0}, [], ["load"], "times and throughput mean nothing"),
        ({"disk_free_gb": 0.1}, ["disk_space"], [], "make room"),
        ({"file_system": "flock fails"}, ["file_system"], [], "local disk"),
        ({"torch_cuda": None}, [], ["gpu"], "built for CUDA"),
        ({"cpu_flags": frozenset({"avx2"})}, [], ["cpu_instructions"], "lacks fma"),
        ({"environment": {"OMP_NUM_THREADS": "4"}}, [], ["thread_variables"], "OMP_NUM_THREADS"),
        ({"environment": {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1"}}, [], [], ""),
        (
            {"environment": {"OPENBLAS_CORETYPE": "SkylakeX"}},
            [],
            ["thread_variables"],
            "unset OPENBLAS_CORETYPE",
        ),
        ({"has_memfd": False}, ["shared_memory"], [], "seccomp"),
        ({"open_files": 200}, ["open_files"], [], "ulimit -n 4096"),
    ],
)
def test_exactly_the_lack_is_named(tmp_path, change, failed, warned, said):
    verdict = judge_machine(tmp_path, dataclasses.replace(GOOD, **change))
    assert (verdict.failed, verdict.warnings) == (failed, warned)
    told = [f"{c.found} {c.expected} {c.fix}" for c in verdict.checks if c.fix]
    assert len(told) == len(failed + warned)
    assert all(said in sentence for sentence in told)


def test_a_gpu_asked_for_and_not_there_fails(tmp_path):
    bare = dataclasses.replace(GOOD, gpus=())
    assert judge_machine(tmp_path, bare, device="cuda").failed == ["gpu"]
    unbuilt = dataclasses.replace(GOOD, torch_cuda=None)
    assert judge_machine(tmp_path, unbuilt, device="cuda").failed == ["gpu"]
    assert judge_machine(tmp_path, unbuilt, device="cpu").word == "ok"


def test_what_cannot_be_read_is_skipped(tmp_path):
    unknown = dataclasses.replace(
        GOOD, available_gb=None, others_busy=None, disk_free_gb=None, cpu_flags=None
    )
    verdict = judge_machine(tmp_path, unknown)
    assert [c.name for c in verdict.checks if c.status == "skipped"] == [
        "memory",
        "load",
        "disk_space",
        "cpu_instructions",
    ]


def test_this_machine_can_be_read_and_nothing_stays_behind(tmp_path):
    machine = read_machine(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    assert machine.file_system == ""
    assert machine.available_gb > 0
    assert machine.cores >= 1
    assert machine.has_memfd


def test_a_folder_nobody_may_write_to_fails(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    assert "Permission denied" in read_machine(tmp_path / "run").file_system


def test_the_table_of_the_gpu_driver_is_read():
    (gpu,) = parse_gpus("NVIDIA H200, 143771, 143000, 570.86.15, GPU-1\ngarbage\n")
    assert (gpu.name, gpu.driver) == ("NVIDIA H200", "570.86.15")
    assert gpu.total_gb == pytest.approx(150.75, abs=0.1)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["A", "B", "C"]),
        ("2,0", ["C", "A"]),
        ("GPU-bb", ["B"]),
        ("1,7,0", ["B"]),
        ("", []),
        ("-1", []),
    ],
)
def test_only_the_gpus_this_process_may_use_are_judged(visible, names):
    table = "A, 100, 90, 1, GPU-aa\nB, 100, 90, 1, GPU-bb\nC, 100, 90, 1, GPU-cc\n"
    assert [gpu.name for gpu in parse_gpus(table, visible=visible)] == names


def test_a_gpu_nobody_can_be_asked_about_is_doubtful_only(tmp_path):
    unknown = dataclasses.replace(GOOD, gpus=None)
    verdict = judge_machine(tmp_path, unknown, device="cuda")
    assert (verdict.failed, verdict.warnings) == ([], ["gpu"])
    assert judge_machine(tmp_path, unknown).word == "ok"
    unbuilt = dataclasses.replace(unknown, torch_cuda=None)
    assert judge_machine(tmp_path, unbuilt, device="cuda").failed == ["gpu"]


def test_simulators_wait_for_a_policy_on_the_same_cores_so_two_a_core_find_work(tmp_path):
    bare = dataclasses.replace(GOOD, gpus=(), cores=2)
    assert judge_machine(tmp_path, bare, n_workers=4).word == "ok"
    assert judge_machine(tmp_path, bare, n_workers=5).warnings == ["cores"]
    on_gpu = dataclasses.replace(GOOD, cores=2)
    assert judge_machine(tmp_path, on_gpu, n_workers=4).warnings == ["cores"]
    assert judge_machine(tmp_path, on_gpu, n_workers=4, device="cpu").word == "ok"


def test_weights_and_episodes_take_room(tmp_path):
    assert judge_machine(tmp_path, policy_gb=15.0).failed == ["memory"]
    small = dataclasses.replace(GOOD, disk_free_gb=0.5)
    assert judge_machine(tmp_path, small, n_episodes=2000).failed == ["disk_space"]
    assert judge_machine(tmp_path, small, n_episodes=20).word == "ok"
    without = judge_machine(tmp_path, small, n_episodes=1000, has_video=False)
    assert without.failed == []
    assert "1000 episodes without video" in next(
        c.expected for c in without.checks if c.name == "disk_space"
    )


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        (".", ("memory.max", "memory.current", "inactive_file")),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_a_checkpoint_in_the_page_cache_is_not_in_use(tmp_path, monkeypatch, folder, names):
    limit, usage, forgettable = names
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / limit).write_text("20000000000\n")
    (tmp_path / folder / usage).write_text("16000000000\n")
    (tmp_path / folder / "memory.stat").write_text(f"anon 1\n{forgettable} 15000000000\n")
    monkeypatch.setattr(machine_of, "_CGROUPS", tmp_path)
    assert machine_of._container_memory() == (20.0, 1.0)


# -- verdict --------------------------------------------------------------------------------------

BAD = Check(
    area="machine", name="memory", status="failed", found="1 GB", expected="7 GB", fix="buy some"
)
ODD = Check(area="policy", name="gate", status="warning", found="0.99", expected="0.5", fix="look")
FINE = Check(area="policy", name="answers", status="ok", found="2 chunks")


def test_a_failed_preflight_lists_every_failure_with_its_fix():
    other = dataclasses.replace(BAD, name="open_files", fix="ulimit -n 4096")
    with pytest.raises(ContractError) as error:
        preflight(iter([FINE, BAD, ODD, other]), force=False)
    for words in ("2 of 4", "memory: 1 GB", "buy some", "ulimit -n 4096", "rollout.force=true"):
        assert words in str(error.value)
    assert "gate" not in str(error.value)


def test_a_forced_preflight_says_so_and_a_good_one_does_not():
    assert preflight([FINE, BAD], force=True).is_forced
    good = preflight([FINE, ODD], force=True)
    assert not good.is_forced
    assert good.short == {"failed": [], "warnings": ["gate"], "is_forced": False}


def test_a_verdict_is_read_back_as_it_was_written(tmp_path):
    verdict = preflight([FINE, ODD, BAD], force=True)
    verdict.save(tmp_path)
    assert load_verdict(tmp_path) == verdict
    assert (verdict.word, verdict.failed, verdict.warnings) == ("failed", ["memory"], ["gate"])
    assert load_verdict(tmp_path / "elsewhere") is None
    (tmp_path / "doctor.json").write_text('{"checks": [{')
    with pytest.raises(ContractError, match="is no verdict"):
        load_verdict(tmp_path)


HEADER = RunHeader(defines={}, versions={}, plans=[], configuration={})


def start(run_dir, verdict):
    header = dataclasses.replace(HEADER, doctor={} if verdict is None else verdict.short)
    with Ledger.open(run_dir, header):
        keep(verdict, run_dir)
    return read_header(run_dir).doctor, load_verdict(run_dir)


def test_a_forced_start_stays_one_whatever_later_starts_find(tmp_path):
    start(tmp_path, preflight([FINE, BAD, ODD], force=True))
    mended = dataclasses.replace(BAD, status="ok", found="9 GB", fix="")
    for _ in range(2):
        doctor, verdict = start(tmp_path, preflight([FINE, mended], force=False))
        assert doctor == {"failed": ["memory"], "warnings": ["gate"], "is_forced": True}
        assert verdict.is_forced
        assert (verdict.failed, verdict.warnings) == (["memory"], ["gate"])
        assert [c.found for c in verdict.checks] == [
            "2 chunks",
            "9 GB",
            "at an earlier start: 1 GB",
            "at an earlier start: 0.99",
        ]


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_a_start_without_preflight_is_noted_beside_one_with(tmp_path, order):
    for is_checked in order:
        doctor, verdict = start(tmp_path, Verdict((FINE,)) if is_checked else None)
    assert doctor == {"failed": [], "warnings": ["preflight"], "is_forced": False}
    assert verdict.warnings == ["preflight"]
    assert "without preflight" in verdict.checks[-1].found


def test_a_run_nobody_checked_has_no_verdict(tmp_path):
    start(tmp_path, None)
    assert start(tmp_path, None) == ({}, None)


def test_lines_show_the_fix_only_where_there_is_something_to_do():
    assert line(FINE) == "ok   answers                  2 chunks"
    assert line(BAD).splitlines() == [
        "FAIL memory                   1 GB",
        "     expected: 7 GB",
        "     do: buy some",
    ]
    assert line(BAD, is_coloured=True).startswith("\x1b[31;1mFAIL\x1b[0m")
    said = summary(Verdict((FINE, BAD, ODD, ODD)), wall_s=1.26)
    assert said == "4 checks in 1.3 s: 1 ok, 2 warnings, 1 failed"


# -- the script -----------------------------------------------------------------------------------


def doctor(*overrides):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "doctor.py"), *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_examines_the_fake_set_up(tmp_path):
    done = doctor(
        "suite=fake_reach", "checkpoint=fake", f"out_dir={tmp_path}", f"out={tmp_path / 'd.json'}"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["failed"] == []
    assert answer["verdict"] in ("ok", "warnings")
    verdict = Verdict.from_json(json.loads((tmp_path / "d.json").read_text()))
    assert len(verdict.checks) == answer["checks"]
    assert {c.area for c in verdict.checks} == {"machine", "policy"}
    assert "\x1b" not in done.stdout
    assert "ok   sees_agentview" in done.stdout


def test_the_script_ends_with_1_where_a_check_failed(tmp_path):
    done = doctor(
        "suite=fake_reach", "areas=[machine]", "rollout.workers=100000", f"out_dir={tmp_path}"
    )
    assert done.returncode == 1
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["verdict"] == "failed"
    assert "memory" in answer["failed"]
    assert "FAIL memory" in done.stdout
    assert "memory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("areas=[polcy]", "did you mean 'policy'"),
        ("depth=deep", "cheap"),
        ("rollout.workers=0", "rollout.workers is 0"),
    ],
)
def test_bad_input_is_one_sentence(override, said):
    done = doctor("areas=[policy]", override)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.sim
def test_the_script_finds_the_shipped_checkpoint_sound(tmp_path):
    done = doctor("areas=[policy]", f"out={tmp_path / 'd.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = Verdict.from_json(json.loads((tmp_path / "d.json").read_text()))
    assert verdict.failed == []
    names = {c.name for c in verdict.checks if c.status == "ok"}
    assert {"observations", "bidirectional_attention", "proprio_range", "sees_wrist"} <= names


@pytest.fixture
def composition(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("preflight")


def test_a_simulator_that_kills_its_process_is_a_finding(composition, monkeypatch):
    dying = (
        "import json, os\n"
        "print('a driver says hello')\n"
        f"print('check:', json.dumps({FINE.to_json()!r}), flush=True)\n"
        "os.kill(os.getpid(), 11)"
    )
    monkeypatch.setattr(composition, "_CHECK_SIMULATOR", dying)
    with composition.simulator_checks("cheap") as found:
        first, last = found
    assert first == FINE
    assert (last.name, last.status) == ("simulator_process", "failed")
    assert "SIGSEGV" in last.found


def test_a_simulator_that_hangs_is_a_finding(composition, monkeypatch):
    hanging = (
        "import json, time\n"
        f"print('check:', json.dumps({FINE.to_json()!r}), flush=True)\n"
        "time.sleep(600)"
    )
    monkeypatch.setattr(composition, "_CHECK_SIMULATOR", hanging)
    monkeypatch.setattr(composition, "_SILENCE_S", {"cheap": 3.0})
    with composition.simulator_checks("cheap") as found:
        first, last = found
    assert first == FINE
    assert (last.name, last.status) == ("simulator_process", "failed")
    assert "said nothing for 3 s" in last.found


def test_a_simulator_nobody_waits_for_is_ended(composition, monkeypatch):
    lasting = "import time\nprint('check: ' + '{}', flush=True)\ntime.sleep(600)"
    monkeypatch.setattr(composition, "_CHECK_SIMULATOR", lasting)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), composition.simulator_checks("full"):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 30


def test_a_rollout_on_the_toy_is_examined_in_no_time(composition, tmp_path):
    from vega_policy.testing.fake_env import FakeEnv

    found = composition.cheap_checks(
        FakePolicy(),
        suite="fake_reach",
        camera_px=128,
        needs=Needs(run_dir=tmp_path / "run", n_workers=1, simulator_gb=0.1),
        make_simulator=FakeEnv,
    )
    assert preflight(found, force=False).failed == []


@pytest.mark.sim
def test_a_rollout_with_the_shipped_checkpoint_is_examined(composition, tmp_path):
    from envs import LiberoEnv
    from vega_policy.policy import from_pretrained

    found = list(
        composition.cheap_checks(
            from_pretrained("nano-libero-object"),
            suite="libero_object",
            camera_px=128,
            needs=Needs(run_dir=tmp_path / "run", n_workers=1),
            make_simulator=LiberoEnv,
        )
    )
    assert [c.name for c in found if c.status == "failed"] == []
    assert {c.area for c in found} == {"machine", "policy", "simulator"}
    assert any(c.name.startswith("trajectory") and c.status == "ok" for c in found)
