"""Four numbers from features and matches, of a scene and of many.

For a voxel ``m`` seen in views ``i`` and ``j``: ``S(m) = cos(h_mi, h_mj)`` (VEGA-3D, arXiv:2603.19235v2,
Eq. 3), ``h_mi`` the mean of the tokens of view ``i`` in the voxel. The score of a scene is the mean over
such matches, that of a data set the mean over scenes.

Shape legend: ``t, g, p`` as in `matches`, ``c`` channels, ``s`` scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vega_policy.scene.correspondence.features import Floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.correspondence.matches import Matches, Mean

NUMBERS = ("mvcs", "mvcs_centred", "mvcs_negative", "gap")
_BATCH = 4096
"""Matches whose cosines are made at once."""
_VANISHED = 1e-6
"""A vector this small beside the data set's typical one has no direction."""


class Interval(NamedTuple):
    """Of 95 %, by a bootstrap over scenes."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SceneScore:
    """One source on one scene; a number is NaN where it has no meaning."""

    scene_id: str
    mvcs: float
    """Mean cosine of the same voxel in two views."""
    mvcs_centred: float
    """The same after the data set's mean feature was taken off."""
    mvcs_negative: float
    """Mean cosine of *different* voxels of the same two views."""
    n_matches: int
    n_undefined: int
    """Matches left out of ``mvcs``, because a feature is zero and has no direction."""

    @property
    def gap(self) -> float:
        """``mvcs - mvcs_negative``: what the place adds to the likeness of any two."""
        return self.mvcs - self.mvcs_negative


@dataclass(frozen=True, kw_only=True)
class CorrespondenceScore:
    """One source on all scenes: never read ``mvcs`` without the other three."""

    name: str
    grid: tuple[int, int]
    width: int
    """Channels of a feature."""
    mvcs: float
    mvcs_centred: float
    mvcs_negative: float
    gap: float
    intervals: dict[str, Interval | None]
    """By number; None with one scene."""
    n_scenes: int
    n_matches: int
    n_undefined: int
    is_control: bool
    scenes: tuple[SceneScore, ...]


def correspondence(
    features: Sequence[Floats],
    matches: Sequence[Matches],
    *,
    scene_ids: Sequence[str],
    name: str = "features",
    mean: Mean = "pair",
    is_control: bool = False,
    seed: int = 0,
) -> CorrespondenceScore:
    """Score features of some scenes.

    Args:
        features: (v, r, k, c) of each scene, on the grid of its matches.
        matches: Of each scene, see `matches.find_matches`.
        scene_ids: Of each scene.
        name: Of what made the features.
        mean: See `matches.CorrespondenceSettings`.
        is_control: Said in the result.
        seed: Of the bootstrap.
    """
    pooled = [pool(f, m) for f, m in zip(features, matches, strict=True)]
    return score_pooled(
        pooled, matches, scene_ids=scene_ids, name=name, mean=mean, is_control=is_control, seed=seed
    )


@dataclass(frozen=True, eq=False)
class Pooled:
    """What the score needs of a scene's features."""

    groups: Floats
    """(g, c) mean of the tokens of each voxel-and-view."""
    total: NDArray[np.float64]
    """(c,) sum over the tokens that have a place ..."""
    n: int
    """... and their number."""
    square: float
    """Sum of their squared lengths."""


def pool(features: Floats, matches: Matches) -> Pooled:
    """Average the tokens (v, r, k, c) of each voxel in each view."""
    tokens = features.reshape(-1, features.shape[-1])
    groups = np.zeros((len(matches.voxel), tokens.shape[1]))
    np.add.at(groups, matches.group, tokens[matches.token])
    groups /= np.bincount(matches.group, minlength=len(groups))[:, None]
    placed = tokens[np.isfinite(matches.points.reshape(-1, 3)).all(axis=1)].astype(np.float64)
    return Pooled(
        groups=groups.astype(np.result_type(features.dtype, np.float32)),
        total=placed.sum(axis=0),
        n=len(placed),
        square=float(np.square(placed).sum()),
    )


def score_pooled(
    pooled: Sequence[Pooled],
    matches: Sequence[Matches],
    *,
    scene_ids: Sequence[str],
    name: str,
    mean: Mean,
    is_control: bool,
    seed: int,
) -> CorrespondenceScore:
    """Score what `pool` gave; see `correspondence`."""
    n_tokens = sum(one.n for one in pooled)
    centre = sum(one.total for one in pooled) / n_tokens
    tiny = _VANISHED * np.sqrt(sum(one.square for one in pooled) / n_tokens)
    scenes: list[SceneScore] = []
    for scene_id, one, found in zip(scene_ids, pooled, matches, strict=True):
        raw = unit(one.groups, tiny=tiny)
        cosine = _cosines(raw, found)
        centred = _cosines(unit(one.groups - centre, tiny=tiny), found)
        negative = _negatives(raw, cosine, found)
        scenes.append(
            SceneScore(
                scene_id=scene_id,
                mvcs=average(cosine, found, mean),
                mvcs_centred=average(centred, found, mean),
                mvcs_negative=average(negative, found, mean),
                n_matches=len(cosine),
                n_undefined=int(np.isnan(cosine).sum()),
            )
        )
    table = np.array([[getattr(scene, number) for number in NUMBERS] for scene in scenes])
    means = [_mean(column) for column in table.T]
    return CorrespondenceScore(
        name=name,
        grid=matches[0].grid,
        width=pooled[0].groups.shape[1],
        **dict(zip(NUMBERS, means, strict=True)),
        intervals={
            number: bootstrap(column, seed=seed)
            for number, column in zip(NUMBERS, table.T, strict=True)
        },
        n_scenes=len(scenes),
        n_matches=sum(scene.n_matches for scene in scenes),
        n_undefined=sum(scene.n_undefined for scene in scenes),
        is_control=is_control,
        scenes=tuple(scenes),
    )


def match_cosines(features: Floats, matches: Matches) -> NDArray[np.float64]:
    """Return the cosine (p,) of every match, for a picture."""
    one = pool(features, matches)
    return _cosines(unit(one.groups, tiny=_VANISHED * np.sqrt(one.square / one.n)), matches)


def unit(vectors: Floats, *, tiny: float) -> NDArray[np.float64]:
    """Return (g, c) vectors of length 1; NaN where one is not longer than ``tiny``."""
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > tiny, length, np.nan)


def average(values: NDArray[np.float64], matches: Matches, mean: Mean) -> float:
    """Average (p,) values of matches, those without meaning left out."""
    known = np.isfinite(values)
    values = values[known]
    if mean == "pair":
        return _mean(values)
    members = (
        matches.voxel[matches.first]
        if mean == "voxel"
        else matches.view[matches.first] * (matches.view.max(initial=0) + 1)
        + matches.view[matches.second]
    )
    _, member = np.unique(members[known], return_inverse=True)
    sums = np.bincount(member, weights=values)
    return _mean(sums / np.bincount(member))


def bootstrap(values: NDArray[np.float64], *, seed: int, n_draws: int = 2000) -> Interval | None:
    """Return the 95 % percentile interval of a mean over scenes (s,); None with fewer than two.

    With few scenes it is too narrow: three draws of three values cannot spread like the world.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(known), size=(n_draws, len(known)))
    low, high = np.quantile(known[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(low), float(high))


def _cosines(units: NDArray[np.float64], matches: Matches) -> NDArray[np.float64]:
    cosine = np.empty(len(matches.first))
    for start in range(0, len(cosine), _BATCH):
        part = slice(start, start + _BATCH)
        cosine[part] = np.einsum(
            "pc,pc->p", units[matches.first[part]], units[matches.second[part]]
        )
    return cosine


def _negatives(
    units: NDArray[np.float64], cosine: NDArray[np.float64], matches: Matches
) -> NDArray[np.float64]:
    """Return, for each match, its mean cosine with the other voxels these two views share.

    With ``n`` matches between views i and j: the mean of ``cos(h_mi, h_m'j)`` and ``cos(h_m'i, h_mj)``
    over all m' but m. Sums over m' make it linear in n. NaN where n is 1.
    """
    negative = np.full(len(cosine), np.nan)
    known = np.flatnonzero(np.isfinite(cosine))
    n_views = matches.view.max(initial=0) + 1
    pair = matches.view[matches.first] * n_views + matches.view[matches.second]
    order = known[np.argsort(pair[known], kind="stable")]
    edges = np.flatnonzero(np.diff(pair[order])) + 1
    for members in np.split(order, edges):
        n = len(members)
        if n < 2:
            continue
        a, b = units[matches.first[members]], units[matches.second[members]]
        crossed = a @ b.sum(axis=0) + b @ a.sum(axis=0)
        negative[members] = (crossed - 2 * cosine[members]) / (2 * (n - 1))
    return negative


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
