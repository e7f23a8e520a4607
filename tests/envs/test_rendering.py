"""Geoms a camera cannot see are left out, and nobody can tell from the picture."""

import mujoco
import numpy as np
import pytest

pytestmark = pytest.mark.sim

CAMERAS = ("agentview", "robot0_eye_in_hand")


@pytest.fixture(scope="module")
def stove():
    """A scene with a stove whose plate reflects what stands around it."""
    from envs import LiberoEnv

    env = LiberoEnv(suite="libero_spatial", task_id=0, camera_px=64)
    yield env
    env.close()


def pictures(env, draw):
    """Return what both cameras see along a wild motion, drawn by ``draw(camera)``."""
    rng = np.random.RandomState(1)
    actions = np.clip(np.sin(np.cumsum(rng.uniform(-0.5, 0.5, (40, 7)), axis=0)), -1, 1)
    env.reset(seed=0, options={"init_state_id": 0})
    seen = [draw(camera) for camera in CAMERAS]
    for start in range(0, len(actions), 10):
        for action in actions[start : start + 10]:
            env.simulation.step(action)
        seen += [draw(camera) for camera in CAMERAS]
    return seen


def test_no_pixel_changes_and_the_wrist_camera_sees_half_the_scene(stove, monkeypatch):
    from envs.rendering import CulledRenderer

    sim = stove.simulation.handle.sim
    renderer = CulledRenderer(sim, mujoco)
    groups = np.array(sim.model._model.geom_group)
    whole = pictures(stove, lambda c: sim.render(camera_name=c, width=64, height=64))
    culled = pictures(stove, lambda c: renderer.draw(c, 64))
    assert all(np.array_equal(a, b) for a, b in zip(whole, culled, strict=True))
    assert np.array_equal(sim.model._model.geom_group, groups)
    wrist = mujoco.mj_name2id(sim.model._model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERAS[1])
    assert renderer.is_visible(wrist).mean() < 0.7
    # Without mirror images something reflected is lost: the equality above can fail.
    monkeypatch.setattr(CulledRenderer, "_reflects", lambda self: np.zeros_like(self._is_plane))
    careless = pictures(stove, lambda c: renderer.draw(c, 64))
    assert not all(np.array_equal(a, b) for a, b in zip(whole, careless, strict=True))
