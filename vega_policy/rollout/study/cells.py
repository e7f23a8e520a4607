"""The runs a study needs, as commands; what is done is never done again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vega_policy.rollout.study.declaration import overridden
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from vega_policy.rollout.study.declaration import Arm, Evaluation, Study

DONE = "done"
"""Folder of the study that holds one small file per finished run."""
ACTION_SCALES = "action_scales"
"""Key of a training's result: `action_scales` of what it made."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training or one rollout."""

    kind: Literal["train", "rollout"]
    name: str
    script: str
    settings: tuple[str, ...]
    run_dir: Path
    """Where the script writes."""
    arm: str
    """Empty: the policy all arms start from."""
    seed: int
    evaluation: str = ""

    def result(self, root: Path) -> dict[str, Any] | None:
        """Return what the finished run printed, None where it has not finished.

        Raises:
            ContractError: It was run with other settings.
        """
        path = root / DONE / f"{self.name}.json"
        if not path.is_file():
            return None
        kept = json.loads(path.read_text())
        if kept["settings"] != list(self.settings):
            changed = sorted(set(kept["settings"]) ^ set(self.settings))
            raise ContractError(
                f"{self.name} was run with other settings ({', '.join(changed)}); give the study another "
                f"name, or remove {path} and {self.run_dir}"
            )
        return dict(kept["result"])

    def keep(self, root: Path, result: dict[str, Any]) -> None:
        """Write down that it is done."""
        content = {"settings": list(self.settings), "result": result}
        write_atomic(root / DONE / f"{self.name}.json", json.dumps(content, indent=2) + "\n")


def base_training(study: Study, root: Path) -> Cell | None:
    """Return the training of the policy that all arms start from, None where there is none.

    It lies beside the studies, so that those which declare the same one share it.
    """
    if not study.base:
        return None
    return Cell(
        kind="train",
        name="train-base",
        script="train.py",
        settings=(*study.base, "name=base", f"out_dir={root.parent}"),
        run_dir=root.parent / "base",
        arm="",
        seed=study.seeds[0],
    )


def trainings(study: Study, root: Path) -> list[Cell]:
    """Return the arms' trainings: seeds outside, so that the first seed of every arm is there early."""
    base = base_training(study, root)
    start = study.start if base is None else base.run_dir / "policy"
    grafted = [f"init_from={start}", "graft=true"] if start else []
    found: list[Cell] = []
    for seed in study.seeds:
        for arm in study.arms:
            if arm.weights or seed not in study.seeds_of(arm.name):
                continue
            name = f"{arm.name}-seed{seed}"
            settings = [
                *overridden(study.train, arm.train),
                *grafted,
                f"seed={seed}",
                f"name={name}",
                f"out_dir={root / 'train'}",
            ]
            found.append(
                Cell(
                    kind="train",
                    name=f"train-{name}",
                    script="train.py",
                    settings=tuple(settings),
                    run_dir=root / "train" / name,
                    arm=arm.name,
                    seed=seed,
                )
            )
    return found


def rollouts(study: Study, root: Path) -> list[Cell]:
    """Return the rollouts, in the order of the trainings."""
    return [
        _rollout(study, root, arm=arm, seed=seed, evaluation=evaluation)
        for seed in study.seeds
        for arm in study.arms
        for evaluation in study.evaluations
        if evaluation.is_played_by(arm.name) and seed in study.seeds_of(arm.name)
    ]


def checkpoint(root: Path, arm: Arm, seed: int) -> Path:
    """Return the trained policy an arm plays with."""
    return root / "train" / f"{arm.weights or arm.name}-seed{seed}" / "policy"


def _rollout(study: Study, root: Path, *, arm: Arm, seed: int, evaluation: Evaluation) -> Cell:
    name = f"{arm.name}-seed{seed}-{evaluation.name}"
    settings = [
        f"suite={evaluation.suite}",
        *overridden(overridden(study.rollout, evaluation.rollout), arm.rollout),
        f"checkpoint={checkpoint(root, arm, seed)}",
        f"name={name}",
        f"out_dir={root / 'rollout'}",
    ]
    return Cell(
        kind="rollout",
        name=f"rollout-{name}",
        script="rollout.py",
        settings=tuple(settings),
        run_dir=root / "rollout" / name,
        arm=arm.name,
        seed=seed,
        evaluation=evaluation.name,
    )


def action_scales(policy: Path) -> str:
    """Return a digest of what a checkpoint normalises actions by, empty where it does not say."""
    path = policy / "dataset_statistics.json"
    if not path.is_file():
        return ""
    said = json.loads(path.read_text())
    scales = {suite: statistics.get("action") for suite, statistics in said.items()}
    return hashlib.sha256(json.dumps(scales, sort_keys=True).encode()).hexdigest()


def n_trained(policy: Path) -> int:
    """Count the weights a checkpoint holds outside of its frozen prior.

    Raises:
        ContractError: There is no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    try:
        with safe_open(policy / "model.safetensors", framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - the file is no mapping
                size = 1
                for n in weights.get_slice(name).get_shape():
                    size *= n
                total += size
    except (OSError, SafetensorError) as error:
        raise ContractError(f"{policy} is no checkpoint: {error}; train the arm again") from error
    return total
