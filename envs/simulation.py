"""LIBERO's official simulation, bit for bit, without the work nobody looks at.

The official protocol compiles the scene anew for each episode, renders both cameras at every
control step and runs the position and velocity stages three times per physics step. This module
drives the same robosuite environment object and gives the same float64 states and the same pixels:

* *Reset*: model and GL context are kept. What a recompile would restore (fixture poses, site
  colours, the gripper's accumulated command, object flags) is restored by hand, and MuJoCo's
  forward pass is called as often as officially, since each call moves the solver's warm start.
* *Random access*: fixture placement is a function of the reset index after ``seed``. The random
  state in front of each index is remembered, so any episode can be had in any order. NumPy's
  global generator, which LIBERO samples from, is put back afterwards.
* *Step*: the second and third forward pass of a physics step are shortened where re-normalising
  the quaternions is a no-op, which is the exact condition for them to give the same bits.
* *Cameras*: officially sampled in physics step 24 of 25. The kinematics of that moment are kept,
  and an image is rendered from them only when somebody asks.
"""
# pyright: basic
# ruff: noqa: ANN401, NPY002, SLF001

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.installed import libero_module, quiet
from envs.rendering import CulledRenderer
from vega_policy.spec import ContractError, EnvFault
from vega_policy.spec.rotation import quat_to_axis_angle

if TYPE_CHECKING:
    from envs.suites import Task

_CONTROL_HZ = 20
_CAMERA_IDS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
_RESTORED = (
    *("body_pos", "body_quat", "geom_pos", "geom_quat", "geom_rgba", "mat_rgba", "qpos0"),
    *("site_pos", "site_quat", "site_size", "site_rgba", "cam_pos", "cam_quat"),
    *("light_pos", "light_dir", "light_diffuse", "light_specular", "mat_texid"),
)
"""Model arrays that LIBERO, robosuite or a perturbation may write after compilation."""
_HEADLIGHT = ("ambient", "diffuse")
_POSED = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat"),
    *("site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""Data arrays a renderer reads."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What the sensors saw at the last sampling moment."""

    eef_position: NDArray[np.float64]
    """(3,) metres."""
    eef_quaternion: NDArray[np.float64]
    """(4,) x, y, z, w, of the hand body."""
    gripper: NDArray[np.float64]
    """(2,) finger joint positions, metres."""
    joints: NDArray[np.float64]
    """(7,) arm joint positions, radians."""

    @property
    def ee_state(self) -> NDArray[np.float64]:
        """(6,): position and axis-angle."""
        return np.concatenate([self.eef_position, quat_to_axis_angle(self.eef_quaternion)])

    @property
    def proprio(self) -> NDArray[np.float32]:
        """(8,): position, axis-angle, gripper."""
        return np.concatenate([self.ee_state, self.gripper]).astype(np.float32)


class LiberoSimulation:
    """One LIBERO scene.

    Args:
        task: The task whose scene is built.
        render: Create an off-screen GL context. Without one, ``image`` is refused and physics is
            the same up to the solver's warm start (one forward pass less at each reset).
    """

    placement: NDArray[np.float64]
    """The state this episode was started from, before the settling steps."""
    sample: Sample
    """What the sensors saw at the last sampling moment."""

    def __init__(self, task: Task, *, render: bool = True) -> None:
        self.task = task
        self.renders = render
        # Building places the scene once, with NumPy's global generator.
        outside = np.random.get_state()
        np.random.seed(0)
        try:
            self._env: Any = _build(task, render=render)
        finally:
            np.random.set_state(outside)
        self._model = self._env.sim.model._model
        self._data = self._env.sim.data._data
        self._pristine = self._env.vega_pristine
        self._initializers = list(self._env.object_property_initializers)
        objects = [*self._env.fixtures_dict.values(), *self._env.objects_dict.values()]
        self._objects = [o for o in objects if hasattr(o, "object_properties")]
        self._properties = [_fresh_properties(o) for o in self._objects]
        self._growth: list[int] = []
        self._random_states: list[Any] = []
        self._seed: int | None = None
        import mujoco

        self._mj: Any = mujoco
        self._model.opt.disableflags |= int(self._mj.mjtDisableBit.mjDSBL_SENSOR)
        self._renderer = CulledRenderer(self._env.sim, mujoco) if render else None
        self._n_substeps = int(self._env.control_timestep / self._env.model_timestep)
        self._arm: Any = None

    # -- episodes ---------------------------------------------------------------------------------

    def seed(self, seed: int) -> None:
        """Start the sequence of resets that ``numpy.random.seed(seed)`` starts officially."""
        if seed != self._seed:
            self._seed = seed
            self._random_states = [np.random.RandomState(seed).get_state()]
            self._growth = [1]

    def reset(self, *, index: int) -> None:
        """Do the ``index``-th reset after ``seed``, counted from 0, in any order.

        The first request for an index also plays the resets before it, a few milliseconds each.
        """
        if self._seed is None:
            raise ContractError("reset before seed: call seed(0), the official protocol's")
        outside = np.random.get_state()
        try:
            for i in range(min(index, len(self._random_states) - 1), index + 1):
                np.random.set_state(self._random_states[i])
                # Never cleared officially, this list has grown with every reset before.
                grown = self._initializers * self._growth[i]
                self._env.object_property_initializers[:] = grown
                n_tries = self._reset_until_placed()
                if i + 1 == len(self._random_states):
                    self._random_states.append(np.random.get_state())
                    self._growth.append(self._growth[i] + n_tries)
        finally:
            np.random.set_state(outside)

    def _reset_until_placed(self) -> int:
        from robosuite.utils.errors import RandomizationError

        n_tries = 1
        while True:
            try:
                with quiet():
                    self._reset_once()
            except RandomizationError:
                n_tries += 1
                continue
            return n_tries

    def _reset_once(self) -> None:
        env, model, data, mj = self._env, self._model, self._data, self._mj
        for name, values in self._pristine.items():
            getattr(model, name)[:] = values
        for name, values in env.vega_headlight.items():
            getattr(model.vis.headlight, name)[:] = values
        # Officially grows by its first length at each hard reset, so that later resets draw more
        # random numbers.
        env.object_property_initializers.extend(self._initializers)
        for robot in env.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        for obj, properties in zip(self._objects, self._properties, strict=True):
            obj.object_properties = copy.deepcopy(properties)
        mj.mj_resetData(model, data)
        mj.mj_forward(model, data)
        env.initialize_time(env.control_freq)
        if self.renders:
            mj.mj_forward(model, data)  # officially the new GL context does this
        env._reset_internal()
        mj.mj_forward(model, data)
        env._obs_cache = {}
        env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
        self._clock = _SampleClock(env.model_timestep, 1.0 / env.control_freq)
        self._clock.force()
        self._arm = _ArmController(env, mj)

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Put the scene into a flattened state, as the benchmark does with an initial state.

        Raises:
            ContractError: The state has another length than this scene's.
        """
        expected = 1 + self._model.nq + self._model.nv
        if len(state) != expected:
            raise ContractError(
                f"state has {len(state)} numbers, {self.task.name} needs {expected}; "
                "it belongs to another task or another LIBERO version"
            )
        env = self._env
        self.placement = np.array(state, dtype=np.float64)
        env.sim.set_state_from_flattened(self.placement)
        env.sim.forward()
        env._check_success()
        env._post_process()
        self._clock.force()
        self._take_sample()

    # -- stepping ---------------------------------------------------------------------------------

    def step(self, action: NDArray[Any]) -> bool:
        """Apply one action for 1/20 s.

        Args:
            action: (7,) in [-1, 1]; what lies outside is clipped by the controller.

        Returns:
            Whether the goal predicate holds afterwards.

        Raises:
            EnvFault: The physics became unstable (MuJoCo reset its data).
        """
        env, model, data, mj = self._env, self._model, self._data, self._mj
        action = np.asarray(action)
        env.timestep += 1
        for i in range(self._n_substeps):
            mj.mj_forward(model, data)
            if self._arm.control(action, is_policy_step=i == 0):
                mj.mj_step2(model, data)
            else:
                mj.mj_step(model, data)
            if self._clock.tick():
                self._take_sample()
        env.cur_time += env.control_timestep
        success = bool(env._check_success())
        env._post_process()
        for warning in (
            mj.mjtWarning.mjWARN_BADQPOS,
            mj.mjtWarning.mjWARN_BADQVEL,
            mj.mjtWarning.mjWARN_BADQACC,
        ):
            if data.warning[int(warning)].number:
                raise EnvFault(
                    f"{self.task.name}: the physics became unstable ({warning.name}) at step "
                    f"{env.timestep}; MuJoCo reset its data, the episode means nothing"
                )
        return success

    def _take_sample(self) -> None:
        env, data = self._env, self._data
        robot = env.robots[0]
        self._posed = (
            {name: np.array(getattr(data, name)) for name in _POSED} if self.renders else {}
        )
        quat_wxyz = data.xquat[env.sim.model.body_name2id(robot.robot_model.eef_name)]
        self.sample = Sample(
            eef_position=np.array(data.site_xpos[robot.eef_site_id]),
            eef_quaternion=np.array(quat_wxyz[[1, 2, 3, 0]]),
            gripper=np.array(data.qpos[robot._ref_gripper_joint_pos_indexes]),
            joints=np.array(data.qpos[robot._ref_joint_pos_indexes]),
        )

    # -- looking ----------------------------------------------------------------------------------

    def image(self, camera: str, px: int) -> NDArray[np.uint8]:
        """Render a camera as it was at the last sampling moment: (px, px, 3), upright.

        Raises:
            ContractError: The simulation was built without a GL context.
        """
        if self._renderer is None:
            raise ContractError("this simulation has no GL context; build it with render=True")
        data = self._data
        now = {name: np.array(getattr(data, name)) for name in _POSED}
        try:
            for name, values in self._posed.items():
                getattr(data, name)[:] = values
            raw = self._renderer.draw(_CAMERA_IDS[camera], px)
        finally:
            for name, values in now.items():
                getattr(data, name)[:] = values
        return np.ascontiguousarray(raw[::-1, ::-1])

    def state(self) -> NDArray[np.float64]:
        """Return time, qpos and qvel in one array."""
        return np.array(self._env.sim.get_state().flatten(), dtype=np.float64)

    @property
    def handle(self) -> Any:
        """The robosuite environment, for reading the scene (expert, scan exporter)."""
        return self._env

    @property
    def model(self) -> Any:
        """The compiled ``mujoco.MjModel``."""
        return self._model

    @property
    def data(self) -> Any:
        """The ``mujoco.MjData``."""
        return self._data

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called."""
        return self._env is not None

    def close(self) -> None:
        """Free the GL context and the model."""
        if self._env is not None:
            if self._renderer is not None:
                # Freeing deletes GL objects by number in whatever context is current, and it must
                # happen now: later it would delete those of the next environment.
                self._renderer.make_current()
                self._renderer = None
            self._env.close()
            self._env = None


class _SampleClock:
    """The arithmetic of robosuite's observables: when, within a control step, sensors are read.

    Kept in the same floating-point form, since the rounding of the time sums decides that it is
    physics step 24 of 25.
    """

    def __init__(self, dt: float, period: float) -> None:
        self._dt, self._period = dt, period
        self._elapsed, self._is_sampled = 0.0, False

    def force(self) -> None:
        self._elapsed += self._dt
        self._is_sampled = True
        self._wrap()

    def tick(self) -> bool:
        self._elapsed += self._dt
        is_due = not self._is_sampled and self._period >= self._elapsed
        self._is_sampled = self._is_sampled or is_due
        self._wrap()
        return is_due

    def _wrap(self) -> None:
        if self._elapsed >= self._period:
            self._elapsed %= self._period
            self._is_sampled = False


class _ArmController:
    """robosuite's OSC_POSE control of one physics step, with the repeated forward pass shortened.

    Made anew at each reset, because robosuite makes a new controller then. The arithmetic and its
    order are robosuite 1.4's, so torques are equal to the last bit.
    """

    def __init__(self, env: Any, mj: Any) -> None:
        from robosuite.utils import control_utils

        self._math = control_utils
        self._mj, self._model, self._data = mj, env.sim.model._model, env.sim.data._data
        self._robot = env.robots[0]
        self._osc = self._robot.controller
        osc, model, nv = self._osc, self._model, self._model.nv
        self._site = env.sim.model.site_name2id(osc.eef_name)
        self._q, self._v = np.array(osc.qpos_index), np.array(osc.qvel_index)
        self._jac_pos, self._jac_rot = np.zeros((3, nv)), np.zeros((3, nv))
        self._mass = np.zeros((nv, nv))
        self._scratch = np.zeros(model.nq)
        self._torque_low, self._torque_high = self._robot.torque_limits
        self._arm_actuators = self._robot._ref_joint_actuator_indexes
        gripper = self._robot.gripper
        self._grip_actuators = [env.sim.model.actuator_name2id(a) for a in gripper.actuators]
        span = model.actuator_ctrlrange[self._grip_actuators]
        self._grip_bias = 0.5 * (span[:, 1] + span[:, 0])
        self._grip_weight = 0.5 * (span[:, 1] - span[:, 0])
        self._is_clean: bool | None = None
        osc.update = self._update_if_due

    def control(self, action: NDArray[Any], *, is_policy_step: bool) -> bool:
        """Write the actuator commands; return whether the forward pass still is up to date."""
        osc, data = self._osc, self._data
        self._is_clean = None  # the first control after a reset runs no update
        if is_policy_step:
            osc.set_goal(action[: osc.control_dim])
        self._update_if_due()
        rotation_error = self._math.orientation_error(np.array(osc.goal_ori), osc.ee_ori_mat)
        force = np.multiply(osc.goal_pos - osc.ee_pos, osc.kp[0:3]) + np.multiply(
            -osc.ee_pos_vel, osc.kd[0:3]
        )
        torque = np.multiply(np.array(rotation_error), osc.kp[3:6]) + np.multiply(
            -osc.ee_ori_vel, osc.kd[3:6]
        )
        _, lambda_pos, lambda_rot, nullspace = self._math.opspace_matrices(
            osc.mass_matrix, osc.J_full, osc.J_pos, osc.J_ori
        )
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_rot, torque)])
        torques = np.dot(osc.J_full.T, wrench) + data.qfrc_bias[self._v]
        torques += self._math.nullspace_torques(
            osc.mass_matrix, nullspace, osc.initial_joint, osc.joint_pos, osc.joint_vel
        )
        osc.torques, osc.new_update = torques, True
        self._robot.torques = np.clip(torques, self._torque_low, self._torque_high)
        grip = self._robot.gripper.format_action(action[osc.control_dim :])
        data.ctrl[self._grip_actuators] = self._grip_bias + self._grip_weight * grip
        data.ctrl[self._arm_actuators] = self._robot.torques
        return self._quaternions_are_normal() if self._is_clean is None else self._is_clean

    def _quaternions_are_normal(self) -> bool:
        self._scratch[:] = self._data.qpos
        self._mj.mj_normalizeQuat(self._model, self._scratch)
        return bool(np.array_equal(self._scratch, self._data.qpos))

    def _update_if_due(self, force: bool = False) -> None:  # noqa: FBT001, FBT002
        if self._osc.new_update or force:
            self._update()

    def _update(self) -> None:
        osc, mj, model, data = self._osc, self._mj, self._model, self._data
        # A forward pass normalises the quaternions in place; where that changes nothing, its
        # position and velocity stages would only repeat what the pass before has computed.
        if self._quaternions_are_normal():
            mj.mj_forwardSkip(model, data, int(mj.mjtStage.mjSTAGE_VEL), 1)
            self._is_clean = True
        else:
            mj.mj_forward(model, data)
            self._is_clean = self._quaternions_are_normal()
        osc.ee_pos = np.array(data.site_xpos[self._site])
        osc.ee_ori_mat = np.array(data.site_xmat[self._site].reshape(3, 3))
        mj.mj_jacSite(model, data, self._jac_pos, self._jac_rot, self._site)
        osc.ee_pos_vel = np.dot(self._jac_pos, data.qvel)
        osc.ee_ori_vel = np.dot(self._jac_rot, data.qvel)
        osc.joint_pos, osc.joint_vel = data.qpos[self._q], data.qvel[self._v]
        osc.J_pos, osc.J_ori = (
            np.array(self._jac_pos[:, self._v]),
            np.array(self._jac_rot[:, self._v]),
        )
        osc.J_full = np.array(np.vstack([osc.J_pos, osc.J_ori]))
        mj.mj_fullM(model, self._mass, data.qM)
        osc.mass_matrix = self._mass[self._v, :][:, self._v]
        osc.new_update = False


def _fresh_properties(obj: Any) -> Any:
    properties = copy.deepcopy(obj.object_properties)
    sites = (properties or {}).get("vis_site_names") or {}
    for key, (name, _) in list(sites.items()):
        sites[key] = (name, False)
    return properties


def _build(task: Task, *, render: bool) -> Any:
    """Build robosuite's environment as LIBERO's ``OffScreenRenderEnv`` does."""
    if render and not os.environ.get("MUJOCO_GL"):
        raise ContractError(
            "MUJOCO_GL is not set, so images would need a display; "
            "export MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa (CPU) or MUJOCO_GL=egl (GPU)"
        )
    envs_module = libero_module("libero.libero.envs")
    bddl_utils = libero_module("libero.libero.envs.bddl_utils")
    import robosuite

    if not task.bddl_file.is_file():
        raise ContractError(f"{task.bddl_file} is missing; reinstall the LIBERO distribution")
    with quiet():
        info = bddl_utils.get_problem_info(str(task.bddl_file))
        problem = envs_module.TASK_MAPPING[info["problem_name"]]

        def initialize(self: Any, xml_string: str | None = None) -> None:
            problem._initialize_sim(self, xml_string)
            model = self.sim.model._model
            self.vega_pristine = {name: np.array(getattr(model, name)) for name in _RESTORED}
            head = model.vis.headlight
            self.vega_headlight = {name: np.array(getattr(head, name)) for name in _HEADLIGHT}

        # LIBERO checks the name of the class against the problem file, so the subclass keeps it.
        watched = type(problem.__name__, (problem,), {"_initialize_sim": initialize})
        return watched(
            bddl_file_name=str(task.bddl_file),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            use_camera_obs=render,
            has_renderer=False,
            has_offscreen_renderer=render,
            render_camera="frontview",
            render_collision_mesh=False,
            render_visual_mesh=True,
            render_gpu_device_id=-1,
            control_freq=_CONTROL_HZ,
            horizon=1000,
            ignore_done=False,
            hard_reset=True,
            camera_names=list(_CAMERA_IDS.values()),
            camera_heights=128,
            camera_widths=128,
            camera_depths=False,
        )
