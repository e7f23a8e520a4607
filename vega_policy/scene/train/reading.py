"""Several texts about one scene, for the price of reading the scene once.

A scene is a few hundred tokens and a question about twenty. Scenes come before texts and attention is
causal, so what the language model makes of a scene does not depend on the text: it is computed once,
kept as keys and values, and shared. The states and gradients are those of one pass for each text.

Shape legend: ``q`` texts, ``t`` tokens of the longest text, ``d`` width.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from vega_policy.scene.heads.prompts import GROUND
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.scene_model import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.heads.scene_model import SceneModel


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of one scene behind the scene; padded on the left."""

    states: Tensor
    """(q, t, d) last hidden states."""
    ids: Tensor
    """(q, t)."""
    labels: Tensor
    """(q, t) the answers' tokens, `IGNORE` elsewhere."""
    mask: Tensor
    """(q, n) 1 for tokens of scene and text, 0 for padding."""
    positions: Tensor
    """(..., q, 1) of each row's last token."""
    memory: Any
    """Keys and values of scene and texts; None where texts were read without a scene."""


def read_texts(
    model: SceneModel,
    tokens: Any,
    texts: Sequence[str],
    *,
    answers: Sequence[str] | None,
    coords: Sequence[Tensor] | None = None,
    with_scene: bool = True,
) -> Texts:
    """Read texts about one scene.

    Args:
        model: Any scene model.
        tokens: Of its ``encode``, of one scene.
        texts: Prompts.
        answers: See `SceneModel.ask`.
        coords: See `SceneModel.ask`.
        with_scene: False: texts see each other's words only, as if nothing stood before them.
    """
    alone = model.ask(tokens, [""], answers=None)
    asked = model.ask(tokens.take([0] * len(texts)), texts, answers=answers, coords=coords)
    scene = model.scene_ids(tokens, 0)
    end = alone.ids[0].tolist().index(scene[0]) + len(scene)
    lengths = asked.mask.sum(1)
    t = int(lengths.max()) - end
    text_mask = asked.mask[:, -t:] * (
        torch.arange(t, 0, -1, device=lengths.device) <= (lengths - end)[:, None]
    )
    positions = _positions(model, asked)
    backbone = model.backbone.model
    places = asked.handed["mm_encoder_outputs"].get("video")
    given: dict[str, Any] = {
        "input_ids": asked.ids[:, -t:],
        "position_ids": positions[..., -t:],
        **({} if places is None else {"mm_encoder_outputs": {"video": places}}),
    }
    if not with_scene:
        read = backbone(attention_mask=text_mask, **given)
        return Texts(
            states=read.last_hidden_state,
            ids=asked.ids[:, -t:],
            labels=asked.labels[:, -t:],
            mask=text_mask,
            positions=positions[..., -1:],
            memory=None,
        )
    mask = torch.cat([asked.mask.new_ones(len(texts), end), text_mask], dim=1)
    handed = {k: v for k, v in alone.handed.items() if k != "position_ids"}
    if "mm_token_type_ids" in handed:
        handed["mm_token_type_ids"] = handed["mm_token_type_ids"][:, :end]
    scene_read = backbone(
        input_ids=alone.ids[:, :end],
        position_ids=_positions(model, alone)[..., :end],
        use_cache=True,
        **handed,
    )
    memory = scene_read.past_key_values
    memory.batch_repeat_interleave(len(texts))
    read = backbone(attention_mask=mask, past_key_values=memory, use_cache=True, **given)
    return Texts(
        states=read.last_hidden_state,
        ids=asked.ids[:, -t:],
        labels=asked.labels[:, -t:],
        mask=mask,
        positions=positions[..., -1:],
        memory=read.past_key_values,
    )


def ground_scores(model: ScanNetModel, tokens: Any, boxes: Tensor, read: Texts) -> list[Tensor]:
    """Return what `ScanNetModel.ground` returns, for each text whose answer is `GROUND`.

    Args:
        model: That read the texts.
        tokens: Of one scene.
        boxes: (o, 6) of the scene.
        read: Of `read_texts`.
    """
    is_asked = read.labels == model.token_id(GROUND)
    objects = model.object_features(tokens, 0, boxes)
    return [model.head(objects, state) for state in read.states[is_asked]]


def text_losses(model: SceneModel, read: Texts, rows: Sequence[int]) -> list[Tensor]:
    """Return the mean cross-entropy of the tokens of some answers, the end token included.

    Args:
        model: That read the texts.
        read: Of `read_texts`.
        rows: Whose answers.
    """
    labels = read.labels[list(rows), 1:]
    logits = model.backbone.lm_head(read.states[list(rows), :-1])
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    summed = loss.view_as(labels).sum(1)
    return list(summed / (labels != IGNORE).sum(1))


@torch.no_grad()
def answers_to(
    model: SceneModel,
    tokens: Any,
    texts: Sequence[str],
    *,
    coords: Sequence[Tensor] | None = None,
    max_new_tokens: int = 64,
) -> list[str]:
    """Return what `SceneModel.answer` returns for texts about one scene: greedy answers."""
    read = read_texts(model, tokens, texts, answers=None, coords=coords)
    state, memory, mask, positions = read.states[:, -1:], read.memory, read.mask, read.positions
    end = model.end_id
    written: list[Tensor] = []
    is_done = torch.zeros(len(texts), dtype=torch.bool, device=mask.device)
    for _ in range(max_new_tokens):
        token = model.backbone.lm_head(state)[:, -1].argmax(-1).masked_fill(is_done, end)
        written.append(token)
        is_done |= token == end
        if bool(is_done.all()):
            break
        positions = positions + 1
        mask = functional.pad(mask, (0, 1), value=1)
        state = model.backbone.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=memory,
            use_cache=True,
        ).last_hidden_state
    ids = torch.stack(written, dim=1)
    return [text.strip() for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _positions(model: SceneModel, asked: Any) -> Tensor:
    """Return the positions (q, n) of a batch, or (3, q, n) where the backbone has three axes."""
    if isinstance(model, ScanNetModel):
        return asked.handed["position_ids"]
    handed = asked.handed
    found, _ = model.backbone.model.get_rope_index(
        asked.ids,
        mm_token_type_ids=handed["mm_token_type_ids"],
        image_grid_thw=handed["image_grid_thw"],
        attention_mask=asked.mask,
    )
    return found
