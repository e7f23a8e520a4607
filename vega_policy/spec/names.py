"""Names a user typed, answered with the nearest valid one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from vega_policy.spec.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable


def require_name(name: str, valid: Iterable[str], *, what: str) -> str:
    """Return ``name`` if it is valid.

    Args:
        name: What the user wrote.
        valid: The names that exist.
        what: What is being named, for the message ("suite", "checkpoint").

    Raises:
        ContractError: ``name`` is not valid; the message names the nearest valid one.
    """
    names = list(valid)
    if name in names:
        return name
    raise ContractError(f"unknown {what} {name!r}; {nearest(name, names)}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return advice: the nearest valid name where one is close, else the whole list."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? (valid: {', '.join(names)})"
    return f"valid: {', '.join(names)}"
