"""What stands in the place of the prior's features, by arm; the prior's own are computed once.

Shape legend: ``v`` views, ``n = g * g`` tokens of a view, ``c`` width of the prior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vega_policy.scene.heads.config import CodeConfig, ScanNetConfig
from vega_policy.scene.heads.position_code import cell_points, position_code
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.vsi_model import VsiModel
from vega_policy.spec import ContractError
from vega_policy.vision.prior.store import FeatureStore, PriorIdentity, frame_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vega_policy.scene.train.arms import Features
    from vega_policy.scene.train.rooms import Room


class FeatureBank:
    """Features of rooms for one model; what a prior computes stays in memory and in the policy's store."""

    def __init__(
        self,
        model: ScanNetModel | VsiModel,
        rooms: Sequence[Room],
        *,
        store_dir: Path | None = None,
    ) -> None:
        """Describe the bank; nothing is computed yet.

        Args:
            model: Its prior is asked.
            rooms: All that may be asked for; the scene behind a scene is where ``shuffled`` looks.
            store_dir: Folder of the feature stores of all priors; None keeps features in memory only.

        Raises:
            ContractError: There is one scene only, so that none is another.
        """
        self._model = model
        self._rooms = {room.scene_id: room for room in rooms}
        names = sorted(self._rooms)
        if len(names) < 2:
            raise ContractError(
                f"{len(names)} scene(s) on one side of the split; render at least 2 for training and "
                "2 to be held out"
            )
        self._other = dict(zip(names, [*names[1:], names[0]], strict=True))
        self._store_dir = store_dir
        self._store: FeatureStore | None = None
        self._known: dict[str, Tensor] = {}

    def of(self, room: Room, what: Features | None) -> Tensor | None:
        """Return features of the model's shape: (v, n, c), or (v, g, g, c) for a `VsiModel`.

        Args:
            room: Possibly moved, or some of its views; its coordinates are those of its points now.
            what: See `Arm`.
        """
        match what:
            case None:
                return None
            case "prior":
                return _seen(self._of_prior(room.scene_id), room)
            case "zeroed":
                return torch.zeros_like(self._of_xyz(room))
            case "xyz":
                return self._of_xyz(room)
            case "shuffled":
                # The same frames of another walk, as far as it goes.
                n = len(self._rooms[room.scene_id].seen.pixels)
                other = self._of_prior(self._other[room.scene_id])
                return _seen(other[torch.arange(n) % len(other)], room)

    def _of_prior(self, scene_id: str) -> Tensor:
        if scene_id not in self._known:
            found = self._ask_prior(self._rooms[scene_id])
            if found is None:
                raise ContractError("the model has no prior; use a fusion rule that has one")
            self._known[scene_id] = found.detach()
        return self._known[scene_id]

    def _ask_prior(self, room: Room) -> Tensor | None:
        model = self._model
        if isinstance(model, ScanNetModel):
            if self._store is None and self._store_dir is not None:
                self._store = FeatureStore(self._store_dir, PriorIdentity.of(model.branch.prior))
            return model.prior_features(room.seen, store=self._store)
        if self._store is None and self._store_dir is not None:
            self._store = model.open_store(self._store_dir, room.video)
        return model.prior_features(room.video, store=self._store)

    def _of_xyz(self, room: Room) -> Tensor:
        """Return the position code of the mean point of every cell, zeros where nothing is measured."""
        points, measured = room.seen.points, room.seen.measured
        if points is None or measured is None:
            raise ContractError(f"scene {room.scene_id} has no depth; render it with depth")
        model = self._model
        prior = model.config.vision.prior
        # One cell is one patch here: whole pixels of whatever image the points belong to.
        cell_px = points.shape[1] // prior.grid
        places, is_known = cell_points(points, measured, grid=prior.grid, patch_px=cell_px)
        code = model.config.code if isinstance(model.config, ScanNetConfig) else CodeConfig()
        found = position_code(places, width=prior.width, config=code) * is_known.unsqueeze(-1)
        return found.unflatten(1, (prior.grid, -1)) if isinstance(model, VsiModel) else found


def _seen(features: Tensor, room: Room) -> Tensor:
    return features if room.views is None else features[list(room.views)]


class RememberedTowers(nn.Module):
    """Frozen towers that read every frame once; the features are those of the towers themselves."""

    def __init__(self, towers: nn.Module) -> None:
        super().__init__()
        self.towers = towers.requires_grad_(requires_grad=False)
        self._known: dict[bytes, Tensor] = {}

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.towers.width)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def forward(self, pixels: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (1, v, n, e) of (1, v, 3, h, w) uint8; see `SemanticTowers.forward`."""
        keys = [frame_digest(frame.cpu().numpy()) for frame in pixels[0]]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            with torch.autocast(pixels.device.type, enabled=False):
                read = self.towers(pixels[:, list(new.values())], condition)[0]
            # Copies: a part of a batch would keep all of it.
            self._known.update({key: one.clone() for key, one in zip(new, read, strict=True)})
        return torch.stack([self._known[key] for key in keys]).unsqueeze(0)
