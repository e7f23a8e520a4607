"""The simulator checks pass here, and each one fails by name when its subject is broken."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.fidelity import checks as checks_of
from envs.fidelity import files, scene, stack
from envs.fidelity.checks import (
    compare_fixtures,
    compare_states,
    cpu_class,
    done_semantics,
    fixture_placement,
    frames,
    gl_backend,
    gripper_after_reset,
    observation_phase,
    physics_warnings,
    play,
    proprioception,
    published_observation,
)
from envs.fidelity.golden import EPISODES, FOLDER, Golden, Trajectory, load_frame, state_hash

checks = sys.modules["envs.fidelity.checks"]
pytestmark = pytest.mark.sim

BOWL = EPISODES[0]
LLVMPIPE = "osmesa: llvmpipe (LLVM 15.0.6, 256 bits)"


@pytest.fixture(scope="module")
def golden():
    return Golden.load()


@pytest.fixture(scope="module")
def trajectory():
    return Trajectory.load(FOLDER / "bowl.npz")


@pytest.fixture(scope="module")
def env():
    from envs import LiberoEnv

    made = LiberoEnv(suite=BOWL.suite, task_id=BOWL.task_id)
    yield made
    made.close()


@pytest.fixture(scope="module")
def played(env, trajectory):
    return play(env, trajectory)


def with_versions(monkeypatch, **changed):
    found = {**stack.versions(), **changed}
    monkeypatch.setattr(stack, "versions", lambda: found)


def on_processor(monkeypatch, *kernels, has_fma=True):
    found = stack.Processor(machine="x86_64", has_fma=has_fma, kernels=kernels)
    monkeypatch.setattr(stack, "processor", lambda: found)


# -- everything at once ----------------------------------------------------------------------------


def test_a_good_installation_passes_the_cheap_checks_and_keeps_the_random_state(env, monkeypatch):
    monkeypatch.setattr("envs.libero.LiberoEnv", lambda **_: env)  # a scene takes 5 s to build
    monkeypatch.setattr(env, "close", lambda: None)
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    found = list(checks_of(depth="cheap"))
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert {check.area for check in found} == {"simulator"}
    not_ok = {check.name: check for check in found if check.status != "ok"}
    # Without OPENBLAS_CORETYPE=Haswell the processor class is a warning, never a failure.
    assert set(not_ok) <= {"cpu_class"}, not_ok
    assert len({check.name for check in found}) == len(found) >= 15


@pytest.mark.slow
def test_a_good_installation_passes_all_checks():
    """About two minutes."""
    found = list(checks_of(depth="full"))
    assert {check.name for check in found if check.status != "ok"} <= {"cpu_class"}
    assert {"harness_equals_official", "official_placement", "trajectory_book"} <= {
        check.name for check in found
    }


def test_a_simulator_that_raises_is_a_failed_check_with_a_fix(monkeypatch):
    from envs import libero

    def broken(*_, **__):
        raise RuntimeError("unknown mesh format")

    monkeypatch.setattr(libero, "LiberoSimulation", broken)
    found = {check.name: check for check in checks_of(depth="cheap")}
    assert found["scene_bowl"].status == "failed"
    assert "unknown mesh format" in found["scene_bowl"].found
    assert found["scene_bowl"].fix
    assert "trajectory_bowl" not in found


def test_no_off_screen_gl_is_named_and_no_scene_is_built(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL")
    found = {check.name: check for check in checks_of(depth="cheap")}
    assert found["gl_backend"].status == "failed"
    assert "MUJOCO_GL=osmesa" in found["gl_backend"].fix
    assert found["scenes"].status == "skipped"


def test_every_failed_or_doubtful_check_says_what_to_do(monkeypatch):
    with_versions(monkeypatch, mujoco="3.3.7")
    on_processor(monkeypatch, "SkylakeX")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    found = [check for check in checks_of(depth="cheap") if check.status in ("failed", "warning")]
    assert {check.name for check in found} == {"versions", "cpu_class", "gl_backend"}
    assert all(check.fix and check.expected for check in found)


# -- the stack -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status", "word"),
    [
        ({"mujoco": "2.3.7"}, "ok", "mujoco 2.3.7"),
        ({"mujoco": "3.0.1"}, "ok", "mujoco 3.0.1"),
        ({"mujoco": "3.2.7"}, "ok", "mujoco 3.2.7"),
        ({"mujoco": "3.3.0"}, "failed", "native convex collision"),
        ({"mujoco": "4.0.0"}, "failed", "native convex collision"),
        ({"mujoco": "2.3.2"}, "warning", "never compared"),
        ({"mujoco": ""}, "failed", "missing"),
        ({"robosuite": "1.4.1"}, "ok", "robosuite 1.4.1"),
        ({"robosuite": "1.5.2"}, "failed", "3 cm"),
    ],
)
def test_versions(monkeypatch, changed, status, word):
    with_versions(monkeypatch, **changed)
    finding = checks.versions()
    assert (finding.status, word in finding.found) == (status, True)
    assert bool(finding.fix) == (status != "ok")


def test_two_distributions_of_libero_are_refused(monkeypatch):
    monkeypatch.setattr(stack, "libero_distributions", lambda: ["libero 0.1.0", "rpent-libero 0.2"])
    assert checks.versions().status == "failed"


def test_a_changed_problem_file_is_named(monkeypatch):
    honest = files.problem_digests

    def changed(suite):
        digests = honest(suite)
        return {name: "0" if suite == "libero_goal" else digest for name, digest in digests.items()}

    monkeypatch.setattr(files, "problem_digests", changed)
    finding = checks.benchmark_files()
    assert finding.status == "failed"
    assert "libero_goal/" in finding.found
    assert "20 of 260" in finding.found


def test_missing_assets_are_counted(monkeypatch, tmp_path):
    (tmp_path / "wall.xml").write_text("<mujoco/>")
    monkeypatch.setattr(files, "asset_root", lambda: tmp_path)
    for depth in ("cheap", "full"):
        finding = checks.assets(depth=depth)
        assert finding.status == "failed"
        assert "864 of 864" in finding.found


@pytest.mark.parametrize(
    ("kernels", "has_fma", "status", "fix"),
    [
        (("Haswell",), True, "ok", ""),
        (("Haswell", "Zen"), True, "ok", ""),
        (("SkylakeX",), True, "warning", "OPENBLAS_CORETYPE=Haswell"),
        (("Prescott",), False, "warning", "this kind of processor only"),
        ((), True, "warning", "OPENBLAS_CORETYPE=Haswell"),
    ],
)
def test_cpu_class(monkeypatch, kernels, has_fma, status, fix):
    on_processor(monkeypatch, *kernels, has_fma=has_fma)
    finding = cpu_class()
    assert finding.status == status
    assert fix in finding.fix


def test_a_renderer_that_cannot_start_is_named_in_a_real_process():
    environment = {**os.environ, "MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}
    code = "from envs.fidelity.checks import gl_backend as g; f = g(); print(f.status, f.found)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("failed MUJOCO_GL=egl: "), done.stdout + done.stderr


def test_the_renderer_is_named():
    assert gl_backend().status == "ok"


# -- one scene, whole and broken -------------------------------------------------------------------


def test_wrong_reset_index_is_recognised(env, golden, monkeypatch):
    assert fixture_placement(env, golden.fixtures["bowl"]).status == "ok"
    honest = env.simulation.reset
    monkeypatch.setattr(env.simulation, "reset", lambda *, index: honest(index=index + 1))
    finding = fixture_placement(env, golden.fixtures["bowl"])
    assert finding.status == "failed"
    assert "reset 0" in finding.found
    assert "this is reset 1" in finding.found


def test_a_nudged_fixture_is_named(golden):
    placed = {k: {**golden.fixtures["bowl"][k]} for k in range(3)}
    nudged = [*placed[1]["flat_stove_1"]]
    nudged[0] += 1e-9
    placed[1]["flat_stove_1"] = nudged
    finding = compare_fixtures(list(placed.items()), golden.fixtures["bowl"])
    assert (finding.status, "flat_stove_1" in finding.found) == ("failed", True)


def test_a_scene_started_at_another_reset_fails_the_trajectory_and_the_picture(
    env, trajectory, golden, monkeypatch
):
    honest = env.simulation.reset
    monkeypatch.setattr(env.simulation, "reset", lambda *, index: honest(index=index + 1))
    wrong = play(env, dataclasses.replace(trajectory, actions=trajectory.actions[:5]))
    assert frames(wrong.images, BOWL, golden, "NVIDIA").status == "failed"
    assert frames(wrong.images, BOWL, golden, LLVMPIPE).status == "failed"


def test_one_bit_in_one_state_fails_the_trajectory(played, trajectory, golden, monkeypatch):
    on_processor(monkeypatch, "Haswell")
    states = [state.copy() for state in played.states]
    states[40][5] = np.nextafter(states[40][5], 2)
    finding = compare_states(dataclasses.replace(played, states=states), trajectory, golden)
    if state_hash(played.states[0]) == int(trajectory.hashes[0]):
        assert "after step 40" in finding.found
    assert finding.status == "failed"


@pytest.mark.parametrize(("drift", "status"), [(1e-6, "ok"), (1e-3, "failed")])
def test_another_processor_is_compared_with_a_tolerance(
    played, trajectory, golden, monkeypatch, drift, status
):
    on_processor(monkeypatch, "SkylakeX")
    states = [state + drift for state in played.states]
    other = dataclasses.replace(played, states=states)
    assert compare_states(other, trajectory, golden).status == status
    never = dataclasses.replace(other, success_step=None)
    assert compare_states(never, trajectory, golden).status == "failed"


def test_done_one_step_late_or_only_after_release_fails(played, trajectory, golden, monkeypatch):
    on_processor(monkeypatch, "Haswell")
    played = dataclasses.replace(played, success_step=len(trajectory.actions))
    assert done_semantics(played, trajectory, golden).status == "ok"
    late = dataclasses.replace(played, success_step=played.success_step + 1)
    assert done_semantics(late, trajectory, golden).status == "failed"
    released = dataclasses.replace(played, is_held_when_done=False)
    never = dataclasses.replace(played, success_step=None)
    for kernel in ("Haswell", "SkylakeX"):
        on_processor(monkeypatch, kernel)
        assert done_semantics(released, trajectory, golden).status == "failed"
        assert done_semantics(never, trajectory, golden).status == "failed"


def test_unstable_physics_fails(played):
    assert physics_warnings(played).status == "ok"
    unstable = dataclasses.replace(played, warnings={"mjWARN_BADQACC": 1})
    assert "mjWARN_BADQACC x1" in physics_warnings(unstable).found
    assert physics_warnings(unstable).status == "failed"


@pytest.mark.parametrize(
    ("flip", "worst"), [((0,), "x"), ((3, 4, 5), "axis-angle"), ((6, 7), "finger")]
)
def test_flipped_signs_fail(played, golden, flip, worst):
    assert proprioception(played, golden.proprios["bowl"], golden).status == "ok"
    assert published_observation(played).status == "ok"
    signs = np.ones(8)
    signs[list(flip)] = -1
    flipped = dataclasses.replace(played, proprios=[signs * row for row in played.proprios])
    finding = proprioception(flipped, golden.proprios["bowl"], golden)
    assert (finding.status, f"worst in {worst}" in finding.found) == ("failed", True)
    assert published_observation(flipped).status == "failed"


def test_pictures(golden, monkeypatch):
    recorded = {camera: load_frame(BOWL, camera) for camera in ("agentview", "wrist")}
    noise = np.random.default_rng(0).integers(-2, 3, (128, 128, 3))
    noisy = {
        c: np.clip(p.astype(int) + noise, 0, 255).astype(np.uint8) for c, p in recorded.items()
    }
    dark = {c: (p * 0.9).astype(np.uint8) for c, p in recorded.items()}
    mirrored = {c: p[:, ::-1] for c, p in recorded.items()}
    assert frames(recorded, BOWL, golden, LLVMPIPE).status == "ok"
    assert frames(noisy, BOWL, golden, LLVMPIPE).status == "failed"
    assert frames(noisy, BOWL, golden, "NVIDIA H200").status == "ok"
    assert frames(dark, BOWL, golden, "NVIDIA H200").status == "failed"
    assert frames(mirrored, BOWL, golden, "NVIDIA H200").status == "failed"
    for other in (LLVMPIPE.replace("15.0.6", "19.1.7"), LLVMPIPE.replace("256", "128")):
        is_exact = "15.0.6" in other
        assert frames(recorded, BOWL, golden, other).status == "ok"
        assert frames(noisy, BOWL, golden, other).status == ("failed" if is_exact else "ok")
        assert frames(dark, BOWL, golden, other).status == "failed"
    monkeypatch.setenv("GALLIVM_PERF", "no_aos_sampling")
    assert frames(noisy, BOWL, golden, LLVMPIPE).status == "ok"
    monkeypatch.delenv("GALLIVM_PERF")
    with_versions(monkeypatch, mujoco="3.2.7")
    assert frames(recorded, BOWL, golden, LLVMPIPE).status == "ok"
    assert frames(noisy, BOWL, golden, LLVMPIPE).status == "failed"


def test_a_darker_floor_is_seen_on_any_renderer(golden):
    can = EPISODES[1]
    recorded = {camera: load_frame(can, camera) for camera in ("agentview", "wrist")}
    darker = {}
    for camera, picture in recorded.items():
        floor = picture.astype(int).std(axis=-1) < 12  # the grey boards
        darker[camera] = np.where(floor[..., None], picture * 0.7, picture).astype(np.uint8)
    difference = scene.picture_difference(darker["agentview"], recorded["agentview"])
    assert difference.surface_bias > 2 * scene.MAX_SURFACE_BIAS
    finding = frames(darker, can, golden, "NVIDIA H200")
    assert finding.status == "failed"
    assert "floors darker" in finding.fix


def test_observations_of_another_moment_are_recognised(env, trajectory, golden, monkeypatch):
    from envs import simulation

    assert observation_phase(env, trajectory, golden).status == "ok"
    honest = simulation._SampleClock.tick
    calls = iter(range(1, 10**9))

    def early(clock):
        honest(clock)
        return next(calls) % 25 == 20

    monkeypatch.setattr(simulation._SampleClock, "tick", early)
    finding = observation_phase(env, trajectory, golden)
    assert finding.status == "failed"
    assert "physics step 20 of 25" in finding.found


def test_a_gripper_command_that_survives_the_reset_is_recognised(env, played, monkeypatch):
    assert gripper_after_reset(env, played).status == "ok"
    gripper = env.simulation.handle.robots[0].gripper
    honest = env.simulation.reset

    def forgetful(*, index):
        command = np.array(gripper.current_action)
        honest(index=index)
        gripper.current_action = command

    monkeypatch.setattr(env.simulation, "reset", forgetful)
    assert gripper_after_reset(env, played).status == "failed"


# -- the recorder ----------------------------------------------------------------------------------


def test_actions_that_solve_nothing_are_refused(tmp_path):
    from envs.fidelity.record import record
    from vega_policy.spec import ContractError

    with pytest.raises(ContractError, match=r"bowl\.npz is missing"):
        record(actions_dir=tmp_path, out_dir=tmp_path / "out")
