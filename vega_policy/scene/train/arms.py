"""The arms of the comparison: what stands beside the semantic tokens.

Two wirings. ``fused``, the default: objects are means of fused tokens, and nothing carries the 3D
position code, so that only the features can say where anything is; an oracle of coordinates then has
something to add, a few layers from the loss. ``published``: objects are means of semantic tokens plus
the code of their box; features reach grounding only through the language model, whose visual tokens go
without code. The arm ``coded`` is the published model without a prior, code everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Wiring = Literal["fused", "published"]
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
    """Visual tokens and objects carry the position code, and objects are of semantic tokens."""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("full", "features of the prior", "prior"),
        Arm("no_prior", "semantic tokens alone", None),
        Arm("no_vision", "grey frames", None, is_blind=True),
        Arm("shuffled", "the prior's features of another scene", "shuffled"),
        Arm("zeroed", "zeros in place of the features", "zeroed"),
        Arm("oracle", "true coordinates in place of the features", "xyz"),
        Arm("coded", "no prior; position code on visual tokens, as published", None, is_coded=True),
    )
}
