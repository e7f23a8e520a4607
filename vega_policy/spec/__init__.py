"""The words everybody speaks: observations, actions, episodes, protocols, errors, conventions.

NumPy only; imports nothing of ours.
"""

from vega_policy.spec.action import ActionChunk, ActionSpec
from vega_policy.spec.check import Check
from vega_policy.spec.episode import FULL_ARM, EpisodeKey, EpisodeResult, Outcome
from vega_policy.spec.errors import (
    CheckpointError,
    ContractError,
    EnvFault,
    PolicyFault,
    SafetyStop,
    StorageFault,
    VegaError,
)
from vega_policy.spec.observation import AGENTVIEW, CAMERAS, WRIST, Observation
from vega_policy.spec.protocols import Policy, Simulator

__all__ = [
    "AGENTVIEW",
    "CAMERAS",
    "FULL_ARM",
    "WRIST",
    "ActionChunk",
    "ActionSpec",
    "Check",
    "CheckpointError",
    "ContractError",
    "EnvFault",
    "EpisodeKey",
    "EpisodeResult",
    "Observation",
    "Outcome",
    "Policy",
    "PolicyFault",
    "SafetyStop",
    "Simulator",
    "StorageFault",
    "VegaError",
]
