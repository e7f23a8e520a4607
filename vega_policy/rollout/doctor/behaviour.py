"""What a policy must show before its success rate means anything, asked through `spec.Policy` alone.

Each probe changes one input and looks at the actions, so it does not matter how the policy is
built or why it is broken: a library that drops the image, a prompt that is never read, a batch
that leaks. Costs about 20 inferences.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec import Check, ContractError, Observation, Policy, PolicyFault
from vega_policy.spec.probe import judge, run_probe, skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vega_policy.spec import ActionChunk

UNMOVED = 1e-5
"""Largest change of a command that counts as none: float noise of another batch is 1e-6."""
BARELY = 0.005
"""Changes below this share of the range are suspicious: trained policies move by 0.02 to 0.5."""
SAME_ANSWER = 1e-4
"""Largest difference between two ways to ask that cannot matter."""
_LEAK = 0.1
"""Largest such difference that rounding may make: bfloat16 has steps of 0.004 near 1, and other
batch sizes take other kernels on a GPU."""
_STEP_M = 0.05
OTHER_INSTRUCTION = "open the middle drawer of the cabinet"

_check = partial(judge, "policy")
_skipped = partial(skipped, "policy")


@runtime_checkable
class SelfExamining(Protocol):
    """Optional ability of a policy: checks that need to know how it is built."""

    def checks(self, observations: Sequence[Observation], *, suite: str) -> Iterator[Check]:
        """Make them, lazily."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A policy under examination, and its answer to the first observation."""

    policy: Policy
    observations: Sequence[Observation]
    base: NDArray[np.float64]
    """(horizon, size) commands."""

    @property
    def seen(self) -> Observation:
        return self.observations[0]

    def ask(self, observation: Observation, *, key: int = 0) -> NDArray[np.float64]:
        return _commands(self.policy.act([observation], keys=[key])[0])

    def change(self, observation: Observation) -> float:
        """Return how far the commands move, largest number of the chunk."""
        return float(np.abs(self.ask(observation) - self.base).max())


def policy_checks(
    policy: Policy,
    observations: Sequence[Observation],
    *,
    suite: str,
    ignores: Sequence[str] = (),
    max_batch: int | None = None,
) -> Iterator[Check]:
    """Examine a policy, lazily.

    Args:
        policy: The loaded policy; its global surroundings are left as they were.
        observations: At least two, of different scenes, as the environment gives them.
        suite: Name of the suite the policy is to play.
        ignores: Inputs this policy is known to be made without: camera names, ``instruction``,
            ``proprio``. A policy may also say so itself, in an attribute of this name.
        max_batch: Observations the rollout asks about at once, at most; None is any number.

    Raises:
        ContractError: There are fewer than two observations.
    """
    if len(observations) < 2:
        raise ContractError(
            f"{len(observations)} observations to examine the policy with; give two, of two scenes"
        )
    unused = {*ignores, *getattr(policy, "ignores", ())}
    chunks: list[ActionChunk] = []
    answers = run_probe("policy", "answers", lambda: _answers(policy, observations, chunks))
    yield answers
    if answers.status == "failed":
        yield _skipped("behaviour", "the policy gave no valid answer to change anything about")
    else:
        subject = _Subject(policy=policy, observations=observations, base=_commands(chunks[0]))
        for camera in subject.seen.images:
            name = f"sees_{camera}"
            if camera in unused:
                yield _skipped(name, f"this policy is made without the {camera} camera")
            else:
                yield run_probe("policy", name, partial(_sees, subject, camera, name))
        for name, what, probe in (
            ("reads_instruction", "instruction", _reads_instruction),
            ("uses_proprio", "proprio", _uses_proprio),
        ):
            if what in unused:
                yield _skipped(name, f"this policy is made without the {what}")
            else:
                yield run_probe("policy", name, partial(probe, subject))
        yield run_probe("policy", "key_determinism", lambda: _key_determinism(subject))
        if max_batch == 1:
            yield _skipped("batch_invariance", "rollout.max_batch=1: nothing shares a batch")
        else:
            yield run_probe("policy", "batch_invariance", lambda: _batch_invariance(subject))
        yield run_probe("policy", "gate", lambda: _gate(chunks))
    if isinstance(policy, SelfExamining):
        yield from policy.checks(observations, suite=suite)


def _answers(
    policy: Policy, observations: Sequence[Observation], chunks: list[ActionChunk]
) -> Check:
    """Ask about every observation; shape, type, bounds and finiteness of what comes back."""
    spec = policy.action_spec
    expected = (
        f"({spec.horizon}, {spec.size}) floats, finite, within {spec.low:g} and {spec.high:g}"
    )
    problems: list[str] = []
    for number, observation in enumerate(observations):
        try:
            answered = policy.act([observation], keys=[number])
        except (ContractError, PolicyFault) as error:
            problems.append(str(error))
            break
        if len(answered) != 1:
            problems.append(f"{len(answered)} answers to one observation")
            break
        chunks.append(answered[0])
        problems += _problems(policy, answered[0])
    where = list(dict.fromkeys(problems))
    shown = "; ".join(where[:3]) if where else f"{len(chunks)} chunks of {chunks[0].actions.shape}"
    return _check(
        "answers",
        shown,
        expected=expected,
        fix="use weights that are whole, and observations of the kind the policy was trained with",
        is_failed=bool(problems),
    )


def _problems(policy: Policy, chunk: ActionChunk) -> list[str]:
    spec = policy.action_spec
    actions: Any = chunk.actions
    shape = (spec.horizon, spec.size)
    if np.shape(actions) != shape or not np.issubdtype(np.asarray(actions).dtype, np.floating):
        return [f"a chunk is {np.asarray(actions).dtype} {np.shape(actions)}"]
    if not np.isfinite(actions).all():
        return [f"{int((~np.isfinite(actions)).sum())} numbers of a chunk are not finite"]
    if actions.min() < spec.low or actions.max() > spec.high:
        return [f"a chunk reaches from {actions.min():.3g} to {actions.max():.3g}"]
    return []


def _sees(subject: _Subject, camera: str, name: str) -> Check:
    """Black, white and another scene in one camera, the other cameras as they were."""
    image = subject.seen.images[camera]
    others = [o.images[camera] for o in subject.observations[1:]]
    scenes = [other for other in others if other.shape == image.shape]
    pictures = {
        "black": np.zeros_like(image),
        "white": np.full_like(image, 255),
        **({"another scene": scenes[-1]} if scenes else {}),
    }
    moved = {
        what: subject.change(replace(subject.seen, images={**subject.seen.images, camera: picture}))
        for what, picture in pictures.items()
    }
    return _check(
        name,
        f"the commands move by {_listed(moved)}",
        expected=f"more than {BARELY:g}: the policy looks at this camera",
        fix=f"the {camera} image does not reach the model: compare its transformers version and "
        "its image path with those it was trained with",
        is_failed=max(moved.values()) <= UNMOVED,
        is_warning=max(moved.values()) < BARELY,
    )


def _reads_instruction(subject: _Subject) -> Check:
    told = [OTHER_INSTRUCTION, *(o.instruction for o in subject.observations)]
    others = [text for text in dict.fromkeys(told) if text != subject.seen.instruction][:3]
    moved = {
        f"'{text}'": subject.change(replace(subject.seen, instruction=text)) for text in others
    }
    return _check(
        "reads_instruction",
        f"the commands move by {_listed(moved)}",
        expected=f"more than {BARELY:g}: the policy reads the instruction",
        fix="the prompt does not reach the model: check its tokenizer and template, and that the "
        "environment's instruction is what is passed on",
        is_failed=max(moved.values()) <= UNMOVED,
        is_warning=max(moved.values()) < BARELY,
    )


def _uses_proprio(subject: _Subject) -> Check:
    moved: dict[str, float] = {}
    for sign in (-1, 1):
        proprio = np.array(subject.seen.proprio, copy=True)
        proprio[:3] += sign * _STEP_M
        what = f"{100 * sign * _STEP_M:+.0f} cm"
        moved[what] = subject.change(replace(subject.seen, proprio=proprio))
    return _check(
        "uses_proprio",
        f"the commands move by {_listed(moved)} along every axis",
        expected=f"more than {BARELY:g}: the policy knows where its hand is",
        fix="the proprioception does not reach the model, or its statistics are so wide that 5 cm "
        "vanish in them",
        is_failed=max(moved.values()) <= UNMOVED,
        is_warning=max(moved.values()) < BARELY,
    )


def _key_determinism(subject: _Subject) -> Check:
    """Ask twice with one key, the global generators set differently; then with another key."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    torch: Any = sys.modules.get("torch")  # asked for, never imported: a policy may not need it
    torch_state = torch.get_rng_state() if torch is not None else None
    try:
        again: list[NDArray[np.float64]] = []
        for seed in (1, 2):
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            if torch is not None:
                torch.default_generator.manual_seed(seed)
            again.append(subject.ask(subject.seen))
        other_key = float(np.abs(subject.ask(subject.seen, key=1) - subject.base).max())
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if torch is not None and torch_state is not None:
            torch.set_rng_state(torch_state)
    worst = max(float(np.abs(one - subject.base).max()) for one in again)
    return _check(
        "key_determinism",
        f"the same key moves the commands by {worst:.2g}, another key by {other_key:.2g}",
        expected="0 for the same key, whatever the global generators hold",
        fix="the policy draws from global random state or keeps memory between calls: draw from "
        "the inference's key, else no episode can be played again",
        is_failed=worst > SAME_ANSWER,
        is_warning=worst > 0,
    )


def _batch_invariance(subject: _Subject) -> Check:
    """Ask about one observation alone, then among others, first and last."""
    others = list(subject.observations[1:3])
    keys = [7 + number for number in range(len(others))]
    front = subject.policy.act([subject.seen, *others], keys=[0, *keys])
    back = subject.policy.act([*others, subject.seen], keys=[*keys, 0])
    if len(front) != len(back) or len(front) != 1 + len(others):
        raise PolicyFault(f"{len(front)} answers to {1 + len(others)} observations")
    answers = [_commands(front[0]), _commands(back[-1])]
    # Without the gripper: its sign may flip where its number is near the middle.
    worst = max(float(np.abs(a - subject.base)[:, :-1].max()) for a in answers)
    flips = max(int((a[:, -1] != subject.base[:, -1]).sum()) for a in answers)
    return _check(
        "batch_invariance",
        "the commands are the same bit by bit"
        if worst == 0 and flips == 0
        else f"the commands differ by up to {worst:.2g}, the gripper in {flips} steps",
        expected=f"0, at most {SAME_ANSWER:g}: what else is in the batch does not matter",
        fix="the answer depends on its neighbours: check padding, masks and normalisation; where "
        "it is rounding (bfloat16), episodes are not repeatable to the bit; rollout.max_batch=1 "
        "avoids it",
        is_failed=worst > _LEAK,
        is_warning=worst > SAME_ANSWER or flips > 0,
    )


def _gate(chunks: Sequence[ActionChunk]) -> Check:
    maps = [chunk.gate for chunk in chunks if chunk.gate is not None]
    if not maps:
        return _skipped("gate", "this policy has no gate")
    means = {name: float(np.mean([m[name].mean() for m in maps])) for name in maps[0]}
    closed = [name for name, mean in means.items() if mean > 0.99]
    open_wide = [name for name, mean in means.items() if mean < 0.01]
    meaning = ""
    if closed:
        meaning = f"; the prior is shut out of {', '.join(closed)}"
    if open_wide:
        meaning += f"; the semantic towers are shut out of {', '.join(open_wide)}"
    return _check(
        "gate",
        f"mean weight of the semantic stream: {_listed(means, digits=4)}{meaning}",
        expected="between 0.01 and 0.99: both streams are heard",
        fix="one stream decides nothing: do not credit it with the result. Compare both with "
        "rollout.arms=[full,gate_clamped]; where this is meant, there is nothing to do",
        is_warning=bool(closed or open_wide),
    )


def _commands(chunk: ActionChunk) -> NDArray[np.float64]:
    return np.asarray(chunk.actions, dtype=np.float64)


def _listed(numbers: dict[str, float], *, digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}g} ({what})" for what, value in numbers.items())
