"""The simulator's part of the preflight: does this installation compute what was published?"""
# pyright: basic

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from envs.fidelity import files, scene, stack
from envs.fidelity.golden import (
    EPISODES,
    FOLDER,
    PUBLISHED_PROPRIO,
    STATE_EVERY,
    Episode,
    Golden,
    Trajectory,
    load_files,
    load_frame,
    state_hash,
)
from envs.suites import SUITES
from vega_policy.spec import CAMERAS, Check, ContractError, EnvFault
from vega_policy.spec.probe import first_line, judge, run_probe, skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from envs.libero import LiberoEnv

Depth = Literal["cheap", "full"]

_INSTALL = "pip install -e '.[sim]' -c constraints.txt"
_FRESH = f"in a fresh virtual environment: {_INSTALL}"
_SAMPLED_AT = 24
"""Physics step, of 25, after which the official observation is taken."""
_PLACED_M = 1e-12
_DRIFT = 1e-4
"""Largest difference of a position (m, rad) that other rounding may make in a whole episode."""
_EXTRA_STEPS = 30
"""How much later than recorded a machine with other rounding may reach the goal."""
_HARNESS_STEPS = 40
_LOOK_EVERY = 5
_LIVE_RESETS = 3


_judge = partial(judge, "simulator", "")
"""`_check` fills in the name, which may be that of one scene of several."""


def checks(*, depth: Depth) -> Iterator[Check]:
    """Look at the simulator; yield each finding as soon as it is there.

    A simulator that raises gives a failed check. NumPy's global generator is left as it was.

    Args:
        depth: ``cheap``: versions, files, renderer and one scene. ``full``: every asset, the
            official environment beside ours, and every recorded episode.

    Raises:
        ContractError: An unknown depth.
    """
    if depth not in ("cheap", "full"):
        raise ContractError(f"depth is {depth!r}, expected cheap or full")
    golden = Golden.load()
    yield _check("versions", versions)
    yield _check("benchmark_files", benchmark_files)
    yield _check("assets", lambda: assets(depth=depth))
    yield _check("cpu_class", cpu_class)
    drawing = _check("gl_backend", gl_backend)
    yield drawing
    if drawing.status == "failed":
        yield skipped("simulator", "scenes", "no off-screen GL context, so no scene was built")
        return
    renderer = drawing.found
    for number, episode in enumerate(EPISODES if depth == "full" else EPISODES[:1]):
        yield from _scene(episode, golden, renderer, is_first=number == 0, depth=depth)


# -- the stack ------------------------------------------------------------------------------------


def versions() -> Check:
    """MuJoCo and robosuite versions with the published contacts and controller."""
    found = stack.versions()
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    expected = "mujoco 2.3.7 or 3.0 to 3.2.7, robosuite 1.4, one LIBERO distribution"
    distributions = stack.libero_distributions()
    mujoco, robosuite = _numbers(found["mujoco"]), _numbers(found["robosuite"])

    def bad(why: str, fix: str = _FRESH) -> Check:
        return _judge(f"{text}: {why}", expected=expected, fix=fix, is_failed=True)

    if not mujoco or not robosuite or not distributions:
        return bad("a package is missing", _INSTALL)
    if mujoco >= (3, 3):
        return bad(
            "MuJoCo 3.3.0 made native convex collision the default, so contacts differ "
            "(up to 0.6 in a joint or object coordinate after a contact-rich episode)",
            "pip install mujoco==2.3.7",
        )
    if robosuite[:2] != (1, 4):
        return bad(
            "robosuite 1.5 computes the arm's torques differently, the hand is 3 cm off after 60 "
            "actions",
            "pip install robosuite==1.4.0",
        )
    if len(distributions) > 1:
        return bad(f"several distributions provide 'libero' ({', '.join(distributions)})")
    if mujoco != (2, 3, 7) and mujoco < (3,):
        return _judge(
            f"{text}: this MuJoCo was never compared",
            expected=expected,
            fix="pip install mujoco==2.3.7",
            is_warning=True,
        )
    return _judge(text, expected=expected)


def benchmark_files() -> Check:
    """Problem files and initial states of all tasks."""
    golden = load_files()
    wrong = [
        f"{suite}/{name}"
        for suite in SUITES
        for name in _differing(golden[suite], files.problem_digests(suite))
    ]
    n = sum(len(golden[suite]) for suite in SUITES)
    return _files_finding(wrong, n, "problem files and initial states")


def assets(*, depth: Depth) -> Check:
    """Meshes, textures and scene descriptions: sizes and XML, or every byte."""
    recorded = load_files()["assets"]
    if depth == "full":
        digests = {name: digest for name, (_, digest) in recorded.items()}
        wrong = _differing(digests, files.asset_digests(which="all"))
        return _files_finding(wrong, len(recorded), "asset files, every byte")
    wrong = _differing({name: size for name, (size, _) in recorded.items()}, files.asset_sizes())
    texts = {name: digest for name, (_, digest) in recorded.items() if name.endswith(".xml")}
    wrong += _differing(texts, files.asset_digests(which="xml"))
    return _files_finding(sorted(set(wrong)), len(recorded), "asset files by size, XML by content")


def cpu_class() -> Check:
    """Whether states made here can be compared bit for bit with recorded ones."""
    found = stack.processor()
    expected = "x86-64 with FMA, OpenBLAS kernel Haswell or Zen"
    if found.is_reference:
        return _judge(found.name, expected=expected)
    note = f"{found.name}: last bits differ from the reference, success rates do not"
    if found.machine == "x86_64" and found.has_fma:
        return _judge(
            note, expected=expected, fix="export OPENBLAS_CORETYPE=Haswell", is_warning=True
        )
    return _judge(
        note,
        expected=expected,
        fix="replay and compare state hashes on this kind of processor only",
        is_warning=True,
    )


def gl_backend() -> Check:
    """Whether an image can be drawn without a screen, and by what."""
    chosen = os.environ.get("MUJOCO_GL", "")
    expected = "MUJOCO_GL=osmesa (CPU, llvmpipe) or egl (GPU), and a context that can be made"
    fix = (
        "export MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa, with the system library libosmesa6 "
        "installed (Debian, Ubuntu: apt-get install libosmesa6); on a GPU MUJOCO_GL=egl "
        "PYOPENGL_PLATFORM=egl"
    )
    if chosen not in ("osmesa", "egl"):
        return _judge(
            f"MUJOCO_GL is {chosen or 'not set'}", expected=expected, fix=fix, is_failed=True
        )
    try:
        name = stack.standalone_renderer()
    except Exception as error:  # noqa: BLE001 - whatever a GL library does, the user must act
        return _judge(
            f"MUJOCO_GL={chosen}: {first_line(error)}", expected=expected, fix=fix, is_failed=True
        )
    return _judge(f"{chosen}: {name}", expected=expected)


# -- one scene ------------------------------------------------------------------------------------


@dataclass
class Played:
    """One recorded episode, played here."""

    states: list[NDArray[np.float64]]
    proprios: list[NDArray[np.float64]]
    images: dict[str, NDArray[np.uint8]]
    success_step: int | None = None
    warnings: dict[str, int] = field(default_factory=dict)
    is_held_when_done: bool = False
    n_positions: int = 0
    """Length of qpos."""
    fault: str = ""


def _scene(
    episode: Episode, golden: Golden, renderer: str, *, is_first: bool, depth: Depth
) -> Iterator[Check]:
    from envs.libero import LiberoEnv

    made: list[LiberoEnv] = []

    def build() -> Check:
        made.append(LiberoEnv(suite=episode.suite, task_id=episode.task_id))
        return _judge(f"{episode.suite} task {episode.task_id} builds", expected="")

    built = _check(f"scene_{episode.name}", build)
    yield built
    if not made:
        return
    env = made[0]
    try:
        trajectory = Trajectory.load(FOLDER / f"{episode.name}.npz")
        yield _check(
            _named("fixture_placement", episode),
            lambda: fixture_placement(env, golden.fixtures[episode.name]),
        )
        plays: list[Played] = []

        def trajectory_finding() -> Check:
            plays.append(play(env, trajectory))
            return compare_states(plays[0], trajectory, golden)

        yield _check(_named("trajectory", episode), trajectory_finding)
        if not plays:
            return
        played = plays[0]
        yield _check(_named("physics_warnings", episode), lambda: physics_warnings(played))
        yield _check(
            _named("proprioception", episode),
            lambda: proprioception(played, golden.proprios[episode.name], golden),
        )
        if episode.has_frames:
            yield _check(
                _named("frames", episode),
                lambda: frames(played.images, episode, golden, renderer),
            )
        if is_first:
            yield _check("done_semantics", lambda: done_semantics(played, trajectory, golden))
            yield _check("published_observation", lambda: published_observation(played))
            yield _check("observation_phase", lambda: observation_phase(env, trajectory, golden))
            yield _check("gripper_after_reset", lambda: gripper_after_reset(env, played))
            if depth == "full":
                yield from _beside_official(env, episode, trajectory, golden)
    finally:
        env.close()


def play(env: LiberoEnv, trajectory: Trajectory) -> Played:
    """Play a recorded episode; where rounding differs, go on a little to reach the goal."""
    seen, _ = env.reset(seed=0, options={"init_state_id": 0})
    simulation = env.simulation
    played = Played(
        states=[simulation.state()],
        proprios=[_proprio(env)],
        images={camera: seen[camera] for camera in CAMERAS},
        n_positions=int(simulation.model.nq),
    )
    n = len(trajectory.actions)
    try:
        for step in range(n + _EXTRA_STEPS):
            is_success = simulation.step(trajectory.actions[min(step, n - 1)])
            played.states.append(simulation.state())
            played.proprios.append(_proprio(env))
            if is_success:
                played.success_step = step + 1
                played.is_held_when_done = scene.is_touched_by_finger(simulation.handle)
                break
    except EnvFault as fault:
        played.fault = str(fault)
    played.warnings = scene.warnings(simulation.handle)
    return played


def fixture_placement(env: LiberoEnv, golden: list[dict[str, list[float]]]) -> Check:
    """Fixtures of reset 0, 1, 2 after ``seed(0)``, asked for out of order."""
    placed: list[tuple[int, dict[str, list[float]]]] = []
    env.simulation.seed(0)
    for index in (2, 0, 2, 1):
        env.simulation.reset(index=index)
        placed.append((index, scene.fixtures(env.simulation.handle)))
    return compare_fixtures(placed, golden)


def compare_fixtures(
    placed: Sequence[tuple[int, dict[str, list[float]]]], golden: list[dict[str, list[float]]]
) -> Check:
    """Compare fixtures per reset index with the recorded ones."""
    expected = f"reset 0, 1, 2 after seed(0) as recorded, to {_PLACED_M:.0e} m"
    fix = (
        "the sequence of random numbers differs from the official one: "
        f"reinstall the simulator {_FRESH}"
    )
    worst = 0.0
    for index, mine in sorted(placed, key=lambda pair: pair[0]):
        distance, name = scene.fixture_distance(mine, golden[index])
        worst = max(worst, distance)
        if distance > _PLACED_M:
            twin = [
                other
                for other, recorded in enumerate(golden)
                if scene.fixture_distance(mine, recorded)[0] <= _PLACED_M
            ]
            hint = f"; this is reset {twin[0]}" if twin else ""
            return _judge(
                f"reset {index}: {name} is {distance:.1e} m off{hint}",
                expected=expected,
                fix=fix,
                is_failed=True,
            )
    n = len(golden[0])
    if n == 0:
        return _judge("no fixtures in this scene", expected=expected)
    return _judge(f"{n} fixtures x {len(placed)} resets, off by {worst:.0e} m", expected=expected)


def compare_states(played: Played, trajectory: Trajectory, golden: Golden) -> Check:
    """Compare a played episode with the recorded one, as closely as this machine allows."""
    n = len(trajectory.actions)
    fix = (
        "the physics differs: compare the versions above with the expected ones, and reinstall "
        f"{_FRESH}"
    )
    if played.fault:
        return _judge(played.fault, expected=f"goal at step {n}", fix=fix, is_failed=True)
    reached = f"goal at step {played.success_step}" if played.success_step else "goal not reached"
    n_equal = _leading_equal(played.states, trajectory.hashes)
    drift = _drift(played, trajectory)
    if _is_bit_equal_expected(golden):
        expected = f"every state bit-equal, goal at step {n}"
        if n_equal == n + 1 and played.success_step == n:
            return _judge(f"{n} steps bit-equal, {reached}", expected=expected)
        return _judge(
            f"first different state after step {n_equal}, then up to {drift:.0e}; {reached}",
            expected=expected,
            fix=fix,
            is_failed=True,
        )
    expected = f"positions within {_DRIFT:.0e} to the end, goal at step {n}"
    is_good = played.success_step == n and drift <= _DRIFT
    found = f"{reached}, positions within {drift:.0e}"
    return _judge(found, expected=expected, fix=fix, is_failed=not is_good)


def physics_warnings(played: Played) -> Check:
    """MuJoCo's own complaints during the episode."""
    expected = "no entry in data.warning"
    if not played.warnings and not played.fault:
        return _judge(f"none in {len(played.states) - 1} steps", expected=expected)
    found = ", ".join(f"{name} x{n}" for name, n in played.warnings.items()) or played.fault
    return _judge(
        found,
        expected=expected,
        fix=f"the physics is unstable: reinstall the simulator {_FRESH}",
        is_failed=True,
    )


def proprioception(played: Played, golden: list[list[float]], golden_set: Golden) -> Check:
    """Position, axis-angle and fingers as the official observation gives them."""
    tolerance = 1e-9 if _is_bit_equal_expected(golden_set) else _DRIFT
    rows = np.asarray(golden)
    mine = np.stack(played.proprios[::STATE_EVERY])[: len(rows)]
    if not _is_bit_equal_expected(golden_set):
        rows, mine = rows[:3], mine[:3]
    difference = np.abs(mine - rows[: len(mine)])
    worst = int(difference.max(axis=0).argmax())
    names = ("x", "y", "z", "axis-angle 1", "axis-angle 2", "axis-angle 3", "finger 1", "finger 2")
    found = f"within {difference.max():.0e} over {len(mine)} observations"
    expected = f"the official eight numbers to {tolerance:.0e}"
    if difference.max() <= tolerance:
        return _judge(found, expected=expected)
    return _judge(
        f"{found}, worst in {names[worst]}",
        expected=expected,
        fix="a sign, an order or a rotation convention differs: use this package's environment "
        "unchanged, with robosuite 1.4",
        is_failed=True,
    )


def frames(
    images: dict[str, NDArray[np.uint8]], episode: Episode, golden: Golden, renderer: str
) -> Check:
    """Both cameras after settling against the recorded pictures."""
    differences = {
        camera: scene.picture_difference(images[camera], load_frame(episode, camera))
        for camera in CAMERAS
    }
    text = "; ".join(
        f"{camera}: mean {d.mean:.2f}, {100 * d.share_above_10:.1f} % above 10, "
        f"surfaces {d.surface_bias:.2f}"
        for camera, d in differences.items()
    )
    fix = (
        "materials, lights or cameras differ: MuJoCo 3.3.3 and later draw floors darker "
        "(pip install mujoco==2.3.7); otherwise reinstall the simulator, and look for a changed "
        "reset index if fixture_placement failed too"
    )
    recorded = golden.made_with
    is_same_mujoco = stack.versions()["mujoco"] == recorded["mujoco"]
    # Other releases of Mesa and LLVM, and its approximations, round colours differently.
    is_same_renderer = (
        stack.rasteriser(recorded["renderer"]) in renderer and "GALLIVM_PERF" not in os.environ
    )
    if is_same_renderer and is_same_mujoco:
        expected = "every pixel equal (the recorded renderer)"
        is_good = all(d.is_zero for d in differences.values())
    elif is_same_renderer:
        expected = f"mean <= {scene.MAX_MEAN_LLVMPIPE} (of 255; the recorded renderer)"
        is_good = all(d.mean <= scene.MAX_MEAN_LLVMPIPE for d in differences.values())
    else:
        expected = (
            f"mean <= {scene.MAX_MEAN}, <= {100 * scene.MAX_SHARE:.0f} % above 10, "
            f"even surfaces within {scene.MAX_SURFACE_BIAS} (of 255; another renderer)"
        )
        is_good = all(d.is_tolerable for d in differences.values())
    return _judge(text, expected=expected, fix=fix, is_failed=not is_good)


def done_semantics(played: Played, trajectory: Trajectory, golden: Golden) -> Check:
    """The goal counts at the first step at which its predicate holds, also while still held."""
    held = {True: "object still held", False: "object not held"}
    expected = held[trajectory.is_held_when_done]
    found = held[played.is_held_when_done]
    if _is_bit_equal_expected(golden):
        expected = f"goal at step {len(trajectory.actions)}, {expected}"
        found = f"goal at step {played.success_step}, {found}"
    if played.success_step is None:
        found = "goal not reached"
    if found == expected:
        return _judge(found, expected=expected)
    return _judge(
        found,
        expected=expected,
        fix=f"goal predicates or contacts differ: reinstall the LIBERO distribution {_FRESH}",
        is_failed=True,
    )


def published_observation(played: Played) -> Check:
    """The sample observation that OpenVLA-OFT published."""
    difference = float(np.abs(played.proprios[0] - np.array(PUBLISHED_PROPRIO)).max())
    found = f"eight numbers within {difference:.0e}"
    expected = "the published sample observation to 1e-12"
    if difference <= 1e-12:
        return _judge(found, expected=expected)
    return _judge(
        found,
        expected=expected,
        fix=f"initial state, settling or controller differ: reinstall the simulator {_FRESH}",
        is_failed=True,
    )


def observation_phase(env: LiberoEnv, trajectory: Trajectory, golden: Golden) -> Check:
    """Which physics step of a control step the observation shows."""
    env.reset(seed=0, options={"init_state_id": 0})
    for action in trajectory.actions[: golden.substep_step + 1]:
        env.simulation.step(action)
    distances = np.linalg.norm(
        np.asarray(golden.substeps) - env.simulation.sample.eef_position, axis=1
    )
    nearest = int(distances.argmin()) + 1
    found = f"physics step {nearest} of {len(distances)}, {1e3 * distances.min():.0e} mm off"
    expected = f"physics step {_SAMPLED_AT} of 25"
    if nearest == _SAMPLED_AT and distances.min() < 1e-6:
        return _judge(found, expected=expected)
    return _judge(
        found,
        expected=expected,
        fix="observations are taken at another moment: use robosuite 1.4 at 20 Hz control, 2 ms physics",
        is_failed=True,
    )


def gripper_after_reset(env: LiberoEnv, played: Played) -> Check:
    """Whether the next episode starts as the first did, the gripper's command included."""
    expected = "command 0 after a reset, second episode starts bit-equal to the first"
    env.reset(seed=0, options={"init_state_id": 0})
    for _ in range(3):
        env.simulation.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    env.simulation.reset(index=0)
    command = np.abs(env.simulation.handle.robots[0].gripper.current_action).max()
    env.reset(seed=0, options={"init_state_id": 0})
    difference = float(np.abs(env.simulation.state() - played.states[0]).max())
    found = f"command {command:.2g}, second start differs by {difference:.0e}"
    if command == 0 and difference == 0:
        return _judge(found, expected=expected)
    return _judge(
        found,
        expected=expected,
        fix="something survives the reset: use this package's environment unchanged, and report it",
        is_failed=True,
    )


# -- the official environment beside ours -----------------------------------------------------------


def _beside_official(
    env: LiberoEnv, episode: Episode, trajectory: Trajectory, golden: Golden
) -> Iterator[Check]:
    from envs.official import OfficialEnv

    placed: list[tuple[int, dict[str, list[float]]]] = []
    actions = trajectory.actions[:_HARNESS_STEPS]

    def harness() -> Check:
        with OfficialEnv(
            suite=episode.suite, task_id=episode.task_id, camera_px=env.camera_px
        ) as official:
            # All of it before ours draws: the official environment leaves the GL context alone.
            moments = list(official.episode(lambda _: actions, max_steps=len(actions)))
            placed.append((0, scene.fixtures(official.handle)))
            for index in range(1, _LIVE_RESETS):
                official.start()
                placed.append((index, scene.fixtures(official.handle)))
        env.reset(seed=0, options={"init_state_id": 0})
        n_images = 0
        for step, theirs in enumerate(moments):
            if step:
                env.simulation.step(actions[step - 1])
            if not np.array_equal(env.simulation.state(), theirs.state):
                return _harness_failed(f"states differ after step {step}")
            for camera in CAMERAS if step % _LOOK_EVERY == 0 else ():
                n_images += 1
                mine = env.simulation.image(camera, env.camera_px)
                if not np.array_equal(mine, theirs.images[camera]):
                    return _harness_failed(f"{camera} pixels differ after step {step}")
        return _judge(
            f"{len(actions)} steps and {n_images} images equal the official ones",
            expected=_HARNESS_EXPECTED,
        )

    yield _check("harness_equals_official", harness)
    if len(placed) == _LIVE_RESETS:
        yield _check(
            "official_placement",
            lambda: compare_fixtures(placed, golden.fixtures[episode.name]),
        )


_HARNESS_EXPECTED = "states bit-equal, images pixel-equal, on this machine"


def _harness_failed(found: str) -> Check:
    return _judge(
        found,
        expected=_HARNESS_EXPECTED,
        fix="the shortcuts of this package are exact only for robosuite 1.4 and the MuJoCo versions "
        f"above: reinstall {_FRESH}; if it stays, report it",
        is_failed=True,
    )


# -- small parts -----------------------------------------------------------------------------------


def _check(name: str, look: Callable[[], Check]) -> Check:
    """Look, and leave NumPy's global generator, which LIBERO draws from, as it was."""
    outside = np.random.get_state()  # noqa: NPY002
    try:
        return run_probe("simulator", name, look, fix=f"reinstall the simulator {_FRESH}")
    finally:
        np.random.set_state(outside)  # noqa: NPY002


def _named(name: str, episode: Episode) -> str:
    return f"{name}_{episode.name}"


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:3]
    return tuple(int(part) for part in parts if part.isdigit())


def _differing(golden: Mapping[str, object], mine: Mapping[str, object]) -> list[str]:
    # Files that only this distribution has are no concern of the benchmark's.
    return [name for name, value in golden.items() if mine.get(name) != value]


def _files_finding(wrong: list[str], n: int, what: str) -> Check:
    expected = f"all {n} as recorded"
    if not wrong:
        return _judge(f"{n} {what}: unchanged", expected=expected)
    named = ", ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else "")
    return _judge(
        f"{len(wrong)} of {n} {what} changed or missing: {named}",
        expected=expected,
        fix=f"reinstall the LIBERO distribution, or remove path overrides from its config.yaml: {_FRESH}",
        is_failed=True,
    )


def _is_bit_equal_expected(golden: Golden) -> bool:
    mine = stack.versions()
    is_same = all(mine[name] == golden.made_with[name] for name in ("mujoco", "robosuite"))
    return is_same and stack.processor().is_reference


def _leading_equal(states: list[NDArray[np.float64]], hashes: NDArray[np.uint64]) -> int:
    for i, (state, recorded) in enumerate(zip(states, hashes, strict=False)):
        if state_hash(state) != int(recorded):
            return i
    return min(len(states), len(hashes))


def _drift(played: Played, trajectory: Trajectory) -> float:
    """Return the largest difference of a position over the states that are stored in full."""
    n = len(trajectory.actions)
    pairs = list(zip(played.states[: n + 1 : STATE_EVERY], trajectory.states, strict=False))
    if len(played.states) > n:
        pairs.append((played.states[n], trajectory.done))
    if any(len(mine) != len(recorded) for mine, recorded in pairs):
        raise ContractError(
            f"states have {len(played.states[0])} numbers, {len(trajectory.done)} were recorded; "
            "reinstall the LIBERO distribution"
        )
    last = 1 + played.n_positions
    return max(float(np.abs(mine - recorded)[1:last].max()) for mine, recorded in pairs)


def _proprio(env: LiberoEnv) -> NDArray[np.float64]:
    sample = env.simulation.sample
    return np.concatenate([sample.ee_state, sample.gripper])
