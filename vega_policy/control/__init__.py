"""What happens between two inferences; the same objects in the simulator and on a robot."""

from vega_policy.control.schedule import (
    Asynchronous,
    Ensemble,
    OpenLoop,
    Schedule,
    ScheduleSettings,
    build_schedule,
    require_valid_chunk,
)

__all__ = [
    "Asynchronous",
    "Ensemble",
    "OpenLoop",
    "Schedule",
    "ScheduleSettings",
    "build_schedule",
    "require_valid_chunk",
]
