"""Settings of the scene models, but for the sizes of their backbone, which has its own file."""

# ruff: noqa: ANN401
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vega_policy.spec import ContractError
from vega_policy.spec.settings import build
from vega_policy.vision.stream import VisionConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
Chat = Literal["plain", "qwen"]


@dataclass(frozen=True)
class CodeConfig:
    """Range and resolution of the 3D position code; the defaults are those of the released code."""

    low_m: tuple[float, float, float] = (-15.0, -15.0, -5.0)
    """Coordinates in the aligned frame are clamped to this corner ..."""
    high_m: tuple[float, float, float] = (15.0, 15.0, 5.0)
    """... and this one."""
    cell_m: float = 0.1
    """Coordinates are rounded to multiples of it, counted from ``low_m``."""
    temperature: float = 10000.0


@dataclass(frozen=True)
class ScanNetConfig:
    """A `ScanNetModel`, but for its weights, backbone and tokenizer."""

    towers: Literal["policy", "backbone"] = "policy"
    """``policy``: the towers and their projector are those of a policy's `VisionStream`, and the
    backbone's own are never run. ``backbone``: the backbone's SigLIP and projector, as published."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """With ``backbone`` what it says of the semantic towers is not looked at."""
    code: CodeConfig = field(default_factory=CodeConfig)
    points: Literal["measured", "all"] = "measured"
    """``all``: pixels without depth count as points at the camera, as in the released code."""
    code_on: Literal["all", "objects", "none"] = "all"
    """Where the 3D position code is added; ``objects`` and ``none`` are for studies of what a prior
    knows of places: visual tokens (and objects) learn them through the prior alone."""
    objects_from: Literal["semantic", "fused"] = "semantic"
    """Tokens that objects are the mean of. ``semantic``: before fusion, as published, so that the prior
    reaches objects only through the language model. ``fused``: after it (``towers=policy`` only)."""
    patches: Literal["half", "share"] = "half"
    """Patches an object is the mean of. ``half``: those with at least half of their points in its box,
    as published. ``share``: every one, weighted by the share of its points: a nano patch is an eighth of
    the image, and half of the objects of a room fill none."""
    chat: Chat = "plain"
    """Words around prompt and answer: Qwen's, or next to none."""


@dataclass(frozen=True)
class VsiConfig:
    """A `VsiModel`, but for its weights, backbone and tokenizer."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """Prior and fusion; the semantic towers and the prior's grid are not looked at: features are
    read on the prior's own grid."""
    merger_hidden: int = 128
    """Hidden width of the prior's 2x2 merger."""
    width_px: int = 112
    """Width frames are resized to before their sides are cut to whole tokens."""
    chat: Chat = "plain"


def to_dict(config: Any) -> dict[str, Any]:
    """Return a JSON-ready dictionary of nested frozen dataclasses."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Read what `to_dict` gave; absent keys keep their default.

    Raises:
        ContractError: A key is unknown or a group is none; all are listed.
    """
    problems: list[str] = []
    config = build(kind, values, problems=problems)
    if problems:
        raise ContractError("scene configuration: " + "; ".join(problems))
    return config
