"""Settings of the training of scene heads, as frozen dataclasses built from a plain dictionary."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vega_policy.scene.annotations import TASKS, Task
from vega_policy.scene.train.arms import ARMS, Wiring
from vega_policy.spec import ContractError
from vega_policy.spec.names import nearest
from vega_policy.spec.settings import build
from vega_policy.train.prior.settings import StageConfig
from vega_policy.vision.fusion import FUSIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

Head = Literal["scannet", "vsi"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class DataConfig:
    """Which scans and questions."""

    scans: str = "data/rooms"
    """Folder of scans in ScanNet's layout, with objects; see scripts/scan.py."""
    annotations: str = "data/rooms/annotations"
    """Folder of the public annotation files; see `readers.folder`."""
    n_frames: int = 24
    """Evenly spaced frames of a scan that are kept in memory."""
    train_scenes: int | None = None
    """Use only the first so many of the split's training scenes."""
    held_out_scenes: int | None = None
    """The same of the others."""


@dataclass(frozen=True)
class StudyConfig:
    """What one head is trained on, and in which arms."""

    arms: tuple[str, ...] = ()
    """See `ARMS`; empty: this head is left out."""
    steps: int = 2000
    """Updates of an arm."""
    scenes: int = 2
    """Scenes of an update."""
    texts_per_scene: int = 48
    """Questions about each of them, drawn from all tasks."""
    views: int = 6
    """Frames an update sees of a scene, one drawn from each of so many stretches of the walk; answers
    see the first of each."""


@dataclass(frozen=True)
class EyesConfig:
    """How the policy's towers, which have never seen a room, come to know furniture; see `eyes`."""

    steps: int = 4000
    """Updates; 0: they stay as they are."""
    scenes: int = 2
    """Scenes of an update."""
    views: int = 6
    """Frames of each."""
    peak: float = 1e-3
    """Learning rate after the warm-up."""


@dataclass(frozen=True)
class PublishedConfig:
    """Where trained models of full size and real data lie; empty: the nano heads are trained instead."""

    scannet_model: str = ""
    """Directory of a trained `ScanNetModel`, as ``save_pretrained`` writes it."""
    vsi_model: str = ""
    """The same of a `VsiModel`."""
    scans: str = ""
    """ScanNet's root."""
    annotations: str = ""
    """Folder of the released annotation files; see `readers.folder`."""
    proposals: str = ""
    """Mask3D proposals."""
    videos: str = ""
    """VSI-Bench's videos, ``<videos>/<dataset>/<scene>.mp4``."""
    n_frames: int = 32
    device: str = "auto"
    """Where the models run; ``auto``: a GPU where there is one."""
    texts_at_once: int = 8
    """Texts of one pass; each holds a copy of what was read of the scene, 0.4 GB at full size."""

    @property
    def is_asked(self) -> bool:
        """Whether anything is named."""
        how = ("n_frames", "device", "texts_at_once")
        return any(v for k, v in dataclasses.asdict(self).items() if k not in how)


@dataclass(frozen=True)
class SceneTrainConfig:
    """One run: every arm is trained, answers the held-out questions, and is scored."""

    out: str = "runs/scene"
    seed: int = 0
    workers: int = 2
    """Arms trained side by side, each in a process with one thread."""
    policy: str = "nano-libero-object"
    """Policy whose towers and prior the heads take; see `nano_scannet`."""
    fusion: str = "token_gate_normed"
    """Rule of the arms that have features; the default is that of the released ScanNet code."""
    wiring: Wiring = "fused"
    """See `arms`."""
    eyes: EyesConfig = field(default_factory=EyesConfig)
    tasks: tuple[str, ...] = TASKS
    data: DataConfig = field(default_factory=DataConfig)
    scannet: StudyConfig = field(
        default_factory=lambda: StudyConfig(
            arms=("full", "no_prior", "no_vision", "shuffled", "zeroed", "oracle")
        )
    )
    vsi: StudyConfig = field(
        default_factory=lambda: StudyConfig(arms=("full", "no_prior", "no_vision"), steps=1000)
    )
    published: PublishedConfig = field(default_factory=PublishedConfig)
    peak: float = 1e-3
    """Learning rate after the warm-up."""
    precision: Precision = "bfloat16"
    """Of an update's forward pass; answers are always given in float32."""
    warmup_steps: int = 50
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    words_first: int = 200
    """Updates that read texts without the scene: a new language model, unlike a published one, knows no
    words, and does not find out that twenty of them matter among three hundred visual tokens."""
    shift_m: float = 2.0
    """See `BatchConfig`."""
    feature_store: str = "runs/features"
    """Where the frozen prior's features are kept; empty: nowhere."""
    log_every_s: float = 10.0
    checkpoint_every_s: float = 30.0

    @property
    def out_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.out)

    def study(self, head: Head) -> StudyConfig:
        """Return the settings of one head."""
        return self.scannet if head == "scannet" else self.vsi

    def stage(self, head: Head) -> StageConfig:
        """Return the settings of an arm's updates."""
        return StageConfig(
            steps=self.study(head).steps,
            peak=self.peak,
            warmup_steps=self.warmup_steps,
            clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
            precision=self.precision,
        )

    def eyes_stage(self) -> StageConfig:
        """Return the settings of the towers' updates."""
        return StageConfig(
            steps=self.eyes.steps,
            peak=self.eyes.peak,
            warmup_steps=self.warmup_steps,
            weight_decay=0.05,
            clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
            precision=self.precision,
        )

    def tasks_of(self, head: Head) -> tuple[Task, ...]:
        """Return the tasks one head is trained on."""
        return tuple(t for t in TASKS if t in self.tasks and (t == "vsi_bench") == (head == "vsi"))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SceneTrainConfig:
        """Build the settings.

        Raises:
            ContractError: Unknown keys, names or values; all are listed.
        """
        problems: list[str] = []
        config = build(cls, values, problems=problems)
        if not problems:
            problems = _problems(config)
        if problems:
            raise ContractError("settings of scene training: " + "; ".join(problems))
        return config


def _problems(config: SceneTrainConfig) -> list[str]:
    names = [("scannet.arms", name, tuple(ARMS)) for name in config.scannet.arms]
    names += [
        ("vsi.arms", name, tuple(n for n, arm in ARMS.items() if not arm.is_coded))
        for name in config.vsi.arms
    ]
    names += [("tasks", name, TASKS) for name in config.tasks]
    names += [("fusion", config.fusion, tuple(f for f in FUSIONS if f != "none"))]
    problems = [
        f"{where} has an unknown name {name!r}, {nearest(name, valid)}"
        for where, name, valid in names
        if name not in valid
    ]
    least = [
        ("workers", config.workers),
        ("data.n_frames", config.data.n_frames),
        ("eyes.scenes", config.eyes.scenes),
        ("eyes.views", config.eyes.views),
        *((f"{h}.{k}", getattr(config.study(h), k)) for h in ("scannet", "vsi") for k in _COUNTS),
    ]
    problems += [f"{name} is {value}, expected at least 1" for name, value in least if value < 1]
    problems += [
        f"{h}.steps is {config.study(h).steps} and words_first {config.words_first}: no text would "
        "ever be read with its scene; lower words_first"
        for h in ("scannet", "vsi")
        if config.study(h).arms
        and config.tasks_of(h)
        and config.study(h).steps <= config.words_first
    ]
    if not any(config.tasks_of(h) and config.study(h).arms for h in ("scannet", "vsi")):
        problems.append("no arm is left to train; name tasks and arms that fit together")
    return problems


_COUNTS = ("steps", "scenes", "texts_per_scene", "views")
