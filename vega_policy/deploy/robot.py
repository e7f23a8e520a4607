"""What the robot loop asks of an arm: five methods around whatever drives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from vega_policy.control.link import Command, Seen


@runtime_checkable
class Robot(Protocol):
    """An arm with its cameras.

    ``observe`` and ``apply`` are called by the loop's thread and return within a fraction of the
    control period: drivers that block belong into threads of the adapter. ``hold`` and ``stop`` may
    come from the watchdog's thread while one of the others hangs.
    """

    def observe(self) -> Seen | None:
        """Return the newest image of each camera and the newest proprioception.

        With the times they were taken, in `time.monotonic` seconds; None while something is
        missing. Images are upright, see `vega_policy.spec.Observation`.

        Raises:
            EnvFault: A sensor broke; the loop holds and asks again at the next step.
        """
        ...

    def apply(self, command: Command) -> None:
        """Send ``command.action``, in the units and signs of the robot's profile.

        ``command.kind`` is ``action`` or ``hold``; a hold's action is safe to send like any other.

        Raises:
            EnvFault: It cannot be sent; the loop stops the arm and ends.
        """
        ...

    def hold(self) -> None:
        """Stay: the loop sent nothing for the profile's ``hold_after_s``."""
        ...

    def stop(self) -> None:
        """Stand still by the arm's own means, until the next `apply`.

        The emergency stop is pressed, or the loop hangs; commands come again only after a person
        released it.
        """
        ...

    def close(self) -> None:
        """Let go of the arm; it must stand still without this process."""
        ...
