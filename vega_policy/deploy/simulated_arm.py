"""A simulator that plays the robot, in this process or, at its own pace, in another one."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from vega_policy.control.link import Seen
from vega_policy.deploy.codec import pack, unpack
from vega_policy.spec import CAMERAS, ContractError, EnvFault, Observation, Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    import numpy as np
    from numpy.typing import NDArray

    from vega_policy.control.link import Command, Link, Reply
    from vega_policy.spec import ActionSpec

_START_S = 300.0
"""How long a simulator may take to start or to reset."""
_LOOK_S = 30.0
"""How long its cameras may take to draw."""


class LazySimulator(Simulator, Protocol):
    """A simulator that looks only when it is told to: `envs.LiberoEnv` is one."""

    def step_chunk(
        self,
        actions: NDArray[np.floating[Any]],
        *,
        look_when_over: bool = True,
        look: bool = True,
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """See `vega_policy.spec.Simulator`; without ``look`` the observation lacks its images."""
        ...

    def look(self) -> dict[str, Any]:
        """Return the observation of this moment; no time passes."""
        ...


class SimulatedArm:
    """A `vega_policy.deploy.robot.Robot` whose time passes with its commands.

    Every `apply` is one control step of the simulator, and it looks after every one. For a loop at a fixed
    rate see `SimulatedArmProcess`.

    Args:
        simulator: `envs.LiberoEnv` or another; closed by `close`.
        clock: Stamps the observations.
    """

    def __init__(
        self, simulator: Simulator, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._simulator = simulator
        self._clock = clock
        self._observation: Observation | None = None
        self.is_over = False
        """Whether the episode is: goal reached, or the step limit."""
        self.is_success = False
        """Whether the goal was reached."""

    def reset(self, *, init_state_id: int = 0, seed: int = 0) -> None:
        """Begin an episode."""
        seen, _ = self._simulator.reset(seed=seed, options={"init_state_id": init_state_id})
        self.is_over = self.is_success = False
        self._observation = _observation(seen, self._simulator.instruction)

    def observe(self) -> Seen | None:
        """Return what was seen after the last step, stamped now: nothing moved since."""
        if self._observation is None:
            return None
        return _stamped(self._observation, self._clock())

    def apply(self, command: Command) -> None:
        """Take one control step; nothing happens once the episode is over."""
        if self.is_over or command.action is None:
            return
        seen, _, success, truncated, _ = self._simulator.step_chunk(command.action[None])
        self.is_success, self.is_over = bool(success), bool(success or truncated)
        self._observation = _observation(seen, self._simulator.instruction)

    def hold(self) -> None:
        """Do nothing: without commands no time passes."""

    def stop(self) -> None:
        """Do nothing: without commands no time passes."""

    def close(self) -> None:
        """Release the simulator."""
        self._simulator.close()


class SimulatedArmProcess:
    """A simulator in a process of its own: like an arm, it does not wait for the loop.

    Each command is one control step; without commands the arm stands still. Drawing two images in
    software takes longer than a control period, so an observation has proprioception only, and the
    images come with the question that wants them: the pilot's link is wrapped by `link`. They show
    the moment of the question, however long they take; that time counts as latency. While it is
    drawn this world stands still, and commands of that time are carried out afterwards.

    Args:
        make: Makes the simulator, in the other process; has to be picklable.
        rate_hz: Of the proprioception while nothing moves.
    """

    def __init__(self, make: Callable[[], LazySimulator], *, rate_hz: float = 20.0) -> None:
        # Not fork: this process has threads, and maybe a GL context.
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_play, args=(make, other, 1 / rate_hz), name="simulated-arm", daemon=True
        )
        self._process.start()
        other.close()
        self._changed = threading.Condition()
        self._frame: dict[str, Any] = {}
        """The newest report."""
        self._drawn: dict[str, Any] = {}
        """The newest one with images."""
        self._n_resets = self._n_looks = 0
        self._broken: Exception | None = None
        self._reader = threading.Thread(target=self._read, name="simulated-arm", daemon=True)
        self._reader.start()

    @property
    def is_over(self) -> bool:
        """Whether the episode is: goal reached, or the step limit."""
        return bool(self._frame.get("is_over"))

    @property
    def is_success(self) -> bool:
        """Whether the goal was reached."""
        return bool(self._frame.get("is_success"))

    @property
    def n_steps(self) -> int:
        """Control steps of the episode."""
        return int(self._frame.get("n_steps", 0))

    def reset(self, *, init_state_id: int = 0, seed: int = 0) -> None:
        """Begin an episode; returns when it did.

        Raises:
            ContractError: The simulator cannot be made.
            EnvFault: It broke, or does not answer.
        """
        self._n_resets += 1
        number = self._n_resets
        self._send({"reset": {"init_state_id": init_state_id, "seed": seed}, "number": number})
        self._wait_for(lambda: self._frame.get("reset") == number, _START_S, what="start")

    def observe(self) -> Seen | None:
        """Return the newest proprioception, without images."""
        frame = self._frame
        if self._broken is not None:
            raise self._broken
        if not frame:
            return None
        observation = Observation({}, frame["proprio"], frame["instruction"])
        is_drawing = self._n_looks > self._drawn.get("look", 0)
        return _stamped(observation, time.monotonic() if is_drawing else frame["taken_s"])

    def apply(self, command: Command) -> None:
        """Have one control step taken."""
        if command.action is not None:
            self._send({"action": command.action})

    def hold(self) -> None:
        """Do nothing: without commands it stands still."""

    def stop(self) -> None:
        """Do nothing: without commands it stands still."""

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._connection.send_bytes(pack({"close": True}))
        self._process.join(timeout=5.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._reader.join()
        self._connection.close()

    def link(self, link: Link) -> Link:
        """Wrap a link so that a question comes with what the cameras see at its tick."""
        return _LookingLink(link, self)

    def look(self) -> Mapping[str, NDArray[np.uint8]]:
        """Have the cameras draw this moment; the images come when they are used."""
        self._n_looks += 1
        self._send({"look": self._n_looks})
        return _Images(self, self._n_looks)

    def images(self, number: int) -> dict[str, NDArray[np.uint8]]:
        """Return the images of a look; waits for them."""
        self._wait_for(lambda: self._drawn.get("look", 0) >= number, _LOOK_S, what="draw")
        return self._drawn["images"]

    def _send(self, message: dict[str, Any]) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            self._connection.send_bytes(pack(message))
        except OSError as error:
            raise self._gone() from error

    def _wait_for(self, is_there: Callable[[], bool], seconds: float, *, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._broken or is_there(), timeout=seconds):
                raise EnvFault(f"the simulated arm did not {what} within {seconds:g} s")
            if self._broken is not None:
                raise self._broken

    def _read(self) -> None:
        """Receive reports, in a thread of its own, until the process is gone."""
        while True:
            try:
                frame = unpack(self._connection.recv_bytes())
            except (EOFError, OSError):
                frame = {}
            with self._changed:
                if "error" in frame:
                    kind = ContractError if frame["is_contract"] else EnvFault
                    self._broken = kind(f"the simulated arm broke: {frame['error']}")
                elif not frame:
                    self._broken = self._broken or self._gone()
                else:
                    self._frame = frame
                    self._drawn = frame if "images" in frame else self._drawn
                self._changed.notify_all()
                if self._broken is not None:
                    return

    def _gone(self) -> EnvFault:
        return EnvFault("the simulated arm's process is gone; its last words are above")


class _Images(Mapping[str, "NDArray[np.uint8]"]):
    """Images that are still being drawn."""

    def __init__(self, arm: SimulatedArmProcess, number: int) -> None:
        self._arm, self._number = arm, number

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        return self._arm.images(self._number)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arm.images(self._number))

    def __len__(self) -> int:
        return len(self._arm.images(self._number))


class _LookingLink:
    """Asks with images that are drawn while the question is under way."""

    def __init__(self, link: Link, arm: SimulatedArmProcess) -> None:
        self._link, self._arm = link, arm

    @property
    def action_spec(self) -> ActionSpec:
        return self._link.action_spec

    def ask(self, seen: Seen, *, tick: int) -> None:
        # The request to draw leaves before the command of this tick: the same moment, exactly.
        observation = replace(seen.observation, images=self._arm.look())
        self._link.ask(replace(seen, observation=observation), tick=tick)

    def poll(self) -> Reply | None:
        return self._link.poll()

    def reset(self) -> None:
        self._link.reset()

    def close(self) -> None:
        self._link.close()


def _observation(seen: Mapping[str, Any], instruction: str) -> Observation:
    images = {name: seen[name] for name in CAMERAS if name in seen}
    return Observation(images, seen["proprio"], instruction)


def _stamped(observation: Observation, taken_s: float) -> Seen:
    stamps_s = dict.fromkeys((*observation.images, "proprio"), taken_s)
    return Seen(observation=observation, stamps_s=stamps_s)


def _play(make: Callable[[], LazySimulator], connection: Connection, period_s: float) -> None:
    """Be the other process: do what is said, report, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the loop is told, and says good-bye here
    try:
        simulator = make()
        try:
            _answer(simulator, connection, period_s)
        finally:
            simulator.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except ContractError as error:
        connection.send_bytes(pack({"error": str(error), "is_contract": True}))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        connection.send_bytes(pack({"error": text, "is_contract": False}))
        raise


def _answer(simulator: LazySimulator, connection: Connection, period_s: float) -> None:
    frame: dict[str, Any] = {}
    while True:
        message = unpack(connection.recv_bytes()) if connection.poll(period_s) else {}
        images: dict[str, Any] = {}
        match message:
            case {"close": _}:
                return
            case {"reset": {"init_state_id": init_state_id, "seed": seed}, "number": number}:
                seen, _ = simulator.reset(seed=seed, options={"init_state_id": init_state_id})
                frame = {"reset": number, "is_over": False, "is_success": False, "n_steps": 0}
                frame |= {"proprio": seen["proprio"], "instruction": simulator.instruction}
            case {"look": number}:
                seen = simulator.look()
                images = {"look": number, "images": {name: seen[name] for name in CAMERAS}}
            case {"action": action} if frame and not frame["is_over"]:
                seen, _, success, truncated, _ = simulator.step_chunk(action[None], look=False)
                frame |= {"is_over": bool(success or truncated), "is_success": bool(success)}
                frame |= {"proprio": seen["proprio"], "n_steps": frame["n_steps"] + 1}
            case _:
                pass
        if frame:
            connection.send_bytes(pack({**frame, **images, "taken_s": time.monotonic()}))
