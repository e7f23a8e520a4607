"""Towers that have seen a room: a policy's, trained once on objects of the training scenes, for all arms.

The published heads stand on towers that know furniture from the web; those of a nano policy know a table
top. They learn the classes and colours of objects from the pooled tokens the heads will read, and are
frozen then, so that arms differ in what stands beside them alone.

Shape legend: ``v`` views, ``m`` patches of a view, ``o`` objects, ``e`` channels of a token.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vega_policy.scene.heads.object_features import (
    object_means,
    patch_points,
    shares_of_boxes,
)
from vega_policy.scene.heads.presets import nano_scannet
from vega_policy.scene.train.rooms import Room, digest_of, drawn_views, stretches
from vega_policy.spec import ContractError
from vega_policy.spec.files import atomic_path, write_atomic
from vega_policy.train.prior.stage import Surroundings, draw_generator, run_stage
from vega_policy.vision.stream import VisionStream

if TYPE_CHECKING:
    from pathlib import Path

    from vega_policy.scene.train.corpus import Corpus
    from vega_policy.scene.train.settings import SceneTrainConfig


log = logging.getLogger(__name__)

FILE = "towers.safetensors"
DONE = "done.json"


class Eyes(nn.Module):
    """Towers, and what tells classes and colours from their tokens."""

    def __init__(self, towers: nn.Module, labels: Sequence[str]) -> None:
        """Take towers over.

        Args:
            towers: Semantic towers of a policy, which learn.
            labels: Classes.
        """
        super().__init__()
        self.towers = towers.requires_grad_(requires_grad=True)
        width: Any = towers.width
        self.norm = nn.LayerNorm(width)
        self.label = nn.Linear(width, len(labels))
        self.colour = nn.Linear(width, 3)

    def forward(self, pixels: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Name objects.

        Args:
            pixels: (v, 3, h, w) uint8.
            shares: (o, v, m) of `shares_of_boxes`.

        Returns:
            Scores (o, classes) and colours (o, 3), where 1 is a whole channel.
        """
        tokens = self.towers(pixels.unsqueeze(0))[0]
        means = self.norm(object_means(tokens.float(), shares))
        return self.label(means), self.colour(means)


@dataclass(frozen=True, eq=False)
class Sight:
    """What is known of the objects of a room, frame by frame."""

    shares: Tensor
    """(o, v, m)."""
    seen: Tensor
    """(o, v) how many points lie in the box."""
    colours: Tensor
    """(o, v, 3) sums of their pixels."""
    labels: Tensor
    """(o,)."""


@dataclass(frozen=True, eq=False)
class NamingLoss:
    """Loss of update ``k``: a function of the seed, ``k`` and the weights."""

    eyes: Eyes
    rooms: Sequence[Room]
    sights: Sequence[Sight]
    scenes: int
    views: int
    seed: int
    precision: str

    def __call__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return cross-entropy of the class plus the absolute error of the colour, and both."""
        g = draw_generator(self.seed, "eyes", step)
        naming: list[Tensor] = []
        colouring: list[Tensor] = []
        for number in torch.randint(len(self.rooms), (self.scenes,), generator=g).tolist():
            room, sight = self.rooms[number], self.sights[number]
            views = drawn_views(len(room.seen.pixels), self.views, g)
            pixels, shares = room.seen.pixels[views], sight.shares[:, views]
            if torch.rand((), generator=g) < 0.5:
                pixels, shares = pixels.flip(-1), _mirrored(shares)
            n = sight.seen[:, views].sum(1)
            is_seen = n > 0
            if not bool(is_seen.any()):
                continue
            light = 1 + (torch.rand((), generator=g) - 0.5) * 0.4
            pixels = (pixels * light).clamp(0, 255).to(torch.uint8)
            with torch.autocast(
                pixels.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
            ):
                scores, colours = self.eyes(pixels, shares)
            naming.append(functional.cross_entropy(scores[is_seen].float(), sight.labels[is_seen]))
            mean = sight.colours[:, views].sum(1)[is_seen] / n[is_seen, None]
            colouring.append((colours[is_seen].float() - mean * light).abs().mean())
        if not naming:
            raise ContractError(
                f"no object is seen in {self.views} views of {self.scenes} scenes; render more frames"
            )
        name, colour = torch.stack(naming).mean(), torch.stack(colouring).mean()
        return name + 5 * colour, {"naming": name, "colour": colour}


def train_eyes(config: SceneTrainConfig, corpus: Corpus, folder: Path) -> None:
    """Train the towers, from their last checkpoint where there is one, and write them to ``folder``.

    Raises:
        CheckpointError: The folder's checkpoint was made with other settings or data.
    """
    done = folder / DONE
    settings = config.to_dict()
    made = {
        **{key: settings[key] for key in ("eyes", "policy", "seed", "precision")},
        "data": digest_of(corpus.train).hex(),
    }
    if done.is_file() and json.loads(done.read_text())["made_with"] == made:
        return
    stream = nano_scannet(["a"], policy=config.policy, seed=config.seed).branch
    if not isinstance(stream, VisionStream):
        raise TypeError("nano models have the policy's towers")
    labels = sorted({label for room in corpus.train for label in room.labels})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        eyes = Eyes(stream.semantic, labels)
    patch_px = stream.config.semantic.patch_px
    seconds = run_stage(
        eyes,
        NamingLoss(
            eyes=eyes,
            rooms=corpus.train,
            sights=[sight_of(room, labels, patch_px) for room in corpus.train],
            scenes=config.eyes.scenes,
            views=config.eyes.views,
            seed=config.seed,
            precision=config.precision,
        ),
        config=config.eyes_stage(),
        around=Surroundings(
            name="eyes",
            folder=folder,
            log_every_s=config.log_every_s,
            checkpoint_every_s=config.checkpoint_every_s,
            made_with=made,
        ),
    )
    sights = [sight_of(room, labels, patch_px) for room in corpus.held_out]
    right, total = share_named(eyes, corpus.held_out, sights, views=config.eyes.views)
    log.info("towers name %d of the %d objects that held-out scenes show", right, total)
    with atomic_path(folder / FILE) as path:
        save_file(eyes.towers.state_dict(), path)
    said = {
        "made_with": made,
        "seconds": {"training": seconds},
        "named": {"right": right, "of": total, "classes": len(labels)},
    }
    write_atomic(done, json.dumps(said, indent=2) + "\n")


@torch.no_grad()
def share_named(
    eyes: Eyes, rooms: Sequence[Room], sights: Sequence[Sight], *, views: int
) -> tuple[int, int]:
    """Return how many objects of some rooms are given their class, and how many are seen at all."""
    right = total = 0
    for room, sight in zip(rooms, sights, strict=True):
        chosen = [a for a, _ in stretches(len(room.seen.pixels), views)]
        scores, _ = eyes(room.seen.pixels[chosen], sight.shares[:, chosen])
        is_seen = sight.seen[:, chosen].sum(1) > 0
        right += int((scores.argmax(1) == sight.labels)[is_seen].sum())
        total += int(is_seen.sum())
    return right, total


def load_towers(towers: nn.Module, folder: Path) -> None:
    """Put trained weights into the towers of a model."""
    towers.load_state_dict(load_file(folder / FILE))


def sight_of(room: Room, labels: Sequence[str], patch_px: int) -> Sight:
    """Look a room over, once.

    Args:
        room: Whole.
        labels: Classes; an object of another one is of class -1.
        patch_px: Of the towers.

    Raises:
        ContractError: There is no depth.
    """
    points, measured = room.seen.points, room.seen.measured
    if points is None or measured is None:
        raise ContractError(f"scene {room.scene_id} has no depth; render it with depth")
    pixels = room.seen.pixels
    every = pixels.shape[-1] // points.shape[1]
    along = patch_px // every
    shares = shares_of_boxes(
        patch_points(points, patch_px=along), patch_points(measured, patch_px=along), room.boxes
    )
    # The pixel in the middle of what a point stands for.
    shown = pixels[..., every // 2 :: every, every // 2 :: every].permute(0, 2, 3, 1) / 255
    low, high = room.boxes[:, :3] - room.boxes[:, 3:] / 2, room.boxes[:, :3] + room.boxes[:, 3:] / 2
    seen, colours = [], []
    for a, b in zip(low, high, strict=True):
        is_in = ((points >= a) & (points <= b)).all(-1) & measured
        seen.append(is_in.sum((1, 2)))
        colours.append((shown * is_in.unsqueeze(-1)).sum((1, 2)))
    index = [labels.index(label) if label in labels else -1 for label in room.labels]
    return Sight(shares, torch.stack(seen), torch.stack(colours), torch.tensor(index))


def _mirrored(shares: Tensor) -> Tensor:
    side = round(shares.shape[-1] ** 0.5)
    return shares.unflatten(-1, (side, side)).flip(-1).flatten(-2)
