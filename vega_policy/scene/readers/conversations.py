"""The row format of the released training code: one conversation about one scene.

``{"id", "video": "scannet/<scene>", "conversations": [{"from": "human", "value"}, {"from": "gpt",
"value"}], "metadata": {...}}``; what a row is about stands between fixed words, which are cut off here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vega_policy.scene.readers.rows import Fields


def is_conversations(items: list[Any]) -> bool:
    """Say whether a file has this format, by its first row."""
    return isinstance(items[0], dict) and "conversations" in items[0]


def scene_of(fields: Fields) -> str:
    """Return the scene: the last part of ``video``."""
    return fields.text("video").rsplit("/", 1)[-1]


def asked(fields: Fields, *, before: str = "", after: str = "") -> str:
    """Return what the human says, without the image token and the fixed words around it."""
    text = _said(fields, 0)
    inner = text.removeprefix("<image>").strip()
    if text and not (inner.startswith(before) and inner.endswith(after)):
        fields.note(f"conversations[0].value is {inner[:40]!r}, expected {before!r} ... {after!r}")
    return inner.removeprefix(before).removesuffix(after).strip()


def answered(fields: Fields) -> str:
    """Return what the model should say."""
    return _said(fields, 1)


def _said(fields: Fields, turn: int) -> str:
    turns = fields.each("conversations")
    if len(turns) > turn:
        return turns[turn].text("value")
    if turns:
        fields.note(f"conversations has {len(turns)} turns, expected 2")
    return ""


def conversation(
    *, row_id: object, scene_id: str, human: str, gpt: str, metadata: dict[str, object]
) -> dict[str, object]:
    """Return a row of this format."""
    return {
        "id": row_id,
        "video": f"scannet/{scene_id}",
        "conversations": [{"value": human, "from": "human"}, {"value": gpt, "from": "gpt"}],
        "metadata": metadata,
    }
