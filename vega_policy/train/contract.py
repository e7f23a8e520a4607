"""Compare a policy, the data and the settings before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vega_policy.spec import CAMERAS, ContractError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from vega_policy.data.episodes import EpisodeSource
    from vega_policy.policy.config import PolicyConfig

FREE_SETTINGS = (
    "checkpoint_every",
    "data.cache_dir",
    "data.dirs",
    "data.features.batch_size",
    "device",
    "estimate_memory",
    "gradient_checkpointing",
    "log_every",
    "max_minutes",
    "name",
    "parallel",
    "prior_path",
    "run_root",
    "save_policy",
    "sinks",
    "validate_every",
    "validation_samples",
)
"""Settings that may change between the parts of one run: they do not change its weights, or, as
folders, what lies there is compared by its content."""


FUSIONS_WITHOUT_DROPOUT = {
    "none": "there is no prior",
    "prior_only": "nothing would be left",
    "sequence_concat": "an observation without its prior has fewer tokens than the others",
}
"""Fusion rules that cannot do without the prior of single observations, and why."""


@dataclass(frozen=True)
class DataShape:
    """What one look into the first demonstration tells."""

    image_px: tuple[int, int]
    action_size: int
    proprio_size: int


def look_at(episodes: EpisodeSource, *, skip_damaged: bool = False) -> DataShape:
    """Read the shapes of the first episode without decoding the rest.

    Raises:
        ContractError: It cannot be read; none can, where damaged ones are skipped.
    """
    n_tries = len(episodes) if skip_damaged else 1
    for index in range(n_tries):
        try:
            episode = episodes.episode(index, at=(0,))
            break
        except ContractError:
            if index + 1 == n_tries:
                raise
    else:
        raise ContractError(f"{episodes.path} has 0 demonstrations, expected at least 1; collect")
    height, width = episode.images[CAMERAS[0]].shape[1:3]
    return DataShape(
        image_px=(height, width),
        action_size=episode.actions.shape[1],
        proprio_size=episode.proprio.shape[1],
    )


def disagreements(
    policy: PolicyConfig,
    data: DataShape,
    *,
    settings: PolicyConfig,
    statistics_keys: Collection[str] | None,
    suites: Sequence[str],
    prior_dropout: float = 0.0,
) -> list[str]:
    """List everything in which a policy and the data it shall be trained on do not fit.

    Args:
        policy: Of the policy to train.
        data: What the demonstrations look like.
        settings: The policy settings of the run; they must ask for the same actions.
        statistics_keys: Suites the policy has statistics of, where those are to be used.
        suites: Suites of the data.
        prior_dropout: Share of observations whose prior is to be left out.
    """
    problems = policy.action.disagreements(
        settings.action, ours="the policy", theirs="the settings"
    )
    if policy.action.size != data.action_size:
        problems.append(
            f"action size: the policy has {policy.action.size}, the data has {data.action_size}"
        )
    if policy.proprio_size not in (0, data.proprio_size):
        problems.append(
            f"proprio size: the policy has {policy.proprio_size}, the data has {data.proprio_size}"
        )
    is_resized = policy.image_transform != "none"
    if not is_resized and data.image_px != (policy.image_px, policy.image_px):
        problems.append(
            f"image size: the policy has {policy.image_px} px, the data has {data.image_px}"
        )
    if policy.cameras != CAMERAS:
        problems.append(f"cameras: the policy has {policy.cameras}, the data has {CAMERAS}")
    if prior_dropout and policy.fusion.name in FUSIONS_WITHOUT_DROPOUT:
        problems.append(
            f"data.augment.prior_dropout is {prior_dropout:g}, but with fusion {policy.fusion.name} "
            f"{FUSIONS_WITHOUT_DROPOUT[policy.fusion.name]}; set it to 0"
        )
    if statistics_keys is not None:
        problems += [
            f"statistics: the policy has {', '.join(sorted(statistics_keys)) or 'none'}, the data is of "
            f"{suite}; statistics=data measures new ones"
            for suite in suites
            if not {suite, f"{suite}_no_noops"} & set(statistics_keys)
        ]
    return problems


def changed_settings(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, defaults: Mapping[str, Any]
) -> list[str]:
    """List the settings in which a run on disk differs from one that wants to continue it.

    A run from before a setting existed had its default.
    """
    old, new = {**_flat(defaults), **_flat(saved)}, _flat(now)
    return [
        f"{key}: the run has {old.get(key)!r}, the settings have {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key not in FREE_SETTINGS
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
