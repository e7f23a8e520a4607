"""What an evaluation says: scores in percent with intervals, the value of every question, problems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.scene.metrics.pairing import Problem
from vega_policy.spec.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
N_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of a table."""

    value: float
    """Percent, also where a table prints tenths (CIDEr can exceed 100)."""
    n: int
    """Questions in the denominator, missing answers among them."""
    interval: tuple[float, float] | None
    """95 %, in percent; None where the data allow none."""
    method: str
    """How the interval was made, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one prediction file."""

    task: str
    n: int
    """Questions of the annotation; all of them are in the denominators."""
    protocol: Mapping[str, str]
    """Every option that changes numbers, as it was used."""
    scores: Mapping[str, Score]
    """By name, the headline first."""
    problems: tuple[Problem, ...]
    """What was wrong with the predictions and how it counts."""
    notes: tuple[str, ...] = ()
    """What was not computed, and why."""
    ids: tuple[str, ...] = ()
    """One a question, in the order of the annotation."""
    scenes: tuple[str, ...] = ()
    """The scene of each question: the unit that intervals draw."""
    values: Mapping[str, Floats] = field(default_factory=dict)
    """By name, (n,): what each question contributes, 0 to 1; for paired comparisons."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary without the values of single questions."""
        return {
            "task": self.task,
            "n": self.n,
            "protocol": dict(self.protocol),
            "scores": {name: _plain(score) for name, score in self.scores.items()},
            "problems": [problem.to_json() for problem in self.problems],
            "notes": list(self.notes),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready row a question."""
        return [
            {"id": key, "scene": scene, **{k: float(v[i]) for k, v in self.values.items()}}
            for i, (key, scene) in enumerate(zip(self.ids, self.scenes, strict=True))
        ]

    def table(self) -> str:
        """Return the scores as text, protocol and problems below them."""
        width = max(map(len, self.scores), default=0) + 2
        lines = [f"{self.task}: {self.n} questions, {len(set(self.scenes))} scenes"]
        for name, score in self.scores.items():
            span = "" if score.interval is None else "  [{:.2f}, {:.2f}]".format(*score.interval)
            lines.append(f"  {name.ljust(width)}{score.value:7.2f}{span.ljust(19)} n={score.n}")
        lines.append("  " + ", ".join(f"{name}={value}" for name, value in self.protocol.items()))
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)


class SceneBootstrap:
    """Scenes drawn with replacement: questions about one scene are right or wrong together.

    An interval over single questions would be too narrow. Percentile intervals from 2,000 draws of
    a fixed seed (Efron & Tibshirani 1993, ch. 13), so that a file always gets the same ones.
    """

    def __init__(self, scenes: Sequence[str], *, seed: int = 0) -> None:
        names, index = np.unique(np.asarray(scenes, dtype=str), return_inverse=True)
        self.n_scenes = len(names)
        self._index = index
        n = max(self.n_scenes, 1)
        rng = np.random.default_rng(seed)
        self._times = rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS).astype(np.float64)

    @property
    def method(self) -> str:
        """What an interval is called."""
        return f"bootstrap over {self.n_scenes} scenes"

    def sums(self, values: Floats) -> Floats:
        """Return the sum of (n, k) values over the questions of each draw, (draws, k)."""
        of_scene = np.zeros((self.n_scenes, values.shape[1]))
        np.add.at(of_scene, self._index, values)
        return self._times @ of_scene

    def means(self, values: Floats) -> Floats:
        """Return the mean of (n,) values over the questions of each draw, (draws,)."""
        sums = self.sums(np.stack([values, np.ones(len(values))], axis=1))
        return sums[:, 0] / sums[:, 1]

    def interval(self, draws: Floats) -> tuple[float, float] | None:
        """Return the percentile interval of (draws,) statistics, those undefined left out."""
        defined = draws[np.isfinite(draws)]
        if self.n_scenes < 2 or not len(defined):
            return None
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(defined, [tail, 100 - tail])
        return (float(low), float(high))

    def mean(self, values: Floats, mask: NDArray[np.bool_] | None = None) -> Score:
        """Score the mean of (n,) values in [0, 1], of those that ``mask`` names.

        Where all scenes agree on 0 or 1 no draw differs from another; then it is the Wilson interval
        over questions.
        """
        chosen = np.ones(len(values), dtype=bool) if mask is None else mask
        n = int(chosen.sum())
        if n == 0:
            return Score(value=math.nan, n=0, interval=None, method="no question")
        value = 100 * float(values[chosen].mean())
        sums = self.sums(np.stack([values * chosen, chosen], axis=1).astype(np.float64))
        with np.errstate(invalid="ignore"):
            interval = self.interval(100 * sums[:, 0] / sums[:, 1])
        if interval is not None and interval[0] < interval[1]:
            return Score(value=value, n=n, interval=interval, method=self.method)
        if np.isin(values[chosen], (0.0, 1.0)).all():
            low, high = wilson(round(float(values[chosen].sum())), n)
            return Score(
                value=value,
                n=n,
                interval=(100 * low, 100 * high),
                method=f"Wilson over {n} questions",
            )
        return Score(value=value, n=n, interval=interval, method=self.method_or_why(interval))

    def of(self, value: float, n: int, draws: Floats) -> Score:
        """Score a statistic in percent from its (draws,) values."""
        interval = self.interval(draws)
        return Score(value=value, n=n, interval=interval, method=self.method_or_why(interval))

    def method_or_why(self, interval: tuple[float, float] | None) -> str:
        """Return how an interval was made, or why there is none."""
        return self.method if interval is not None else "no interval from a single scene"


def mean_defined(statistics: Sequence[Floats]) -> Floats:
    """Return the mean over (k, draws) statistics of those that are defined in a draw, (draws,)."""
    stacked = np.stack(statistics)
    defined = np.isfinite(stacked)
    total, count = np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _plain(score: Score) -> dict[str, Any]:
    return {
        "value": None if math.isnan(score.value) else round(score.value, 10),
        "n": score.n,
        "interval": None if score.interval is None else [round(v, 4) for v in score.interval],
        "method": score.method,
    }
