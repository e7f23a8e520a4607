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
        problems: See `merge`.
        path: See `merge`.
    """
    return merge(kind(), values, problems=problems, path=path)


def merge(
    base: Settings, values: Mapping[str, Any], *, problems: list[str], path: str = ""
) -> Settings:
    """Return ``base`` with JSON-like values in place of its fields.

    Args:
        base: A dataclass; fields may be dataclasses.
        values: What is to be different.
        problems: Gets one sentence for every unknown key and every value of the wrong type; the
            result is meaningful only if it stays empty.
        path: Where in the tree this is, for the sentences.
    """
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}{key}"
        if key not in hints:
            problems.append(f"unknown key {where!r}; {nearest(key, hints)}")
            continue
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if isinstance(value, Mapping):
                group = typing.cast("Mapping[str, Any]", value)
                changes[key] = merge(current, group, problems=problems, path=f"{where}.")
            else:
                problems.append(f"{where} is {value!r}, expected a group of settings")
            continue
        fits, changes[key] = _convert(value, hints[key])
        if not fits:
            problems.append(f"{where} is {value!r}, expected {_words(hints[key])}")
    if problems:
        return base
    return dataclasses.replace(typing.cast("Any", base), **changes)


def _convert(value: object, hint: Any) -> tuple[bool, object]:  # noqa: ANN401 - any annotation
    """Return whether a value fits an annotation, and the value in its type."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint), value
    if origin is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            return False, value
        items = typing.cast("list[object]", value)
        if kinds[-1] is not Ellipsis and len(items) != len(kinds):
            return False, items
        pairs = [_convert(item, kinds[0]) for item in items]
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
