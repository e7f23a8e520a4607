"""The arms of the comparison: what reaches the language model beside the semantic tokens.

Visual tokens of every arm go without the 3D position code (``code_on=objects``). With it the language
model knows where everything lies, and an oracle of coordinates has nothing to add. Without it a
question that only the places of things decide ("the chair that is closest to the bed") can be answered
from proposals' boxes, whose code stays, only if the fused features say where the bed is. The arm
``coded`` has the published wiring, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Features = Literal["prior", "shuffled", "zeroed", "xyz"]


@dataclass(frozen=True)
class Arm:
    """One way to train and to evaluate; all else is equal between arms."""

    name: str
    says: str
    """What a reader of the table has to know."""
    features: Features | None
    """What stands in the place of the prior's features; None: no prior and no fusion."""
    is_blind: bool = False
    """Every frame is grey."""
    is_coded: bool = False
    """Visual tokens carry the position code."""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("full", "features of the prior", "prior"),
        Arm("no_prior", "semantic tokens alone", None),
        Arm("no_vision", "grey frames; text and boxes remain", None, is_blind=True),
        Arm("shuffled", "the prior's features of another scene", "shuffled"),
        Arm("zeroed", "zeros in place of the features", "zeroed"),
        Arm("oracle", "true coordinates in place of the features", "xyz"),
        Arm("coded", "no prior; position code on visual tokens, as published", None, is_coded=True),
    )
}
