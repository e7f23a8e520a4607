"""What a nano model is trained to do: losses of a few scenes and their questions, for each update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vega_policy.scene.heads.grounding import info_nce
from vega_policy.scene.heads.prompts import GROUND
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.scene_model import SceneModel
from vega_policy.scene.heads.vsi_model import VsiModel
from vega_policy.scene.train.arms import Arm
from vega_policy.scene.train.cases import Case
from vega_policy.scene.train.features import FeatureBank
from vega_policy.scene.train.reading import Texts, ground_scores, read_texts, text_losses
from vega_policy.scene.train.rooms import Move, Room, drawn_views, grey
from vega_policy.scene.train.settings import Precision
from vega_policy.train.prior.stage import draw_generator


@dataclass(frozen=True)
class BatchConfig:
    """What an update sees."""

    scenes: int = 2
    texts_per_scene: int = 48
    views: int = 6
    """Frames of a scene, one drawn from each of so many stretches of the walk."""
    words_first: int = 200
    """So many updates read texts without the scene before them; objects are seen all the same."""
    shift_m: float = 2.0
    """Rooms are shifted by up to this along x and y, and turned by right angles; see `moved`."""


@dataclass(frozen=True, eq=False)
class SceneLoss:
    """Loss of update ``k``: a function of the seed, ``k`` and the weights."""

    model: SceneModel
    arm: Arm
    rooms: Sequence[Room]
    cases: Mapping[str, Sequence[Case]]
    """By scene."""
    bank: FeatureBank
    batch: BatchConfig
    seed: int
    precision: Precision = "float32"

    def __call__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean over all texts of the update, and the means of both kinds.

        Every arm sees the same scenes, places and questions at the same update.
        """
        g = draw_generator(self.seed, "scenes", step)
        ground: list[Tensor] = []
        text: list[Tensor] = []
        for number in torch.randint(len(self.rooms), (self.batch.scenes,), generator=g).tolist():
            room = self.rooms[number]
            shift = (torch.rand(3, generator=g) * 2 - 1) * self.batch.shift_m
            shift[2] = 0.0
            room = room.seen_in(drawn_views(len(room.seen.pixels), self.batch.views, g))
            move = Move(turns=int(torch.randint(4, (1,), generator=g)), shift_m=shift)
            cases = self.cases[room.scene_id]
            order = torch.randperm(len(cases), generator=g)[: self.batch.texts_per_scene]
            picks = torch.randint(2**31, (len(order),), generator=g).tolist()
            chosen = [cases[i] for i in order.tolist()]
            found = self._of_scene(
                room, move, chosen, picks, with_scene=step >= self.batch.words_first
            )
            ground += found[0]
            text += found[1]
        parts = {
            name: torch.stack(losses).mean()
            for name, losses in (("ground", ground), ("text", text))
            if losses
        }
        return torch.stack([*ground, *text]).mean(), parts

    def _of_scene(
        self,
        room: Room,
        move: Move,
        cases: Sequence[Case],
        picks: Sequence[int],
        *,
        with_scene: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the losses of grounding texts and of answers."""
        # Outside of autocast: in bfloat16 a place three metres away is off by a centimetre or two.
        room = move.room(room)
        coords = [move.points(place) for place in places(cases)]
        answers = [
            GROUND if case.is_grounding else case.answers[pick % len(case.answers)]
            for case, pick in zip(cases, picks, strict=True)
        ]
        with torch.autocast(
            self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            tokens = encode(self.model, self.arm, room, self.bank)
            read = read_texts(
                *(self.model, tokens, [case.prompt for case in cases]),
                answers=answers,
                coords=coords,
                with_scene=with_scene,
            )
            return self._losses(tokens, room, cases, read)

    def _losses(
        self,
        tokens: Any,  # noqa: ANN401
        room: Room,
        cases: Sequence[Case],
        read: Texts,
    ) -> tuple[list[Tensor], list[Tensor]]:
        ground: list[Tensor] = []
        grounding = [case for case in cases if case.is_grounding]
        if grounding and isinstance(self.model, ScanNetModel):
            scores = ground_scores(self.model, tokens, room.boxes, read)
            ground = [
                info_nce(score, room.indices(case.targets))
                for score, case in zip(scores, grounding, strict=True)
            ]
        rows = [row for row, case in enumerate(cases) if not case.is_grounding]
        return ground, text_losses(self.model, read, rows) if rows else []


def encode(model: SceneModel, arm: Arm, room: Room, bank: FeatureBank) -> Any:  # noqa: ANN401
    """Return the tokens of one room as an arm sees it."""
    features = [bank.of(room, arm.features)]
    if isinstance(model, ScanNetModel):
        seen = grey(room.seen) if arm.is_blind else room.seen
        return model.encode([seen], prior_features=features)
    if isinstance(model, VsiModel):
        video = grey(room.video) if arm.is_blind else room.video
        return model.encode([video], prior_features=features)
    raise TypeError(f"{type(model).__name__} is no scene model")


def places(cases: Sequence[Case]) -> list[Tensor]:
    """Return the places that prompts name, in order."""
    return [
        torch.tensor(case.coord, dtype=torch.float32) for case in cases if case.coord is not None
    ]
