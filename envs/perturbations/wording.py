"""Other words for the same task.

Only the verb at the head of a clause, the words that join clauses and the frame around the whole
are changed. Everything that says which object, which colour and which place stays as it is, word
for word and in order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from envs.perturbations.base import Perturbation
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "pick up": (("grab", "grabbing"), ("take", "taking"), ("lift", "lifting")),
    "put": (("place", "placing"), ("set", "setting"), ("position", "positioning")),
    "place": (("put", "putting"), ("set", "setting"), ("position", "positioning")),
    "open": (("pull open", "pulling open"),),
    "close": (("shut", "shutting"),),
    "turn on": (("switch on", "switching on"),),
    "turn off": (("switch off", "switching off"),),
    "push": (("slide", "sliding"), ("move", "moving")),
    "stack": (("put", "putting"), ("place", "placing"), ("set", "setting")),
}
"""Every verb the instructions use, with its replacements and their -ing forms."""
FRAMES = (
    "please {}",
    "{}, please",
    "could you {}",
    "would you {}",
    "I would like you to {}",
    "your task is to {}",
    "you need to {}",
)
LONG_FRAMES = (
    "what I would like you to do now is to {}",
    "here is your next job: {}",
    "when you are ready, {}",
    "I need some help, so please {}",
)
_VERB = re.compile("|".join(sorted(VERBS, key=len, reverse=True)))
_JOINT = re.compile(rf" and (?=(?:{_VERB.pattern}) )")


class Wording(Perturbation):
    """Level 1: other verbs. Level 2: and a polite frame. Level 3: a long one, clauses rejoined."""

    def rewrite(self, instruction: str) -> str:
        """Return the instruction in other words."""
        rng = np.random.default_rng(self.digest)
        clauses = [_other_verb(clause, rng) for clause in _JOINT.split(instruction)]
        plain = [f"{verb} {rest}" for verb, _, rest in clauses]
        if self.level == 1:
            return " and ".join(plain)
        if self.level == 2:
            return _pick(FRAMES, rng).format(" and ".join(plain))
        text = " and ".join(plain)
        if len(clauses) == 2:
            _, doing, rest = clauses[0]
            text = _pick(
                (
                    f"first {plain[0]}, then {plain[1]}",
                    f"{plain[0]}, and after that {plain[1]}",
                    f"{plain[1]} after {doing} {rest}",
                )[: 2 if _REFERS_BACK.search(plain[1]) else 3],
                rng,
            )
        return _pick(LONG_FRAMES, rng).format(text)


_REFERS_BACK = re.compile(r"\b(it|them|inside)\b")
"""Such a clause has to stay behind the one it refers to."""


def _other_verb(clause: str, rng: np.random.Generator) -> tuple[str, str, str]:
    found = _VERB.match(clause)
    if found is None:
        raise ContractError(
            f"the instruction part {clause!r} starts with none of {', '.join(VERBS)}; "
            "its verb is needed in envs.perturbations.wording.VERBS"
        )
    verb, doing = VERBS[found.group()][int(rng.integers(len(VERBS[found.group()])))]
    return verb, doing, clause[found.end() :].strip()


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
