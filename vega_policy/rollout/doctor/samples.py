"""Recorded observations of LIBERO, so that a policy can be examined before any simulator runs.

Two tasks per suite, each at the start of its first official episode. JPEG: what a probe changes is
far larger than what compression does.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

import vega_policy
from vega_policy.spec import CAMERAS, Observation
from vega_policy.spec.names import require_name

FOLDER = Path(vega_policy.__file__).parent / "assets" / "observations"


def suites() -> list[str]:
    """List the suites there are observations of."""
    return sorted(path.stem for path in FOLDER.glob("*.npz"))


def load_samples(suite: str, *, image_px: int) -> list[Observation]:
    """Return two observations of different tasks.

    Args:
        suite: One of `suites`.
        image_px: Side the images are brought to; they are recorded at 128.

    Raises:
        ContractError: There are none of this suite.
    """
    from PIL import Image

    require_name(suite, suites(), what="suite of recorded observations")
    found: list[Observation] = []
    with np.load(FOLDER / f"{suite}.npz", allow_pickle=False) as stored:
        for number in range(2):
            images = {}
            for camera in CAMERAS:
                image = Image.open(io.BytesIO(stored[f"{camera}_{number}"].tobytes()))
                if image.size != (image_px, image_px):
                    image = image.resize((image_px, image_px), Image.Resampling.BICUBIC)
                images[camera] = np.array(image, dtype=np.uint8)
            found.append(
                Observation(
                    images=images,
                    proprio=stored[f"proprio_{number}"].astype(np.float32),
                    instruction=str(stored[f"instruction_{number}"]),
                )
            )
    return found
