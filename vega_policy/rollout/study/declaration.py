"""What a study consists of, declared before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vega_policy.spec import ContractError
from vega_policy.spec.names import nearest, require_name

_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of the comparisons."""

    name: str
    title: str = ""
    """In words, for the report."""
    train: tuple[str, ...] = ()
    """Settings of ``scripts/train.py`` in which this arm differs from the others."""
    weights: str = ""
    """Another arm whose trained weights it plays with; it is not trained itself then."""
    rollout: tuple[str, ...] = ()
    """Settings of ``scripts/rollout.py`` in which it differs."""
    against: str = ""
    """The arm it is compared with; empty: the study's reference."""
    sweep: str = ""
    """Name of a curve it is a point of, such as ``noise level``; empty: of none."""
    at: float | None = None
    """Where on that curve."""
    seeds: tuple[int, ...] = ()
    """Of the study's training seeds, those this arm has; empty: all, or those of ``weights``."""

    @property
    def words(self) -> str:
        """What it is called in the report."""
        return self.title or self.name.replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A set of episodes that every trained policy plays, or those of some arms."""

    name: str
    suite: str
    rollout: tuple[str, ...] = ()
    """Settings of ``scripts/rollout.py``."""
    arms: tuple[str, ...] = ()
    """Whose policies play it; empty: all. What only some arms play is no part of the overall result."""

    def is_played_by(self, arm: str) -> bool:
        """Whether the policies of this arm play it."""
        return not self.arms or arm in self.arms


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms x training seeds x evaluations; everything else is the same for all."""

    name: str
    question: str
    """What it is to answer, in a sentence."""
    reference: str
    """Every other arm is compared with this one, unless it names another."""
    episodes: int
    """That each trained policy plays, in the evaluations of all arms: what the study can find is said
    before it runs."""
    arms: tuple[Arm, ...]
    evaluations: tuple[Evaluation, ...]
    seeds: tuple[int, ...]
    base: tuple[str, ...] = ()
    """Settings of ``scripts/train.py`` of one policy without a prior that every training starts from, with
    the arm's prior grafted on; empty: all start from random weights. It is trained once."""
    start: str = ""
    """In place of ``base``: a trained policy without a prior, one that comes with the package or a folder."""
    train: tuple[str, ...] = ()
    """Settings of ``scripts/train.py`` that all arms share."""
    rollout: tuple[str, ...] = ()
    """Settings of ``scripts/rollout.py`` that all evaluations share."""
    same_size: bool = True
    """Whether all arms must train the same number of weights, within a percent."""
    exempt: tuple[str, ...] = ()
    """Arms that may train another number; the report says so."""
    main: tuple[str, ...] = ()
    """Arms of the question itself; empty: all. Their p values are adjusted for one another alone, the
    others form a family of their own and explore: each test more costs all the others."""
    assumed: Mapping[str, float] = field(
        default_factory=lambda: {"discordant": 0.2, "seed_sd": 0.02}
    )
    """What the detectable difference is computed from before the runs; see
    `vega_policy.rollout.study.contrast.detectable`."""
    alpha: float = 0.05
    power: float = 0.8

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        """Read a study from YAML.

        Raises:
            ContractError: It does not make sense; every problem is listed.
        """
        _require_known(values, cls, where="study")
        given = dict(values)
        study = cls(
            **{
                **given,
                "arms": tuple(_made(Arm, n, v) for n, v in dict(given.get("arms") or {}).items()),
                "evaluations": tuple(
                    _made(Evaluation, n, v) for n, v in dict(given.get("evaluations") or {}).items()
                ),
                "seeds": tuple(given.get("seeds") or ()),
                **{
                    k: tuple(given.get(k) or ())
                    for k in ("base", "train", "rollout", "exempt", "main")
                },
                "assumed": dict(given.get("assumed") or {"discordant": 0.2, "seed_sd": 0.02}),
            }
        )
        problems = study.problems()
        if problems:
            raise ContractError(
                problems[0]
                if len(problems) == 1
                else f"{len(problems)} things of the study do not fit:\n  " + "\n  ".join(problems)
            )
        return study

    def arm(self, name: str) -> Arm:
        """Return an arm by name.

        Raises:
            ContractError: There is none of this name.
        """
        require_name(name, [arm.name for arm in self.arms], what="arm")
        return next(arm for arm in self.arms if arm.name == name)

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """Return the training seeds of an arm."""
        chosen = self.arm(arm)
        if chosen.seeds or not chosen.weights:
            return chosen.seeds or self.seeds
        return self.seeds_of(chosen.weights)

    def common_seeds(self, arm: str) -> tuple[int, ...]:
        """Return the training seeds that an arm shares with what it is compared with."""
        others = self.seeds_of(self.opponent(arm))
        return tuple(seed for seed in self.seeds_of(arm) if seed in others)

    def opponent(self, arm: str) -> str:
        """Return the name of the arm that ``arm`` is compared with."""
        return self.arm(arm).against or self.reference

    @property
    def contrasts(self) -> tuple[Arm, ...]:
        """The arms that are compared with the reference."""
        return tuple(arm for arm in self.arms if arm.name != self.reference)

    @property
    def families(self) -> tuple[tuple[Arm, ...], ...]:
        """The arms whose tests are adjusted for one another; those of the question first."""
        chosen = tuple(a for a in self.contrasts if not self.main or a.name in self.main)
        return tuple(f for f in (chosen, tuple(a for a in self.contrasts if a not in chosen)) if f)

    def problems(self) -> list[str]:
        """List what cannot be meant, one sentence each."""
        names = [arm.name for arm in self.arms]
        found = [
            f"study.{kind}: {name!r} becomes part of a folder's name; use letters, digits and _"
            for kind, all_names in (
                ("name", [self.name]),
                ("arms", names),
                ("evaluations", [e.name for e in self.evaluations]),
            )
            for name in all_names
            if not _NAME.fullmatch(name)
        ]
        if not self.evaluations:
            found.append("study.evaluations is empty; name at least one set of episodes")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            found.append(f"study.seeds is {list(self.seeds)}; list each training seed once")
        if self.reference not in names:
            found.append(f"study.reference is {self.reference!r}; {nearest(self.reference, names)}")
        for arm in self.arms:
            lender = next((a for a in self.arms if a.name == arm.weights), None)
            if arm.weights and (lender is None or lender.weights):
                found.append(
                    f"arm {arm.name} takes its weights from {arm.weights!r}, no trained arm"
                )
            if arm.weights and arm.train:
                found.append(f"arm {arm.name} has weights of another and its own train settings")
            if arm.against and arm.against not in set(names) - {arm.name}:
                found.append(
                    f"arm {arm.name} is compared with {arm.against!r}; {nearest(arm.against, names)}"
                )
            found += [
                f"arm {arm.name} has seed {seed!r}, which is not among the study's {list(self.seeds)}"
                for seed in arm.seeds
                if seed not in self.seeds
            ]
            if lender is not None and set(arm.seeds) - set(lender.seeds or self.seeds):
                found.append(f"arm {arm.name} has seeds with which {lender.name} is not trained")
            if bool(arm.sweep) != (arm.at is not None):
                found.append(f"arm {arm.name} has one of sweep and at; it needs both or none")
        found += [
            f"study.{what} names {name!r}; {nearest(name, names)}"
            for what, listed in (
                ("exempt", self.exempt),
                ("main", self.main),
                *((f"evaluations.{e.name}.arms", e.arms) for e in self.evaluations),
            )
            for name in listed
            if name not in names
        ]
        if self.base and "fusion=none" not in self.base:
            found.append("study.base has a prior, which arms would keep; add fusion=none to it")
        if self.base and self.start:
            found.append("study.base and study.start both say what trainings start from; keep one")
        if not isinstance(self.episodes, int) or self.episodes < 2:
            found.append(f"study.episodes is {self.episodes!r}; say how many each policy plays")
        if not found:
            found += [
                f"arm {arm.name} shares no training seed with {self.opponent(arm.name)}"
                for arm in self.contrasts
                if not self.common_seeds(arm.name)
            ]
        if self.reference in self.main:
            found.append(f"study.main names the reference {self.reference}; leave it out")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def _made(kind: type, name: str, values: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
    given = dict(values or {})
    _require_known({**given, "name": name}, kind, where=f"study: {name}")
    lists = {k: tuple(v or ()) for k, v in given.items() if isinstance(v, list | tuple)}
    plain = {k: v for k, v in given.items() if k not in lists and v is not None}
    return kind(name=str(name), **plain, **lists)


def _require_known(values: Mapping[str, Any], kind: type, *, where: str) -> None:
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            raise ContractError(f"{where} has no {name!r}; {nearest(str(name), known)}")


def overridden(base: Sequence[str], special: Sequence[str]) -> list[str]:
    """Join two lists of ``key=value``; the second wins where both name a key."""
    later = {setting.partition("=")[0] for setting in special}
    return [s for s in base if s.partition("=")[0] not in later] + list(special)
