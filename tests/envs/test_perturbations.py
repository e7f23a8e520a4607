"""A perturbation changes what it says and nothing else, and leaves nothing behind."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

from vega_policy.spec import ContractError, EpisodeKey
from vega_policy.testing.fake_policy import FakePolicy

pytestmark = pytest.mark.sim

CAMERAS = ("agentview", "wrist")
SUITE, TASK_ID = "libero_goal", 8
N_DRAWS = 30
ACTIONS = np.clip(np.random.default_rng(0).normal(0, 0.6, (4, 7)), -1, 1)
KINDS = ("camera", "light", "texture", "robot_start", "image_noise", "wording")
MODEL_ARRAYS = ("cam_pos", "cam_quat", "light_pos", "light_dir", "light_diffuse", "mat_rgba")


@pytest.fixture(scope="module")
def env():
    from envs import LiberoEnv

    made = LiberoEnv(suite=SUITE, task_id=TASK_ID, camera_px=64)
    yield made
    made.close()


@pytest.fixture(scope="module")
def clean(env):
    return episode(env, "none")


def episode(env, name, *, init_state_id=0):
    """Play a few actions; return all there is to see of it."""
    options = {"init_state_id": init_state_id, "perturbation": name}
    first, _ = env.reset(seed=0, options=options)
    start = env.sim_state()
    last, *_, info = env.step_chunk(ACTIONS)
    return {
        "states": np.stack([start, *info["states"]]),
        "proprio": np.stack([first["proprio"], last["proprio"]]),
        "instruction": env.instruction,
        **{camera: np.stack([first[camera], last[camera]]) for camera in CAMERAS},
    }


def differing(one, other):
    return {name for name in one if not np.array_equal(one[name], other[name])}


def made(name, *, init_state_id=0):
    from envs import perturbations

    return perturbations.make(EpisodeKey(SUITE, TASK_ID, init_state_id, name))


def edited(env, name, *, init_state_id=0):
    """Return the model's arrays after a perturbation, as one vector."""
    env.simulation.seed(0)
    env.simulation.reset(index=0)
    model = env.simulation.model
    made(name, init_state_id=init_state_id).edit(model)
    head = (model.vis.headlight.ambient, model.vis.headlight.diffuse)
    return np.concatenate([np.ravel(getattr(model, a)) for a in MODEL_ARRAYS] + list(head))


def test_every_name_can_be_made_and_be_part_of_a_file_name():
    from envs import perturbations

    assert set(perturbations.KINDS) == set(KINDS)
    for name in perturbations.names():
        assert re.fullmatch(r"[a-z_]+(-[123])?", name)
        made(name)


@pytest.mark.parametrize(("wrong", "nearest"), [("camera-4", "camera-"), ("pro_swop", "pro_swap")])
def test_an_unknown_name_is_answered_with_the_nearest(wrong, nearest):
    with pytest.raises(ContractError, match=f"did you mean '{nearest}"):
        made(wrong)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("camera-3", {"agentview"}),
        ("light-3", set(CAMERAS)),
        ("texture-3", set(CAMERAS)),
        ("image_noise-3", set(CAMERAS)),
        ("wording-3", {"instruction"}),
        ("robot_start-3", {"states", "proprio", *CAMERAS}),
    ],
)
def test_it_changes_what_it_says_and_the_next_clean_episode_is_clean(env, clean, name, changed):
    assert differing(clean, episode(env, name)) == changed
    assert differing(clean, episode(env, "none")) == set()


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_arm_starts_elsewhere_and_touches_nothing(env, level):
    from envs.perturbations.robot_start import JOINT_RAD

    model = env.simulation.model
    for k in range(5):
        env.reset(seed=0, options={"init_state_id": k})
        usual, settled = env.simulation.placement, env.sim_state()
        env.reset(seed=0, options={"init_state_id": k, "perturbation": f"robot_start-{level}"})
        moved = env.simulation.placement - usual
        size = np.sqrt(np.mean(moved[1:8] ** 2))
        assert size == pytest.approx(JOINT_RAD[level - 1])
        assert not moved[8:].any()
        # The settling steps turn the hand back and knock nothing over.
        left = env.sim_state() - settled
        assert np.sqrt(np.mean(left[1:8] ** 2)) > 0.3 * size
        assert np.abs(left[10 : 1 + model.nq]).max() < 1e-7


def test_an_arm_without_room_is_a_fault_and_not_a_collision(env, monkeypatch):
    from envs.perturbations import robot_start
    from vega_policy.spec import EnvFault

    env.reset(seed=0)
    monkeypatch.setattr(robot_start, "JOINT_RAD", (0.05, 0.1, 5.0))
    with pytest.raises(EnvFault, match="use a lower level"):
        made("robot_start-3").start(env.simulation.placement, env.simulation.model)


@pytest.mark.parametrize("kind", ["camera", "light", "texture"])
def test_an_edit_is_a_function_of_the_key_and_grows_with_the_level(env, kind):
    pristine = edited(env, "none")
    sizes = []
    for level in (1, 2, 3):
        name = f"{kind}-{level}"
        draws = [edited(env, name, init_state_id=k) - pristine for k in range(N_DRAWS)]
        sizes.append(np.mean([np.linalg.norm(draw) for draw in draws]))
        assert len({draw.tobytes() for draw in draws}) == N_DRAWS
        np.random.seed(level)  # noqa: NPY002
        before = np.random.get_state()  # noqa: NPY002
        assert np.array_equal(edited(env, name) - pristine, draws[0])
        after = np.random.get_state()  # noqa: NPY002
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert sizes[0] < sizes[1] < sizes[2]
    assert np.array_equal(edited(env, "none"), pristine)


def test_repetitions_and_seeds_are_drawn_anew(env):
    from envs import perturbations

    keys = [
        EpisodeKey(SUITE, TASK_ID, 0, "camera-2", seed, repetition)
        for seed in (0, 1)
        for repetition in (0, 1)
    ]
    assert len({perturbations.make(key).digest for key in keys}) == len(keys)
    poses = []
    for repetition in (0, 1, 0):
        options = {"perturbation": "camera-2", "repetition": repetition}
        env.reset(seed=0, options=options)
        poses.append(np.array(env.simulation.model.cam_pos))
    assert np.array_equal(poses[0], poses[2])
    assert not np.array_equal(poses[0], poses[1])


def test_image_noise_is_a_function_of_key_step_and_camera_and_grows_with_the_level(clean):
    image = clean["agentview"][0]
    sizes = []
    for level in (1, 2, 3):
        name = f"image_noise-{level}"
        seen = [
            made(name, init_state_id=k).look(image, camera="agentview", step=0)
            for k in range(N_DRAWS)
        ]
        sizes.append(np.mean([np.abs(s.astype(float) - image).mean() for s in seen]))
        np.random.seed(level)  # noqa: NPY002
        again = made(name).look(image, camera="agentview", step=0)
        assert np.array_equal(again, seen[0])
        assert seen[0].dtype == np.uint8
    assert sizes[0] < sizes[1] < sizes[2]
    # Grain is new in every image, all else stays for the episode.
    n_grainy = 0
    for k in range(N_DRAWS):
        worse = made("image_noise-2", init_state_id=k)
        looks = [
            worse.look(image, camera=camera, step=step).tobytes()
            for camera, step in (("agentview", 0), ("agentview", 1), ("wrist", 1))
        ]
        assert len(set(looks)) in (1, 3)
        n_grainy += len(set(looks)) == 3
    assert 0 < n_grainy < N_DRAWS


VERB = r"(?:pick up|put|place|open|close|turn on|turn off|push|stack)"


def stock_instructions():
    from envs import suites

    return [(s, t.task_id, t.instruction) for s in suites.SUITES for t in suites.tasks(s)]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_other_words_keep_every_object_colour_and_place(level):
    from envs import perturbations

    instructions = stock_instructions()
    assert len(instructions) == 130
    for suite, task_id, stock in instructions:
        for k in range(5):
            key = EpisodeKey(suite, task_id, k, f"wording-{level}")
            told = perturbations.make(key).rewrite(stock)
            assert told == perturbations.make(key).rewrite(stock)
            assert told != stock
            # A clause without its verb is a run of words that has to be found as it is.
            for clause in re.split(rf" and (?={VERB} )", stock):
                kept = re.sub(rf"^{VERB} ", "", clause)
                assert re.search(rf"\b{re.escape(kept)}\b", told), (stock, told)
            assert re.fullmatch(r"[A-Za-z ,:]+", told)


def test_other_words_become_more_and_differ_between_episodes():
    lengths = []
    for level in (1, 2, 3):
        told = [
            made(f"wording-{level}", init_state_id=k).rewrite("put the bowl on the plate")
            for k in range(N_DRAWS)
        ]
        assert len(set(told)) > 2
        lengths.append(np.mean([len(words.split()) for words in told]))
    assert lengths[0] < lengths[1] < lengths[2]


def test_an_unknown_verb_is_named():
    with pytest.raises(ContractError, match="'juggle the bowls' starts with none of"):
        made("wording-1").rewrite("juggle the bowls")


def test_the_documentation_has_the_magnitudes_of_the_code():
    from envs.perturbations import image_noise, robot_start, scene

    def of(shifts, name):
        return [getattr(shift, name) for shift in shifts]

    cameras, lights = scene.CAMERA_SHIFTS, scene.LIGHT_SHIFTS
    page = Path(__file__).parents[2].joinpath("docs", "perturbations.md").read_text()
    # The numbers of each row of the page's table that ends in three of them, in order.
    rows = re.findall(r"^\|.*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    expected = [
        *(of(cameras, name) for name in ("azimuth_deg", "elevation_deg", "distance", "aim_deg")),
        *(of(lights, name) for name in ("gain", "colour", "swing_deg")),
        scene.TINTS,
        robot_start.JOINT_RAD,
        image_noise.NOISE_LEVELS,
        image_noise.BLUR_PX,
        image_noise.EXPOSURE,
    ]
    listed = [tuple(map(float, row)) for row in rows]
    assert [tuple(row) for row in expected] == listed[1 : 1 + len(expected)]


# -- LIBERO-PRO -----------------------------------------------------------------------------------


def assert_equals_official(suite, task_id):
    """Compare states and pixels of two episodes with the official loop on the published suite."""
    from envs import LiberoEnv
    from envs.official import OfficialEnv

    with OfficialEnv(suite=suite, task_id=task_id, camera_px=64) as reference:
        official = [
            list(reference.episode(lambda _: ACTIONS, max_steps=len(ACTIONS))) for _ in range(2)
        ]
        goal = reference.handle.parsed_problem["goal_state"]
    with contextlib.closing(LiberoEnv(suite=suite, task_id=task_id, camera_px=64)) as env:
        for k in (1, 0):
            env.reset(seed=0, options={"init_state_id": k})
            for step, theirs in enumerate(official[k]):
                is_success = bool(step) and env.simulation.step(ACTIONS[step - 1])
                where = f"{suite} task {task_id}, episode {k}, step {step}"
                assert np.array_equal(env.sim_state(), theirs.state), where
                assert step == 0 or is_success == theirs.is_success, where
            seen = env._observe()
            for camera in CAMERAS:
                assert np.array_equal(seen[camera], official[k][-1].images[camera]), (camera, where)
        assert env.simulation.handle.parsed_problem["goal_state"] == goal


@pytest.mark.parametrize(
    ("suite", "task_id"), [("libero_object_object", 1), ("libero_object_swap", 3)]
)
def test_a_published_perturbed_suite_equals_the_official_protocol(suite, task_id):
    assert_equals_official(suite, task_id)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["lan", "object", "swap", "task"])
@pytest.mark.parametrize("stock", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_published_perturbed_suite_equals_the_official_protocol(stock, ending):
    """About 20 s each."""
    assert_equals_official(f"{stock}_{ending}", 4)


def test_returning_to_the_clean_scene_gives_a_fresh_one(env, clean):
    for name in ("pro_swap", "none"):
        seen = episode(env, name)
    assert env.task.perturbation == "none"
    assert differing(clean, seen) == set()


def test_the_instruction_is_rewritten_where_the_problem_file_does():
    from envs import suites

    usual = "open the middle drawer of the cabinet"
    names = ("none", "pro_object", "pro_swap", "pro_lan", "pro_task")
    told = [suites.get_task("libero_goal", 0, name).instruction for name in names]
    assert told[:3] == [usual] * 3
    assert told[3] == "open the cabinet's middle drawer"
    assert told[4] == "open the bottom drawer of the cabinet"


def test_success_is_the_goal_of_the_perturbed_problem_file():
    from envs import LiberoEnv

    with contextlib.closing(LiberoEnv(suite="libero_goal_task", task_id=0, render=False)) as env:
        for drawer, is_goal in (("middle", False), ("bottom", True)):
            env.reset()
            joint = env.simulation.data.joint(f"wooden_cabinet_1_{drawer}_level")
            joint.qpos[0] = -0.16
            assert env.simulation.step(np.zeros(7)) == is_goal, drawer
        assert env.instruction == "open the bottom drawer of the cabinet"


class Listener(FakePolicy):
    """Keeps what it was told."""

    def act(self, batch, *, keys):
        self.told = {observation.instruction for observation in batch}
        return super().act(batch, keys=keys)


def test_the_rewritten_instruction_reaches_the_policy_and_the_ledger(tmp_path):
    from functools import partial

    from envs import LiberoEnv
    from vega_policy.rollout.engine import LocalEngine
    from vega_policy.rollout.messages import WorkerSettings
    from vega_policy.rollout.plan import Job
    from vega_policy.rollout.schedule import EngineSettings

    policy, faults = Listener(), []
    engine = LocalEngine(
        policies={"full": policy},
        worker=WorkerSettings(
            make_simulator=partial(LiberoEnv, camera_px=64),
            action_spec=policy.action_spec,
            run_dir=tmp_path,
            max_steps=8,
            video="none",
        ),
        settings=EngineSettings(n_workers=1),
        log_dir=tmp_path / "logs",
        on_fault=lambda *fault: faults.append(fault),
    )
    key = EpisodeKey("libero_goal", 0, 0, "pro_lan")
    with contextlib.closing(engine.run([Job(key)])) as outcomes:
        (row,) = outcomes
    assert (row.key, row.n_steps, faults) == (key, 8, [])
    assert {row.instruction} == policy.told == {"open the cabinet's middle drawer"}
