"""Discrete: every number of a chunk is one word, the likeliest of the whole vocabulary.

Shape legend: ``b`` batch, ``t`` steps of a chunk, ``a`` numbers of an action, ``w`` words of the
vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from vega_policy.policy.heads.diffusion import Draws
    from vega_policy.policy.heads.reading import Read

_EOS = 2
_N_PADDING_WORDS = 64
"""Rows at the end of the vocabulary that OpenVLA added and that are no words."""
_N_EDGES = 256


class DiscreteHead(nn.Module):
    """OpenVLA's action words, read in parallel; the weights are those of the model's word head.

    The last 256 words stand for the 256 edges of equal bins over [-1, 1], the highest first. A
    word's value is the centre of the bin above its edge; the last edge has none and takes the bin
    below. All words of the vocabulary compete, and one that stands for no action counts as the
    nearest that does.
    """

    def __init__(self, *, action_size: int, vocab_size: int) -> None:
        """Place the action words.

        Raises:
            ContractError: The vocabulary has no room for them.
        """
        super().__init__()
        self.action_size = action_size
        self.n_words = vocab_size - _N_PADDING_WORDS
        """Words that are no padding: 32000 of the published 32064."""
        lowest = _EOS + 1 + _N_EDGES
        if self.n_words < lowest:
            raise ContractError(
                f"language.vocab_size is {vocab_size}, a discrete head needs {_N_EDGES} words of its "
                f"own; set at least {lowest + _N_PADDING_WORDS}"
            )

    def answer(
        self,
        read: Read,
        *,
        targets: Tensor | None = None,
        draws: Draws | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Return actions (b, t, a) and, with targets, the cross-entropy of their words.

        The loss counts the word behind the last action too, the end of the sentence.
        """
        if targets is None:
            return self._actions(read()), None
        logits = read(n_more=1).float()
        wanted = functional.pad(self.encode(targets).flatten(1), (0, 1), value=_EOS)
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        return self._actions(logits[:, :-1]), loss

    def encode(self, actions: Tensor) -> Tensor:
        """Return the int64 word of each normalised action, which is clipped to [-1, 1]."""
        edges = _edges(actions.device)
        return self.n_words - torch.bucketize(actions.double().clamp(-1, 1), edges, right=True)

    def decode(self, words: Tensor) -> Tensor:
        """Return the float64 value of each word, in (-1, 1)."""
        edges = _edges(words.device)
        centres = (edges[:-1] + edges[1:]) / 2
        return centres[(self.n_words - words - 1).clamp(0, _N_EDGES - 2)]

    def _actions(self, logits: Tensor) -> Tensor:
        words = logits.argmax(-1)
        return self.decode(words).float().unflatten(1, (-1, self.action_size))


def _edges(device: torch.device) -> Tensor:
    return torch.linspace(-1, 1, _N_EDGES, dtype=torch.float64, device=device)
