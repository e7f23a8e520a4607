"""What the arms are compared for, declared before any of them is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vega_policy.scene.train.clustered import Mean, paired_difference

if TYPE_CHECKING:
    from collections.abc import Mapping

Expected = Literal["up", "not up", "open"]


@dataclass(frozen=True)
class Contrast:
    """Arm a against arm b on the same questions."""

    a: str
    b: str
    asks: str
    expected: Expected
    """``up``: if a is not better the fusion path or the training is broken. ``not up``: if a is
    better, something else than the features helps. ``open``: what the study is for."""


CONTRASTS = (
    Contrast("no_prior", "chance", "is anything learnt", "up"),
    Contrast("no_prior", "no_vision", "do the frames help", "up"),
    Contrast("oracle", "no_prior", "does the fusion path carry geometry", "up"),
    Contrast("zeroed", "no_prior", "does the branch help without content", "not up"),
    Contrast("shuffled", "no_prior", "do features of another scene help", "not up"),
    Contrast("full", "no_prior", "does the prior help", "open"),
    Contrast("full", "shuffled", "does it matter whose features they are", "open"),
    Contrast("full", "zeroed", "does the content of the branch help", "open"),
    Contrast("full", "any_of_class", "does it beat knowing every class", "open"),
    Contrast("coded", "no_prior", "does the published position code help", "open"),
)


@dataclass(frozen=True)
class Finding:
    """What the held-out questions say of a contrast."""

    contrast: Contrast
    difference: Mean

    @property
    def verdict(self) -> str:
        """Return words for the table; ``not separated`` is not "equal"."""
        low, high = self.difference.interval
        seen = "higher" if low > 0 else "lower" if high < 0 else "not separated"
        if self.contrast.expected == "up":
            return f"{seen}, as it must be" if seen == "higher" else f"{seen}: expected higher"
        if self.contrast.expected == "not up":
            return (
                "higher: expected not to be"
                if seen == "higher"
                else f"{seen}: no help, as expected"
            )
        return seen


def compare(scores: Mapping[str, Mapping[str, float]], scenes: Mapping[str, str]) -> list[Finding]:
    """Make every declared comparison of arms that are there.

    Args:
        scores: By arm and question; the arms answered the same questions.
        scenes: Scene of each question.
    """
    return [
        Finding(c, paired_difference(scores[c.a], scores[c.b], scenes))
        for c in CONTRASTS
        if c.a in scores and c.b in scores
    ]
