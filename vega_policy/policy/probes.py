"""Checks of a `VegaPolicy` that have to know how it is built.

They behave like a user, not like a reviewer: an embedding is changed and the actions are looked
at, -1 and 1 are put in and the statistics must come out. What `rollout.doctor` can ask of any
policy is asked there. Costs about eight passes of the model.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vega_policy.spec.names import nearest
from vega_policy.spec.probe import judge, run_probe
from vega_policy.spec.rotation import quat_to_axis_angle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from vega_policy.policy.policy import VegaPolicy
    from vega_policy.spec import Check, Observation

UNMOVED = 1e-6
"""Largest change of a normalised action that counts as none; causal attention gives exactly 0."""
NAMES = ("x", "y", "z", "rotation x", "rotation y", "rotation z", "finger 1", "finger 2")
_SUFFIX = "_no_noops"
_LEVELS = 30
"""Grey levels a painted border has to move a pixel by to count as seen: it differs by 128 and more,
of which JPEG compression in front of a crop carries about 6 inwards."""

_check = partial(judge, "policy")


def checks(
    policy: VegaPolicy, observations: Sequence[Observation], *, suite: str
) -> Iterator[Check]:
    """Examine a policy, lazily; it is left as it was.

    Args:
        policy: The loaded policy.
        observations: At least one, as the environment gives them, near the start of an episode.
        suite: Name of the suite the policy is to play.
    """
    for name, probe in (
        ("bidirectional_attention", partial(_bidirectional_attention, policy, observations)),
        ("statistics_key", partial(_statistics_key, policy, suite)),
        ("action_scale", partial(_action_scale, policy)),
        ("gripper_sign", partial(_gripper_sign, policy)),
        ("proprio_range", partial(_proprio_range, policy, observations, suite)),
        ("quaternion_sign", partial(_quaternion_sign, policy)),
        ("image_path", partial(_image_path, policy, observations)),
        ("action_range", partial(_action_range, policy, observations)),
    ):
        yield run_probe("policy", name, probe)


def _bidirectional_attention(policy: VegaPolicy, observations: Sequence[Observation]) -> Check:
    """Change the last action slots and look at the first action.

    Once alone and once beside a longer prompt, since some ways to switch the causal mask off work
    without padding only.
    """
    seen = observations[0]
    longer = replace(seen, instruction=f"{seen.instruction} and then wait there for a while")
    moved: dict[str, float] = {}
    for what, batch in (("alone", [seen]), ("padded", [seen, longer])):
        plain = _normalised(policy, batch)
        changed = _normalised(policy, batch, is_late_changed=True)
        moved[what] = float((changed - plain)[0, 0].abs().max())
    return _check(
        "bidirectional_attention",
        ", ".join(f"{move:.2g} ({what})" for what, move in moved.items())
        + ": what the first action moves by when the last slots change",
        expected=f"more than {UNMOVED:g}: every token attends to every other one",
        fix="attention is causal: install the transformers version of constraints.txt, and keep "
        "attn_implementation and is_causal=False as VegaModel sets them",
        is_failed=min(moved.values()) <= UNMOVED,
    )


@torch.no_grad()
def _normalised(
    policy: VegaPolicy, batch: Sequence[Observation], *, is_late_changed: bool = False
) -> Tensor:
    """Return the model's output (b, t, a), before statistics; see `ModelOutput.actions`."""
    policy.model.eval()
    inputs = policy.processor(batch)
    bounds = policy.statistics[policy.unnorm_key].proprio
    proprio = bounds.normalise(inputs.proprio.numpy()).astype(np.float32)
    hook = None
    if is_late_changed:
        hook = policy.model.language.register_forward_pre_hook(
            partial(_change_late_slots, n_late=policy.action_spec.size), with_kwargs=True
        )
    try:
        return policy.model(
            inputs.pixels.to(policy.device),
            torch.from_numpy(proprio).to(policy.device),
            inputs.input_ids.to(policy.device),
            inputs.attention_mask.to(policy.device),
            keys=list(range(len(batch))),
        ).actions.cpu()
    finally:
        if hook is not None:
            hook.remove()


def _change_late_slots(
    module: torch.nn.Module,  # noqa: ARG001 - a hook's signature
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    *,
    n_late: int,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put other vectors of the usual size into the last slots, which are in front of EOS."""
    sequence: Tensor = named["inputs_embeds"].clone()
    late = slice(-1 - n_late, -1)
    # Alternating signs: the norm in front of each layer would undo a mere change of length.
    signs = torch.ones_like(sequence[:, late])
    signs[..., ::2] = -1
    sequence[:, late] += signs * 3 * sequence.float().std().to(sequence.dtype)
    return arguments, {**named, "inputs_embeds": sequence}


def _statistics_key(policy: VegaPolicy, suite: str) -> Check:
    keys = sorted(policy.statistics)
    used = policy.unnorm_key
    fitting = _fitting(policy, suite)
    is_wrong = bool(fitting) and used not in fitting
    is_foreign = not fitting
    found = f"{used!r} for suite {suite!r}; the checkpoint has {', '.join(keys)}"
    return _check(
        "statistics_key",
        found,
        expected=f"{suite!r}, with or without {_SUFFIX}",
        fix=f"load with unnorm_key={fitting[0]!r}"
        if is_wrong
        else "the policy was not trained on this suite: its success rate there is about transfer. "
        + nearest(suite, keys),
        is_failed=is_wrong,
        is_warning=is_foreign,
    )


def _fitting(policy: VegaPolicy, suite: str) -> list[str]:
    """Return the keys of the statistics that belong to a suite."""
    return [key for key in (suite, f"{suite}{_SUFFIX}") if key in policy.statistics]


def _action_scale(policy: VegaPolicy) -> Check:
    """Put -1 and 1 into the last stage: the data set's 1 % and 99 % must come out."""
    bounds = policy.statistics[policy.unnorm_key].action
    spec = policy.action_spec
    ends = np.stack([np.full(spec.size, -1.0), np.full(spec.size, 1.0)]).astype(np.float32)
    came = policy.commands(ends)[:, :-1]
    wanted = np.clip(np.stack([bounds.q01, bounds.q99]), spec.low, spec.high)[:, :-1]
    worst = float(np.abs(came - wanted).max())
    problems: list[str] = []
    if worst > 1e-5:
        problems.append(
            f"-1 and 1 come out up to {worst:.3g} away from the data set's 1 % and 99 %"
        )
    if np.allclose(came, ends[:, :-1], atol=1e-3):
        problems.append("un-normalisation changes nothing: actions stay in normalised units")
    if (bounds.q01 > bounds.q99).any():
        problems.append("the 1 % is above the 99 %")
    unmasked = np.flatnonzero(~bounds.mask[:-1])
    if len(unmasked):
        problems.append(f"{', '.join(NAMES[i] for i in unmasked)} is not normalised at all")
    if (bounds.q01 < bounds.min - 1e-6).any() or (bounds.q99 > bounds.max + 1e-6).any():
        problems.append("a quantile lies outside the data set's extremes")
    low, high = ", ".join(f"{v:.3g}" for v in came[0]), ", ".join(f"{v:.3g}" for v in came[1])
    return _check(
        "action_scale",
        "; ".join(problems) or f"-1 gives {low}; 1 gives {high}",
        expected="the data set's 1 % and 99 %, number by number",
        fix="the statistics are not those the policy was trained with; restore "
        "dataset_statistics.json, and of several data sets choose the one under test (unnorm_key)",
        is_failed=bool(problems),
    )


def _gripper_sign(policy: VegaPolicy) -> Check:
    """Targets are 1 open, 0 closed and never normalised; commands are -1 open, +1 close."""
    bounds = policy.statistics[policy.unnorm_key].action
    targets = np.zeros((2, policy.action_spec.size), dtype=np.float32)
    targets[:, -1] = (1.0, 0.0)
    opened, closed = policy.commands(targets)[:, -1]
    problems: list[str] = []
    if bounds.mask[-1]:
        problems.append("the gripper is normalised like the other numbers")
    if bounds.min[-1] < -0.01 or bounds.max[-1] > 1.01:
        problems.append(
            f"the data set's gripper spans {bounds.min[-1]:.3g} to {bounds.max[-1]:.3g}, "
            "commands and not targets"
        )
    if (opened, closed) != (-1.0, 1.0):
        problems.append(f"open (1) becomes {opened:+g}, closed (0) becomes {closed:+g}")
    if "-1 open" not in policy.action_spec.gripper:
        problems.append(f"the checkpoint says {policy.action_spec.gripper!r}")
    return _check(
        "gripper_sign",
        "; ".join(problems) or "open (1) becomes -1, closed (0) becomes +1; not normalised",
        expected="targets 1 open and 0 closed, left alone by the statistics; commands -1 and +1",
        fix="the gripper would act the wrong way round or never: rebuild the statistics with the "
        "gripper as 1 open, 0 closed and its mask False",
        is_failed=bool(problems),
    )


def _proprio_range(policy: VegaPolicy, observations: Sequence[Observation], suite: str) -> Check:
    """Is what the environment says where the data set was?

    LIBERO offers two orientations of the hand 90 degrees apart, and tables of different height: on
    a suite the policy was not trained on the table alone may explain it, so that is a warning.
    """
    bounds = policy.statistics[policy.unnorm_key].proprio
    span = np.maximum(bounds.max - bounds.min, 1e-3)
    rows = np.stack([np.asarray(o.proprio, dtype=np.float64) for o in observations])
    beyond = np.maximum(bounds.min - rows, rows - bounds.max) / span
    worst = beyond.max(axis=0)
    far = [i for i in np.argsort(-worst) if worst[i] > 0.25]
    named = [
        f"{NAMES[i]} is {rows[int(beyond[:, i].argmax()), i]:.3g}, in the data set "
        f"{bounds.min[i]:.3g} to {bounds.max[i]:.3g}"
        for i in far
    ]
    start = ", ".join(f"{v:.3g}" for v in rows[0])
    is_foreign = not _fitting(policy, suite)
    return _check(
        "proprio_range",
        "; ".join(named) or f"start pose {start}: within the data set's range",
        expected="hand and fingers where the data set has them, a quarter of its range aside",
        fix="the state comes from another source, or the statistics from another data set: "
        "compare with one row of the demonstrations",
        is_failed=bool(far) and not is_foreign,
        is_warning=bool(far),
    )


def _quaternion_sign(policy: VegaPolicy) -> Check:
    """Angles must reach beyond pi, in our conversion and in the checkpoint's data."""
    bounds = policy.statistics[policy.unnorm_key].proprio
    tilt = 0.1
    quaternion = np.array([np.cos(tilt), 0.0, 0.0, -np.sin(tilt)])
    angle = float(np.linalg.norm(quat_to_axis_angle(quaternion)))
    problems: list[str] = []
    if angle <= np.pi:
        problems.append(f"a quaternion with w<0 gives {angle:.4f} rad, the sign of w is normalised")
    about_x = bounds.min[3], bounds.max[3]
    if about_x[0] < -2.0 and about_x[1] > 2.0 and about_x[1] <= np.pi + 1e-3:
        problems.append(
            f"rotation x of the data set jumps between {about_x[0]:.2f} and {about_x[1]:.2f} rad: "
            "its quaternions were normalised to w>=0"
        )
    return _check(
        "quaternion_sign",
        "; ".join(problems)
        or f"w<0 gives {angle:.4f} rad; the data set's rotation x reaches {about_x[1]:.3f} rad",
        expected="an angle above pi (3.1416) for w<0, and a data set made the same way",
        fix="remove the flip of quaternions with w<0 from whatever makes the proprioception, in "
        "the environment and in the data set alike",
        is_failed=bool(problems),
    )


def _image_path(policy: VegaPolicy, observations: Sequence[Observation]) -> Check:
    """Paint the border: a policy that crops must not see it, one that does not must."""
    trained, used = policy.config.image_transform, policy.processor.image_transform
    side = policy.config.image_px
    images = {name: np.array(image, copy=True) for name, image in observations[0].images.items()}
    plain = policy.processor.images(images)
    for image in images.values():
        width = max(1, round(0.01 * len(image)))
        for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
            image[edge] = np.where(image[edge] < 128, 255, 0)
    painted = policy.processor.images(images)
    sees_border = float((painted.float() - plain.float()).abs().max()) > _LEVELS
    crops = trained == "exact" or (trained == "fast" and policy.config.centre_crop)
    problems: list[str] = []
    if used != trained:
        problems.append(f"images go through {used!r}, the policy was trained with {trained!r}")
    if sees_border == crops:
        problems.append(
            "the outer 1 % of the image reaches a policy trained on its centre"
            if crops
            else "the outer 1 % of the image is cut off, the policy was trained without a crop"
        )
    shape = tuple(plain.shape)
    if shape != (len(policy.config.cameras), 3, side, side):
        problems.append(f"the model gets images {shape}")
    return _check(
        "image_path",
        "; ".join(problems)
        or f"{used!r}, {side} px, {'centre crop' if crops else 'no crop, as in training'}",
        expected=f"{trained!r} at {side} px, {'with' if crops else 'without'} a centre crop",
        fix="leave image_transform to the checkpoint; trained with crops, tested without, "
        "costs about 3 points",
        is_failed=bool(problems),
    )


def _action_range(policy: VegaPolicy, observations: Sequence[Observation]) -> Check:
    """On real observations normalised actions stay within about [-1, 1]."""
    outputs = torch.cat([_normalised(policy, [o]) for o in observations]).numpy()
    body, gripper = outputs[..., :-1], outputs[..., -1]
    beyond = float((np.abs(body) > 1.05).mean())
    largest = float(np.abs(body).max())
    is_gripper_odd = bool(gripper.min() < -0.5 or gripper.max() > 1.5)
    return _check(
        "action_range",
        f"{100 * beyond:.0f} % of the normalised numbers beyond 1.05, the largest {largest:.2f}; "
        f"gripper {gripper.min():.2f} to {gripper.max():.2f}",
        expected="hardly any beyond, the gripper between 0 and 1",
        fix="the policy is outside what it learnt: check that its weights are trained, its images "
        "upright and its statistics its own",
        is_failed=bool(largest > 10),
        is_warning=bool(beyond > 0.1 or is_gripper_odd),
    )
