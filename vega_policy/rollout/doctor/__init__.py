"""Preflight: is a number made here worth believing?"""

from vega_policy.rollout.doctor.behaviour import SelfExamining, policy_checks
from vega_policy.rollout.doctor.machine import Machine, Needs, machine_checks, read_machine
from vega_policy.rollout.doctor.verdict import Verdict, keep, load_verdict, preflight

__all__ = [
    "Machine",
    "Needs",
    "SelfExamining",
    "Verdict",
    "keep",
    "load_verdict",
    "machine_checks",
    "policy_checks",
    "preflight",
    "read_machine",
]
