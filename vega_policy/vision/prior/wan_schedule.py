"""Noise levels of Wan's sampler, for settings that name a step of it instead of a level."""

from __future__ import annotations

import numpy as np

N_STEPS = 1000


def nearest_timestep(k: float, *, shift: float = 5.0) -> tuple[int, float]:
    """Return the entry of the sampler's table that the released code takes for ``k``.

    The table has 1000 steps; ``s`` of the unshifted step becomes ``shift * s / (1 + (shift - 1) * s)``
    and its timestep is the integer part of a thousand times that. Near 1000 several steps share a
    timestep; the released code then takes the noise of the second.

    Args:
        k: Wanted timestep, 0 to 1000.
        shift: 5 in the released code; 1 is the table Wan was trained with.

    Returns:
        ``prior.timestep`` and ``prior.noise_level``: 299 and 0.29992 for k = 300.
    """
    highest = float(np.float32(1.0 - 1.0 / N_STEPS))  # the sampler keeps it in single precision
    plain = np.linspace(highest, 0.0, N_STEPS + 1)[:-1]
    levels = shift * plain / (1.0 + (shift - 1.0) * plain)
    timesteps = (levels * N_STEPS).astype(np.int64)
    timestep = int(timesteps[np.argmin(np.abs(timesteps - int(k)))])
    same = np.flatnonzero(timesteps == timestep)
    return timestep, float(np.float32(levels[same[min(1, len(same) - 1)]]))
