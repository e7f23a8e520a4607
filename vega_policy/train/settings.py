"""Plain dictionaries into frozen dataclasses, with every complaint at once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from vega_policy.spec.names import nearest

Settings = TypeVar("Settings")


def build(
    kind: type[Settings], values: Mapping[str, Any], *, problems: list[str], path: str = ""
) -> Settings:
    """Build ``kind`` from JSON-like values; absent keys keep their default.

    Args:
        kind: A dataclass whose fields all have defaults; fields may be dataclasses.
        values: What the user set.
        problems: Gets one sentence for every unknown key and every value of the wrong type; the
            result is meaningful only if it stays empty.
        path: Where in the tree this is, for the sentences.
    """
    hints = typing.get_type_hints(kind)
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}{key}"
        if key not in hints:
            problems.append(f"unknown setting {where!r}; {nearest(key, hints)}")
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                chosen[key] = build(hints[key], value, problems=problems, path=f"{where}.")
            else:
                problems.append(f"{where} is {value!r}, expected a group of settings")
        else:
            fits, chosen[key] = _convert(value, hints[key])
            if not fits:
                problems.append(f"{where} is {value!r}, expected {_words(hints[key])}")
    return kind(**chosen)


def _convert(value: object, hint: Any) -> tuple[bool, object]:  # noqa: ANN401 - any annotation
    """Return whether a value fits an annotation, and the value in its type."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint), value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, value
        pairs = [_convert(item, typing.get_args(hint)[0]) for item in value]
        return all(fits for fits, _ in pairs), tuple(item for _, item in pairs)
    if isinstance(hint, types.UnionType):
        pairs = [_convert(value, kind) for kind in typing.get_args(hint)]
        return next((pair for pair in pairs if pair[0]), (False, value))
    if hint is float and type(value) is int:
        return True, float(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), value


def _words(hint: Any) -> str:  # noqa: ANN401 - any annotation
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return str(hint) if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))
