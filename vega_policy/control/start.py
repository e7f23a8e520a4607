"""What has to fit before anything moves: every disagreement at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.control.delay import GapVerdict, gap_free
from vega_policy.control.hold import hold_action
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vega_policy.control.link import Link, Seen
    from vega_policy.control.profile import RobotProfile
    from vega_policy.control.schedule import ScheduleSettings
    from vega_policy.spec import ActionSpec


def start_problems(
    profile: RobotProfile,
    policy: ActionSpec,
    latencies_s: Sequence[float],
    schedule: ScheduleSettings,
) -> list[str]:
    """List what keeps this policy from driving this robot, one sentence each; empty: nothing.

    Args:
        profile: The robot.
        policy: What the policy's numbers mean.
        latencies_s: Of warm inferences (`warm_up`), judged by their 99th percentile; empty: not
            judged.
        schedule: What turns chunks into actions.
    """
    problems = profile.action.disagreements(policy, ours=profile.name, theirs="the policy")
    try:
        hold_action(profile.action, gripper=profile.start_gripper)
    except ContractError as error:
        problems.append(str(error))
    if profile.hold_after_s < profile.period_s:
        problems.append(
            f"robot.hold_after_s is {profile.hold_after_s:g}, less than the {profile.period_s:g} s "
            "between two commands; every command would come too late"
        )
    for full, step, cap, unit in _scales(profile):
        largest = full if step is None else step
        if cap is not None and largest > cap * profile.period_s * (1 + 1e-9):
            what = "a command of 1 moves" if step is None else f"robot.limits.max_step_{unit} is"
            problems.append(
                f"{what} {largest:g} {unit} in {1000 * profile.period_s:g} ms, "
                f"{largest / profile.period_s:.3g} {unit}/s; the robot has {cap:g}: set "
                f"robot.limits.max_step_{unit} to {cap * profile.period_s:.4g} or less"
            )
    verdict = _verdict(profile, latencies_s, schedule)
    if verdict is not None and verdict.status == "refuse" and schedule.name != "open_loop":
        problems.append(f"schedule {schedule.name}: {verdict.sentence}")
    if latencies_s and _p99(latencies_s) >= profile.stop_after_s:
        problems.append(
            f"an inference takes {_p99(latencies_s):.2f} s, and without an action for "
            f"{profile.stop_after_s:g} s (robot.stop_after_s) the robot stops"
        )
    return problems


def start_warnings(
    profile: RobotProfile, latencies_s: Sequence[float], schedule: ScheduleSettings
) -> list[str]:
    """List what works but will be noticed, one sentence each."""
    warnings = [
        f"a command of 1 is {full:g} {unit}, at most {step:g} are sent: the policy will move "
        "slower than it was trained to"
        for full, step, _, unit in _scales(profile)
        if step is not None and step < full
    ]
    verdict = _verdict(profile, latencies_s, schedule)
    if verdict is not None and schedule.name == "open_loop":
        n = schedule.n_execute or profile.action.horizon
        held = verdict.delay_ticks / (n + verdict.delay_ticks)
        warnings.append(
            f"schedule open_loop holds for {verdict.delay_ticks} of every "
            f"{n + verdict.delay_ticks} steps, "
            f"{100 * held:.0f}% of the time"
        )
    elif verdict is not None and verdict.status == "warning":
        warnings.append(f"schedule {schedule.name}: {verdict.sentence}")
    return warnings


def warm_up(
    link: Link,
    look: Callable[[], Seen],
    *,
    n: int = 20,
    n_cold: int = 2,
    wait: Callable[[float], None] = time.sleep,
) -> list[float]:
    """Ask ``n_cold + n`` questions one after the other and return the latencies of the last n.

    Nothing moves: the answers are thrown away.

    Raises:
        ContractError: A question got no answer.
    """
    latencies_s: list[float] = []
    link.reset()
    for tick in range(n_cold + n):
        link.ask(look(), tick=tick)
        while (reply := link.poll()) is None:
            wait(0.002)
        if reply.chunk is None:
            raise ContractError(
                f"the policy does not answer: {reply.detail}; start it, or give it more time"
            )
        latencies_s.append(reply.latency_s)
    link.reset()
    return latencies_s[n_cold:]


def _p99(latencies_s: Sequence[float]) -> float:
    return float(np.percentile(np.asarray(latencies_s), 99))


def _verdict(
    profile: RobotProfile, latencies_s: Sequence[float], schedule: ScheduleSettings
) -> GapVerdict | None:
    if not latencies_s:
        return None
    return gap_free(
        _p99(latencies_s),
        profile.action.rate_hz,
        profile.action.horizon,
        ask_every=schedule.ask_every,
    )


def _scales(
    profile: RobotProfile,
) -> Iterator[tuple[float, float | None, float | None, str]]:
    """Yield a full command, the largest step, the speed of the robot and the unit."""
    limits = profile.limits
    yield profile.translation_m, limits.max_step_m, limits.max_speed_m_s, "m"
    yield profile.rotation_rad, limits.max_step_rad, limits.max_speed_rad_s, "rad"
