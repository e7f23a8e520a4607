"""How much memory a training run takes, told from shapes before anything is loaded.

The model is built of fake tensors, which have shapes and no content, so that 7 billion weights take
none. Weights, gradients and moments are counted; activations are what autograd keeps in one forward
pass of fake tensors. Not seen: workspaces of kernels and the allocator's fragments, for which
`OVERHEAD` is added.

Shape legend: ``b`` batch, ``v`` cameras.
"""

# pyright: basic
from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vega_policy.data.part import part_size
from vega_policy.train.lora import prepare_weights
from vega_policy.train.ranks import BLOCKS
from vega_policy.train.start import Start
from vega_policy.vision.prior import ZeroPrior, build_prior

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vega_policy.policy import VegaModel
    from vega_policy.train.config import TrainConfig
    from vega_policy.train.ranks import Ranks

logger = logging.getLogger(__name__)

GB = 1e9
OVERHEAD = 2 * 10**9
"""Bytes the CUDA context, kernels' workspaces and the allocator take; a guess from experience."""
PROMPT_TOKENS = 34
"""Of a LIBERO instruction in OpenVLA's prompt."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes one process holds at the peak of an update."""

    weights: int
    """Of the policy, trained or frozen, without the prior."""
    prior: int
    gradients: int
    optimiser: int
    """Two float32 moments of each trained weight."""
    average: int
    activations: int
    """What the backward pass needs."""
    gathered: int
    """Weights of other processes that are held for a moment (FSDP)."""
    trained: int
    """Number of trained weights, of all processes together."""
    overhead: int = OVERHEAD

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.weights, self.prior, self.gradients, self.optimiser, self.average)
        return sum(parts) + self.activations + self.gathered + self.overhead

    def __str__(self) -> str:
        """Return one line in GB."""
        parts = [
            f"{name} {getattr(self, name) / GB:.1f}"
            for name in (
                "weights",
                "prior",
                "gradients",
                "optimiser",
                "average",
                "activations",
                "gathered",
                "overhead",
            )
            if getattr(self, name)
        ]
        return f"{self.total / GB:.1f} GB a process ({', '.join(parts)}); {self.trained:,} weights trained"


def estimate(config: TrainConfig, *, world_size: int = 1) -> MemoryEstimate:
    """Estimate what each process of a run holds.

    Args:
        config: Of the run; the policy's sizes are those of ``config.policy``.
        world_size: Processes.

    Raises:
        ContractError: The batch cannot be divided among the processes.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch = part_size(config.batch_size, count=world_size)
    # On the meta device first: an initialisation that looks at its numbers cannot be faked.
    with torch.device("meta"):
        model = _model(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake(model)
        weights, trained = Counter(), Counter()
        for name, parameter in model.named_parameters():
            weights[_unit(name, model)] += parameter.nbytes
            if parameter.requires_grad:
                trained[_unit(name, model)] += parameter.numel()
        activations = _activations(model, config, batch=batch)
        prior = _prior_bytes(config)
    n_trained = trained.total()
    share = world_size if config.parallel == "fsdp" else 1
    blocks = [size for unit, size in weights.items() if unit]
    # Of the root everything stays gathered between its two passes; of the blocks, the one at work
    # and the one that is being fetched.
    gathered = 0 if share == 1 else weights[""] + 2 * max(blocks, default=0)
    return MemoryEstimate(
        weights=weights.total() // share,
        prior=prior,
        gradients=4 * n_trained // share,
        optimiser=8 * n_trained // share,
        average=4 * n_trained // share if config.optim.ema_decay else 0,
        activations=activations,
        gathered=gathered,
        trained=n_trained,
    )


def remedies(
    config: TrainConfig, *, world_size: int, capacity: int
) -> list[tuple[str, MemoryEstimate]]:
    """Return what to change until a run fits, in this order, each with the estimate it leads to.

    Args:
        config: A run that does not fit.
        world_size: Processes.
        capacity: Bytes of one device.
    """
    found: list[tuple[str, MemoryEstimate]] = []
    for what, changed in _changes(config, world_size):
        config = dataclasses.replace(config, **changed(config))
        found.append((what(config), estimate(config, world_size=world_size)))
        if found[-1][1].total <= capacity:
            break
    return found


def report_memory(config: TrainConfig, ranks: Ranks) -> None:
    """Log the estimate and, where a run does not fit, what to change.

    Sizes are those of the policy that will be trained; where it starts from a checkpoint, these are
    read there.
    """
    start = Start.of(config)
    if start is not None:
        config = dataclasses.replace(config, policy=start.policy_config)
    needed = estimate(config, world_size=ranks.size)
    logger.info("memory, estimated from shapes: %s", needed)
    if ranks.device.type != "cuda":
        return
    capacity = torch.cuda.get_device_properties(ranks.device).total_memory
    if needed.total <= capacity:
        return
    steps = [
        f"{what}: {after.total / GB:.1f} GB"
        for what, after in remedies(config, world_size=ranks.size, capacity=capacity)
    ]
    logger.warning(
        "%.1f GB are needed and the GPU has %.1f; change, in this order: %s",
        needed.total / GB,
        capacity / GB,
        "; then ".join([*steps, "more processes with parallel=fsdp"]),
    )


def _changes(config: TrainConfig, world_size: int) -> Iterator[tuple[Any, Any]]:
    """Yield (what to say, which fields change), cheapest for the user first."""
    if config.optim.ema_decay:
        yield (
            lambda _: "optim.ema_decay=0",
            lambda c: {"optim": dataclasses.replace(c.optim, ema_decay=0.0)},
        )
    if not config.gradient_checkpointing:
        yield lambda _: "gradient_checkpointing=true", lambda _: {"gradient_checkpointing": True}
    local = config.batch_size // world_size
    while local % 2 == 0:
        local //= 2
        yield (
            lambda c: f"batch_size={c.batch_size} accumulate={c.accumulate}",
            lambda c: {"batch_size": c.batch_size // 2, "accumulate": 2 * c.accumulate},
        )
    if world_size > 1 and config.parallel == "ddp":
        yield lambda _: "parallel=fsdp", lambda _: {"parallel": "fsdp"}
    if config.tune == "full" and config.init_from is not None:
        yield (
            lambda _: "tune=lora base_dtype=bfloat16 precision=bfloat16",
            lambda _: {"tune": "lora", "base_dtype": "bfloat16", "precision": "bfloat16"},
        )


def _model(config: TrainConfig) -> VegaModel:
    from vega_policy.policy import VegaModel

    model = VegaModel(config.policy, prior=ZeroPrior(config.policy.prior))
    prepare_weights(
        model, tune=config.tune, lora=config.lora, base_dtype=getattr(torch, config.base_dtype)
    )
    return model.train()


def _fake(model: nn.Module) -> None:
    """Put fake tensors on a CPU in place of meta tensors, which no autocast knows."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            fresh = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module.register_parameter(name, fresh)
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _unit(name: str, model: nn.Module) -> str:
    """Return the block that a weight belongs to, or nothing for the root."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:end])
        if type(model.get_submodule(prefix)).__name__ in BLOCKS:
            return prefix
    return ""


def _prior_bytes(config: TrainConfig) -> int:
    if not config.policy.fusion.uses_prior:
        return 0
    prior = build_prior(config.policy.prior)
    return sum(p.nbytes for p in prior.parameters()) if isinstance(prior, nn.Module) else 0


def _activations(model: VegaModel, config: TrainConfig, *, batch: int) -> int:
    """Return the bytes that one forward pass leaves for the backward pass."""
    policy = config.policy
    side, views = policy.image_px, len(policy.cameras)
    features = None
    if model.vision.prior is not None:
        tokens = policy.semantic.grid**2
        features = torch.zeros(batch, views, tokens, policy.prior.width)
    with (
        _Kept(model) as kept,
        torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"),
    ):
        output = model(
            torch.zeros(batch, views, 3, side, side, dtype=torch.uint8),
            torch.zeros(batch, policy.proprio_size),
            torch.zeros(batch, PROMPT_TOKENS, dtype=torch.long),
            None,
            prior_features=features,
            keys=range(batch),
            targets=torch.zeros(batch, policy.action.horizon, policy.action.size),
        )
    if output.loss is None:
        raise RuntimeError("the model was given targets and returned no loss")
    blocks = {k: v for k, v in kept.bytes.items() if k}
    if config.gradient_checkpointing:
        return kept.bytes[""] + kept.inputs + max(blocks.values(), default=0)
    return kept.bytes.total()


class _Kept:
    """Counts what autograd keeps, block by block."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes: Counter[str] = Counter()
        self.inputs = 0
        """Bytes that enter blocks, which checkpointing keeps in place of all else."""
        self._model = model
        self._place = ""
        self._seen: dict[int, Any] = {
            p.untyped_storage()._cdata: p  # noqa: SLF001 - identity of a storage without content
            for p in model.parameters()
        }
        self._handles: list[Any] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t)

    def __enter__(self) -> _Kept:
        for name, module in self._model.named_modules():
            if type(module).__name__ in BLOCKS:
                self._handles += [
                    module.register_forward_pre_hook(self._entering(name), with_kwargs=True),
                    module.register_forward_hook(self._leaving),
                ]
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._place = name
            first = args[0] if args else kwargs["hidden_states"]
            self.inputs += first.nbytes

        return enter

    def _leaving(self, *_: object) -> None:
        self._place = ""

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:  # noqa: SLF001
            # Held, so that no later storage takes its place.
            self._seen[storage._cdata] = storage  # noqa: SLF001
            self.bytes[self._place] += storage.nbytes()
        return tensor
