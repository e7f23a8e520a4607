"""How a head asks the language model.

Shape legend: ``b`` batch, ``t`` steps of a chunk, ``a`` numbers of an action, ``d`` width of the
language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Read(Protocol):
    """One pass of the language model over an observation that is already embedded."""

    def __call__(
        self, *, slots: Tensor | None = None, time: Tensor | None = None, n_more: int = 0
    ) -> Tensor:
        """Return the hidden states (b, t * a + n_more, d) that stand for the actions.

        Of a model with a word head, return the words' logits at these places instead.

        Args:
            slots: (b, t * a, d) tokens in place of the policy's own slots.
            time: (b, d) or (1, d), a token behind the proprioception.
            n_more: 1 adds the last slot's state, which foretells the end of the sentence.
        """
        ...
