"""The errors of the package; each says who has to act.

A message has four parts: what is wrong, what was found, what was expected, what to do.
"""

from __future__ import annotations


class VegaError(Exception):
    """Base of every error raised on purpose by this package."""


class ContractError(VegaError):
    """The user has to act before the run: a setting, a name or a file disagrees with another.

    Scripts answer it with its message on standard error and exit code 2.
    """


class CheckpointError(ContractError):
    """The user has to act before the run: a checkpoint is missing, foreign or inconsistent."""


class PolicyFault(VegaError):
    """The policy raised or returned an invalid chunk: an outcome of its own, the run goes on."""


class EnvFault(VegaError):
    """The simulator or the robot broke: retried, then a missing row, never a failed episode."""


class StorageFault(VegaError):
    """The disk refused a write: what is recorded is whole, the rest has to be made again."""


class SafetyStop(VegaError):
    """Motion must end now and stay ended until a person releases it."""
