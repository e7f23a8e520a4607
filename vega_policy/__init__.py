"""VEGA-Policy: a frozen video-generation prior fused into OpenVLA-OFT, evaluated on LIBERO.

The names below are the public interface; everything else can be reached but carries no promise.
They are loaded on first use, so that `import vega_policy` needs neither torch nor a simulator.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vega_policy.policy import PolicyConfig, VegaPolicy, from_pretrained
    from vega_policy.spec import (
        ActionChunk,
        ActionSpec,
        CheckpointError,
        ContractError,
        EpisodeKey,
        EpisodeResult,
        Observation,
        Policy,
        Simulator,
        VegaError,
    )

__all__ = [
    "ActionChunk",
    "ActionSpec",
    "CheckpointError",
    "ContractError",
    "EpisodeKey",
    "EpisodeResult",
    "Observation",
    "Policy",
    "PolicyConfig",
    "Simulator",
    "VegaError",
    "VegaPolicy",
    "from_pretrained",
]

_POLICY_NAMES = frozenset({"PolicyConfig", "VegaPolicy", "from_pretrained"})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "vega_policy.policy" if name in _POLICY_NAMES else "vega_policy.spec"
    value = getattr(import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
