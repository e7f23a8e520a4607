"""A store changes no row of a rollout; a cadence is part of what a run is."""

import contextlib
import dataclasses
import os
from functools import partial
from pathlib import Path

import pytest

from vega_policy.policy.pretrained import resolve
from vega_policy.policy.prior_reader import PriorReader
from vega_policy.policy.recipe import Recipe
from vega_policy.rollout.engine import LocalEngine
from vega_policy.rollout.messages import WorkerSettings
from vega_policy.rollout.plan import Job
from vega_policy.rollout.schedule import EngineSettings
from vega_policy.spec import CheckpointError, ContractError, EpisodeKey
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.published import published_checkpoint
from vega_policy.testing.tiny_policy import tiny_config, tiny_policy
from vega_policy.vision.prior.store import FeatureStore, PriorIdentity

ROOT = Path(__file__).resolve().parents[2]
JOBS = [Job(EpisodeKey("fake_reach", 0, i)) for i in range(3)]


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def worker(policy, folder):
    return WorkerSettings(
        make_simulator=partial(FakeEnv, camera_px=32),
        action_spec=policy.action_spec,
        run_dir=folder,
        video="none",
    )


def timeless(row):
    """Return a row without what depends on the moment."""
    info = {k: v for k, v in row.info.items() if k != "run"}
    return dataclasses.replace(row, wall_s=0.0, info=info)


def play(policy, folder, *, n_workers=2, jobs=JOBS, **settings):
    """Return the rows in order, and the milliseconds of the prior at each inference."""
    player = policy.arm("full")
    player.prior_reader = PriorReader(policy.model, **settings)
    engine = LocalEngine(
        policies={"full": player},
        worker=worker(policy, folder),
        settings=EngineSettings(n_workers=n_workers),
        log_dir=folder / "logs",
    )
    with contextlib.closing(engine.run(jobs)) as outcomes:
        rows = sorted(outcomes, key=lambda row: row.name)
    times = [[t["prior"] for t in row.info["run"]["policy_ms"]] for row in rows]
    return [timeless(row) for row in rows], times


@pytest.mark.parametrize("cadence", [1, 2])
def test_rows_with_and_without_a_store_are_equal(policy, tmp_path, cadence):
    identity = PriorIdentity.of(policy.model.prior)
    plain, _ = play(policy, tmp_path, cadence=cadence)
    for _ in ("cold", "warm"):
        store = FeatureStore(tmp_path / "store", identity)
        assert play(policy, tmp_path, cadence=cadence, store=store)[0] == plain
    assert len(store) > 0


def test_rows_with_a_cadence_do_not_depend_on_what_else_is_played(policy, tmp_path):
    together, times = play(policy, tmp_path, cadence=2, n_workers=3)
    alone = [play(policy, tmp_path, cadence=2, jobs=[job])[0][0] for job in JOBS]
    assert together == alone
    every, _ = play(policy, tmp_path)
    assert together != every
    # Of one worker, whose inferences share no pass with another's.
    _, [times] = play(policy, tmp_path, cadence=2, jobs=JOBS[:1], n_workers=1)
    assert len(times) > 2
    assert min(times[1::2]) < min(times[0::2]) / 2


def test_a_cluster_gives_the_rows_of_one_machine_although_a_policy_dies_in_an_episode(
    policy, tmp_path
):
    pytest.importorskip("ray")
    from vega_policy.rollout.ray_engine import RayEngine, RaySettings

    expected, _ = play(policy, tmp_path, cadence=2)
    policy.save_pretrained(tmp_path / "policy")
    made_by = Recipe(
        folder=tmp_path / "policy",
        device="cpu",
        unnorm_key=None,
        expected=policy.action_spec,
        prior_cadence=2,
    )
    marker = tmp_path / "died"

    def make():
        policies = made_by()
        act = policies["full"].act

        def dying(batch, *, keys):
            if batch[0].inference == 3 and not marker.exists():
                marker.touch()
                os._exit(1)  # and the features of inference 2 with it
            return act(batch, keys=keys)

        policies["full"].act = dying
        return policies

    faults = []
    engine = RayEngine(
        make_policies=make,
        worker=worker(policy, tmp_path),
        settings=EngineSettings(n_workers=2),
        cluster=RaySettings(n_inference=2),
        on_fault=lambda *fault: faults.append(fault[-1]),
    )
    with contextlib.closing(engine.run(JOBS)) as outcomes:
        rows = sorted((timeless(row) for row in outcomes), key=lambda row: row.name)
    made_with = [dataclasses.replace(row, made_with={}) for row in rows]
    assert made_with == expected
    assert faults
    assert all("played again from its start" in detail for detail in faults)


@pytest.fixture
def recipe(monkeypatch):
    """Return what the script makes of settings: the maker of policies, and the run's definition."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from hydra_cli import load_config
    from rollout import build_suite, policy_recipe

    suite, _ = build_suite({"name": "fake_small", "simulator": "fake", "step_s": 0.0})
    suite = dataclasses.replace(suite, name="libero_object")
    return lambda *settings: policy_recipe(load_config("rollout", list(settings)), suite)


def test_bad_settings_are_one_sentence_and_write_nothing(recipe, tmp_path):
    inside = resolve("nano-libero-object") / "features"
    for settings, words in (
        (["rollout.prior_cadence=0"], "whole number of at least 1"),
        ([f"rollout.feature_store={inside}"], "inside the checkpoint"),
        (["checkpoint=fake", "rollout.prior_cadence=2"], "has no prior"),
        (["checkpoint=fake", f"rollout.feature_store={tmp_path}"], "has no prior"),
    ):
        with pytest.raises(ContractError, match=words):
            recipe(*settings)
    assert not inside.exists()


def test_a_run_is_defined_by_its_cadence_and_the_checkpoints_own_is_found(recipe, tmp_path):
    plain, slow = (f"checkpoint={tmp_path / name}" for name in ("plain", "slow"))
    config = tiny_config()
    tiny_policy(tmp_path / "plain", config=config)
    changed = dataclasses.replace(config, prior=dataclasses.replace(config.prior, cadence=4))
    tiny_policy(tmp_path / "slow", config=changed)
    for settings, cadence in (
        ([plain], 1),
        ([plain, "rollout.prior_cadence=2"], 2),
        ([slow], 4),
        ([slow, "rollout.prior_cadence=1"], 1),
    ):
        make, defines = recipe(*settings)
        assert defines.get("prior_cadence", 1) == cadence
        assert ("prior_cadence" in defines) == (cadence > 1)  # as in runs of older versions
        assert make()["full"].prior_reader.cadence == cadence


def test_the_script_opens_the_store_it_is_told(recipe, tmp_path):
    tiny_policy(tmp_path / "policy")
    make, _ = recipe(f"checkpoint={tmp_path / 'policy'}", f"rollout.feature_store={tmp_path / 's'}")
    assert make()["full"].prior_reader.store.root == tmp_path / "s"


def test_statistics_are_the_suites_or_those_that_are_named(recipe, tmp_path):
    names = ("libero_object_no_noops", "libero_10_no_noops")
    published_checkpoint(tmp_path / "joint", datasets=names)
    joint = f"checkpoint={tmp_path / 'joint'}"
    assert recipe(joint)[1]["unnorm_key"] == names[0]
    assert recipe(joint, "rollout.unnorm_key=libero_10")[1]["unnorm_key"] == names[1]
    with pytest.raises(CheckpointError, match="unknown unnorm_key 'libero_90'"):
        recipe(joint, "rollout.unnorm_key=libero_90")
