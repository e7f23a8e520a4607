"""Words, numbers and small pieces of HTML that several sections write alike."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING, Any

from vega_policy.rollout.plan import CLEAN, SAMPLED_START
from vega_policy.spec import FULL_ARM, EpisodeResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from vega_policy.rollout.statistics import Group

OUTCOMES = {"success": "success", "failure": "failure", "policy_fault": "policy fault"}
ARMS = {FULL_ARM: "full policy", "gate_clamped": "gate clamped"}
PERTURBATIONS = {
    CLEAN: "clean",
    SAMPLED_START: "sampled start",
    "pro_lan": "LIBERO-PRO language",
    "pro_object": "LIBERO-PRO object",
    "pro_swap": "LIBERO-PRO swap",
    "pro_task": "LIBERO-PRO task",
}
"""How they are called on the page; others by their own name, ``camera-2`` as "camera 2"."""


def arm_words(arm: str) -> str:
    """Return what an arm is called."""
    return ARMS.get(arm, arm.replace("_", " "))


def perturbation_words(name: str) -> str:
    """Return what a perturbation is called."""
    return PERTURBATIONS.get(name, name.replace("_", " ").replace("-", " "))


def group_words(group: Group) -> str:
    """Return what a group of episodes is called."""
    arm, perturbation = group
    return f"{perturbation_words(perturbation)} episodes, {arm_words(arm)}"


def start_words(row: EpisodeResult) -> str:
    """Say where an episode begins, and which repetition it is where it is not the first."""
    kind = "sampled start" if row.key.perturbation == SAMPLED_START else "initial state"
    again = f", repetition {row.key.repetition}" if row.key.repetition else ""
    return f"{kind} {row.key.init_state_id}{again}"


def typeset(text: str) -> str:
    """Return text with numbers as HTML: the dash of a range, the minus of a sign, "80 %" whole."""
    dashed = escape(text).replace(" - ", " &ndash; ").replace("-", "&minus;")
    return dashed.replace(" %", "&nbsp;%")


def steps(mean: float | None) -> str:
    """Return a mean number of steps."""
    return "-" if mean is None else f"{mean:.0f}"


def plain_table(rows: Iterable[tuple[str, Any]]) -> str:
    """Lay out names and values."""
    lines = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape('-' if value is None else str(value))}</td></tr>"
        for name, value in rows
    )
    return f'<table class="plain">{lines}</table>'


def scrolled(table: str, *, label: str, kind: str = "results") -> str:
    """Put a table on a card of its own that scrolls sideways, also by keyboard."""
    return (
        f'<div class="card scroll {kind}" tabindex="0" role="region" '
        f'aria-label="{escape(label)}">{table}</div>'
    )


def jpeg(image: NDArray[np.uint8]) -> str:
    """Return an image as a data address; images below 256 px are doubled so they stay sharp."""
    from PIL import Image

    picture = Image.fromarray(image)
    factor = math.ceil(256 / max(picture.size))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=84)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
