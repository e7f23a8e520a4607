"""What both scene models share: a language model that is handed its vision tokens, and its files.

Nothing of the backbone is changed or subclassed: it is a Hugging Face class, and whatever is not text
enters through its public ``mm_encoder_outputs`` argument.

Shape legend: ``b`` texts, ``s`` tokens of the longest sequence, ``d`` width.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_policy.scene.heads.prompts import COORD, IMAGE
from vega_policy.spec import CheckpointError, ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerFast

    from vega_policy.scene.heads.config import Chat

IGNORE = -100
_NOT_HEADS = ("backbone.", "branch.prior.")

_CHATS: dict[Chat, tuple[str, str, str]] = {
    "plain": ("<s>", "\n", "</s>"),
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
}
"""Before the scene, between prompt and answer, behind the answer (one token, which ends generation)."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A batch of texts about scenes, as the language model takes it; padded on the left."""

    ids: Tensor
    """(b, s)."""
    mask: Tensor
    """(b, s) 1 for tokens, 0 for padding."""
    labels: Tensor
    """(b, s) the answer's tokens, `IGNORE` elsewhere."""
    handed: dict[str, Any]
    """What the backbone is given beside them."""


class SceneModel(nn.Module):
    """Base of `ScanNetModel` and `VsiModel`."""

    separator = "\n"
    """Between the scene and the prompt."""

    def __init__(
        self, *, backbone: Any, tokenizer: PreTrainedTokenizerFast, chat: Chat, branch: Any
    ) -> None:
        """Keep the parts.

        Args:
            backbone: A Hugging Face model for conditional generation.
            tokenizer: Knows every special token the model needs.
            chat: Words around prompt and answer.
            branch: Prior, its projector and fusion.
        """
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.tokenizer = tokenizer
        self._chat = _CHATS[chat]
        self.end_id = self.token_id(self._chat[2])
        """Of the token behind an answer."""

    @property
    def width(self) -> int:
        """Width of the language model."""
        return int(self.backbone.config.text_config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.backbone.device

    def token_id(self, token: str) -> int:
        """Return the id of a special token.

        Raises:
            ContractError: The tokenizer has none, or the embedding has no row for it.
        """
        found = self.tokenizer.get_vocab().get(token)
        rows = self.backbone.config.text_config.vocab_size
        if found is None or found >= rows:
            raise ContractError(
                f"token {token!r} has id {found} in the tokenizer and the backbone embeds {rows} "
                "tokens; add it with name_tokens and use a backbone with a row for it"
            )
        return found

    def head_state_dict(self) -> dict[str, Tensor]:
        """Return every weight that is neither the backbone's nor the frozen prior's."""
        own = self.state_dict()
        return {k: v for k, v in own.items() if not k.startswith(_NOT_HEADS)}

    def cast_heads(self, dtype: torch.dtype) -> None:
        """Cast every weight that is neither the backbone's nor the frozen prior's."""
        for name, weight in self.named_parameters():
            if not name.startswith(_NOT_HEADS):
                weight.data = weight.data.to(dtype)

    def load_head_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Take what `head_state_dict` gave.

        Raises:
            CheckpointError: Names or shapes differ; all are listed.
        """
        own = self.head_state_dict()
        problems = [f"lack {k}" for k in sorted(set(own) - set(weights))]
        problems += [f"have an unknown {k}" for k in sorted(set(weights) - set(own))]
        problems += [
            f"give {k} the shape {list(weights[k].shape)}, the settings {list(own[k].shape)}"
            for k in sorted(set(own) & set(weights))
            if weights[k].shape != own[k].shape
        ]
        if problems:
            raise CheckpointError(
                "the heads' weights " + "; ".join(problems) + "; use a directory saved in one piece"
            )
        self.load_state_dict(dict(weights), strict=False, assign=True)

    def answer(
        self,
        tokens: Any,
        texts: Sequence[str],
        *,
        coords: Sequence[Tensor] | None = None,
        max_new_tokens: int = 64,
    ) -> list[str]:
        """Answer one text per scene, greedily.

        Args:
            tokens: Of ``encode``.
            texts: Prompts, see `prompts`.
            coords: A place (3,) in metres for each text with a coordinate token.
            max_new_tokens: Limit of the answer.
        """
        with torch.no_grad():
            asked = self.ask(tokens, texts, answers=None, coords=coords)
            written = self.backbone.generate(
                input_ids=asked.ids,
                attention_mask=asked.mask,
                **asked.handed,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.end_id,
                pad_token_id=self.end_id,
            )
        answers = written[:, asked.ids.shape[1] :]
        return [t.strip() for t in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def loss_text(
        self,
        tokens: Any,
        texts: Sequence[str],
        answers: Sequence[str],
        *,
        coords: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens, the end token included.

        Args:
            tokens: Of ``encode``.
            texts: Prompts.
            answers: One for each text.
            coords: See `answer`.
        """
        asked = self.ask(tokens, texts, answers=answers, coords=coords)
        hidden = self.read(asked)
        wanted = asked.labels[:, 1:]
        is_answer = wanted != IGNORE
        logits = self.backbone.lm_head(hidden[:, :-1][is_answer])
        return functional.cross_entropy(logits.float(), wanted[is_answer])

    def read(self, asked: Asked) -> Tensor:
        """Return the last hidden states (b, s, d)."""
        return self.backbone.model(
            input_ids=asked.ids, attention_mask=asked.mask, use_cache=False, **asked.handed
        ).last_hidden_state

    def ask(
        self,
        tokens: Any,
        texts: Sequence[str],
        *,
        answers: Sequence[str] | None,
        coords: Sequence[Tensor] | None = None,
    ) -> Asked:
        """Put scenes, prompts and answers into one batch.

        Raises:
            ContractError: Numbers of scenes, texts, answers or coordinates disagree.
        """
        n_coords = [text.count(COORD) for text in texts]
        problems = [
            f"{len(found)} {what} for {expected} {per}"
            for what, found, expected, per in (
                ("texts", texts, len(tokens), "scenes"),
                ("answers", texts if answers is None else answers, len(texts), "texts"),
                ("coordinates", coords or (), sum(n_coords), f"{COORD} in the texts"),
            )
            if len(found) != expected
        ]
        if any(IMAGE in text for text in texts):
            problems.append(f"a text holds {IMAGE!r}, which stands for the scene")
        if problems:
            raise ContractError("; ".join(problems) + "; pass one of each")
        rows: list[tuple[list[int], list[int]]] = []
        for i, text in enumerate(texts):
            prompt = [
                *self._ids(self._chat[0]),
                *self.scene_ids(tokens, i),
                *self._ids(self.separator + text + self._chat[1]),
            ]
            answer = [] if answers is None else [*self._ids(answers[i]), self.end_id]
            rows.append((prompt + answer, [IGNORE] * len(prompt) + answer))
        length = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([[self.end_id] * (length - len(r)) + r for r, _ in rows])
        labels = torch.tensor([[IGNORE] * (length - len(r)) + r for _, r in rows])
        mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r, _ in rows])
        ids, labels, mask = (x.to(self.device) for x in (ids, labels, mask))
        return Asked(
            ids=ids, mask=mask, labels=labels, handed=self.hand_in(tokens, ids, mask, coords)
        )

    def scene_ids(self, tokens: Any, index: int) -> list[int]:
        """Return the placeholders of one scene's tokens."""
        raise NotImplementedError

    def hand_in(
        self, tokens: Any, ids: Tensor, mask: Tensor, coords: Sequence[Tensor] | None
    ) -> dict[str, Any]:
        """Return what the backbone is given beside ids and mask."""
        raise NotImplementedError

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
