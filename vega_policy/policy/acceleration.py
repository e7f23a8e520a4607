"""Faster inference with the same numbers: compiled models, CUDA graphs, and 4-bit weights.

Shape legend: ``b`` batch, ``l`` prompt tokens.
"""

# ruff: noqa: ANN401
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config

from vega_policy.policy.heads import DiffusionHead, Draws
from vega_policy.policy.model import ModelOutput
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from vega_policy.policy.model import VegaModel
    from vega_policy.policy.policy import VegaPolicy

PROMPT_LENGTHS = (32, 48, 64, 96, 128, 256)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_MOST_GRAPHS = 256
_PRIOR_PARTS = ("latents", "block_output")
"""What priors with a network spend their time in; whatever is around it draws noise on the CPU."""

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


def compile_policy(
    policy: VegaPolicy,
    *,
    mode: CompileMode = "default",
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    backend: str = "inductor",
) -> VegaPolicy:
    """Compile a policy's model and prior in place; the first answer of each shape takes a minute.

    A shape is a prompt length and a batch size, so both are filled up to one of a few: prompts with
    padding, which is masked, batches with copies of the last observation, whose answers are dropped.
    Instructions and numbers of environments then come and go without compiling anything anew.

    Args:
        policy: To change; its variants made by `VegaPolicy.arm` are compiled as well.
        mode: Of `torch.compile`. ``reduce-overhead`` captures CUDA graphs: at a batch of one the
            GPU otherwise waits for the CPU to hand out some thousand small kernels.
        prompt_lengths: Tokens, rising. A longer prompt is compiled for its own length.
        batch_sizes: Observations, rising. A larger batch is compiled for its own size.
        backend: Of `torch.compile`.

    Returns:
        The same policy.

    Raises:
        ContractError: Lengths or sizes do not rise, or are not positive.
    """
    for name, values in (("prompt_lengths", prompt_lengths), ("batch_sizes", batch_sizes)):
        if list(values) != sorted(set(values)) or min(values, default=1) < 1:
            raise ContractError(f"{name} is {list(values)}, expected rising whole numbers from 1")

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, mode=mode, backend=backend, dynamic=False)

    sizes = tuple(batch_sizes)
    policy.processor.prompt_lengths = tuple(prompt_lengths)
    model: Any = policy.model
    if isinstance(model.head, DiffusionHead):
        # Its chain runs the language model many times and has a scheduler on the CPU in between.
        model.language.forward = compiled(model.language.forward)
    else:
        model.core = _CompiledCore(
            model.core, compiled(model.core), sizes, prior_features=model.prior_features
        )
    frames = tuple(s * len(policy.config.cameras) for s in sizes)
    for name in _PRIOR_PARTS:
        part = getattr(model.prior, name, None)
        if part is not None:
            setattr(model.prior, name, _CompiledPart(part, compiled(part), frames))
    return policy


class _CompiledPart:
    """A function of one tensor (f, ...) to tensors of as many rows."""

    def __init__(
        self,
        plain: Callable[[Tensor], Any],
        compiled: Callable[[Tensor], Any],
        sizes: tuple[int, ...],
    ) -> None:
        self._plain = plain
        self._compiled = compiled
        self._sizes = sizes
        self._is_warm = False

    def __call__(self, rows: Tensor) -> Any:
        if not self._is_warm:
            self._plain(rows)  # makes the constants a prior keeps, which are no part of a graph
            self._is_warm = True
        n, size = len(rows), _size_for(len(rows), self._sizes)
        with _many_shapes():
            return _own(self._compiled(_repeated(rows, size)), n)


class _CompiledCore:
    """`VegaModel.core` for inference; training goes to the plain one."""

    def __init__(
        self,
        plain: Callable[..., ModelOutput],
        compiled: Callable[..., ModelOutput],
        sizes: tuple[int, ...],
        *,
        prior_features: Callable[..., Tensor | None],
    ) -> None:
        self._plain = plain
        self._compiled = compiled
        self._sizes = sizes
        self._prior_features = prior_features

    def __call__(
        self,
        pixels: Tensor,
        proprio: Tensor | None,
        input_ids: Tensor,
        mask: Tensor | None,
        prior_features: Tensor | None = None,
        keys: Sequence[int] | None = None,
        *,
        targets: Tensor | None = None,
        draws: Draws | None = None,
        shut_out_prior: bool | Tensor = False,
    ) -> ModelOutput:
        if torch.is_grad_enabled() or targets is not None:
            return self._plain(
                pixels,
                proprio,
                input_ids,
                mask,
                prior_features,
                keys,
                targets=targets,
                draws=draws,
                shut_out_prior=shut_out_prior,
            )
        if prior_features is None and not shut_out_prior:
            # Outside of the graph: its noise is drawn from the keys, on the CPU.
            prior_features = self._prior_features(pixels, keys=keys)
        # With a mask even where nothing is padding: without one it would be another graph.
        mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
        n = len(input_ids)
        rows = (pixels, proprio, input_ids, mask, prior_features)
        size = _size_for(n, self._sizes)
        filled = [None if x is None else _repeated(x, size) for x in rows]
        with _many_shapes():
            output = self._compiled(*filled, shut_out_prior=bool(shut_out_prior))
        actions, gate = _own((output.actions, output.gate), n)
        return ModelOutput(actions=actions, gate=gate)


def _many_shapes() -> AbstractContextManager[None]:
    """Let a function have more graphs than the few torch expects; they are bounded by the sizes."""
    return dynamo_config.patch(recompile_limit=_MOST_GRAPHS)


def _size_for(n: int, sizes: tuple[int, ...]) -> int:
    return next((s for s in sizes if s >= n), n)


def _repeated(rows: Tensor, size: int) -> Tensor:
    """Repeat the last row of (n, ...) until there are so many."""
    if len(rows) == size:
        return rows
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def _own(output: Any, n: int) -> Any:
    """Copy the first rows: a CUDA graph writes its next answer to the same place."""
    if isinstance(output, Tensor):
        return output[:n].clone()
    if isinstance(output, tuple):
        return tuple(_own(x, n) for x in output)
    return output


def quantise_nf4(model: VegaModel, *, device: torch.device | str | None = None) -> None:
    """Store the language model's linear layers in 4 bits, in place (NF4, arXiv:2305.14314).

    Two thirds of a 7 billion model's 16 GB go; the towers, projectors, prior and head, small and
    sensitive, stay as they are. Answers change, so this is not for comparing numbers, and a quantised
    model can be neither trained nor saved.

    Args:
        model: On any device; layers move one by one, so the whole never has to fit.
        device: Where to; None leaves it. The rest of the model is not moved.

    Raises:
        ContractError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError as error:
        raise ContractError(
            "quantise=nf4 needs bitsandbytes, which is not installed; "
            "pip install 'vega-policy[quant]'"
        ) from error
    for parent in model.language.modules():
        for name, layer in parent.named_children():
            if type(layer) is not nn.Linear:
                continue
            weight = layer.weight.data
            with torch.device("meta"):
                small = Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=getattr(layer, "bias", None) is not None,
                    compute_dtype=weight.dtype,
                    quant_type="nf4",
                )
            # Quantised as it moves, even to where it already is.
            parameter: Any = Params4bit
            small.weight = parameter(weight, requires_grad=False, quant_type="nf4", module=small)
            small.bias = layer.bias
            setattr(parent, name, small.to(weight.device if device is None else device))


def is_quantised(model: VegaModel) -> bool:
    """Whether `quantise_nf4` has changed this model."""
    return any(p.dtype == torch.uint8 for p in model.language.parameters())
