"""One process or many: who a process is, and how it agrees with the others.

A run of one process uses `Ranks` itself, where every method is the obvious thing and nothing of
torch's distributed code is touched. Under ``torchrun``, `join` gives every process its place.

Wrapping is torch's own, `DistributedDataParallel` or FSDP2's ``fully_shard``: accelerate 1.15 shards
on GPUs only, and falls back to replication on a CPU without a word, where it could not be tested.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator

Parallel = Literal["ddp", "fsdp"]
"""``ddp``: every process holds every weight. ``fsdp``: each holds a share, and gathers one block of
the model at a time."""

BLOCKS = ("LlamaDecoderLayer", "Dinov2WithRegistersLayer", "SiglipEncoderLayer")
"""What FSDP gathers at a time."""
PATIENCE = timedelta(days=7)
"""How long processes wait for one that decodes, computes features or saves."""


class Ranks:
    """A run of one process."""

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process do the body alone; the others then find what it left on disk."""
        yield

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - a flag is all it takes
        """Return whether any process says so; all get the same answer."""
        return flag

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over processes."""
        return tensor

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return what to call in place of ``model``, so that its gradients are those of all."""
        return model

    @contextlib.contextmanager
    def gradients_stay(self, wrapped: nn.Module) -> Iterator[None]:  # noqa: ARG002
        """Collect gradients without exchanging them: more passes follow before the update."""
        yield

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor of which each process may hold a share; all must call it."""
        return tensor

    def share(self, tensor: Tensor, *, like: Tensor) -> Tensor:
        """Return this process's share of a whole tensor, divided as ``like`` is."""
        return tensor.to(like.device)

    def leave(self) -> None:
        """Part from the others."""


class ManyRanks(Ranks):
    """One of several processes."""

    def __init__(self, state: Any, *, parallel: Parallel) -> None:  # noqa: ANN401 - untyped library
        import torch.distributed as dist

        super().__init__(state.device)
        self.rank = state.process_index
        self.size = state.num_processes
        self._parallel = parallel
        # On the host, so that waiting keeps no GPU busy and outlasts NCCL's patience.
        self._host: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        import torch.distributed as dist

        if not self.is_main:
            dist.barrier(self._host)
        yield
        if self.is_main:
            dist.barrier(self._host)

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        import torch.distributed as dist

        votes = torch.tensor(float(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._host)
        return bool(votes)

    def mean(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def wrap(self, model: nn.Module) -> nn.Module:
        if self._parallel == "fsdp":
            return self._sharded(model)
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def _sharded(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.utils import _pytree as pytree

        from vega_policy.policy.model import ModelOutput

        if ModelOutput not in pytree.SUPPORTED_NODES:
            # FSDP looks for tensors in what the model returns.
            pytree.register_dataclass(ModelOutput)
        mesh = init_device_mesh(self.device.type, (self.size,))
        # A frozen prior also runs on its own, outside the model's forward.
        prior = getattr(getattr(model, "vision", None), "prior", None)
        ignored = set() if prior is None else set(prior.parameters())
        for module in reversed(list(model.modules())):
            if type(module).__name__ in BLOCKS:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params=ignored)
        return model

    @contextlib.contextmanager
    def gradients_stay(self, wrapped: nn.Module) -> Iterator[None]:
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            with wrapped.no_sync():
                yield
            return
        sharded: Any = wrapped
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)

    def whole(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def share(self, tensor: Tensor, *, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return tensor.to(like.device)
        return distribute_tensor(
            tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
        )

    def leave(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.barrier(self._host)
            dist.destroy_process_group()


def join(device: str, *, parallel: Parallel) -> ManyRanks:
    """Meet the other processes of a ``torchrun``.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        parallel: What is divided.

    Raises:
        ContractError: ``device`` is ``cuda`` and there is no GPU.
    """
    from accelerate import PartialState

    if device == "cuda" and not torch.cuda.is_available():
        raise ContractError(
            "device is 'cuda', this torch sees no GPU; set device=cpu or device=auto"
        )
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return ManyRanks(state, parallel=parallel)
