"""Low-rank adapters (LoRA, arXiv:2106.09685), added to the weights they were trained beside.

Three products per weight, so no wrapper is built only to be taken off again. The sum is made in
float32 and rounded once; OpenVLA-OFT adds in bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.policy.published.tensors import Stored, read_json, read_safetensors
from vega_policy.spec import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FOLDER = "lora_adapter"
_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")


def with_adapter(weights: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    """Return the weights of a base model with an adapter directory added.

    Raises:
        CheckpointError: The adapter is damaged, of another kind or of another base.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    kind, unsupported = config.get("peft_type"), [k for k in _UNSUPPORTED if config.get(k)]
    if kind != "LORA" or unsupported:
        raise CheckpointError(
            f"{folder} is an adapter of kind {kind!r} with {', '.join(unsupported) or 'no options'}; "
            "only plain LoRA can be added, merge it with peft first"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG}: r is {rank!r} and lora_alpha {alpha!r}, expected a rank of 1 or "
            "more and a number; copy the file again"
        )
    root = rank**0.5 if config.get("use_rslora") else rank
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS}; copy the whole directory")
    found = read_safetensors([folder / ADAPTER_WEIGHTS])
    renamed = {key.removeprefix(_PREFIX).replace(".default.", "."): t for key, t in found.items()}
    # peft also saves the layers whose size it thinks may have changed; they are the base's own.
    ours = {key: t for key, t in renamed.items() if ".base_layer." not in key}
    return merged(weights, ours, scale=alpha / root, where=folder)


def unwrapped(weights: Mapping[str, Stored], *, where: Path) -> dict[str, Stored]:
    """Merge a file that holds base layers and adapters side by side, as FiLM towers are published.

    The scale is that of OpenVLA-OFT's recipe, whose alpha is the rank, 16 at most.
    """
    plain: dict[str, Stored] = {}
    low_rank: dict[str, Stored] = {}
    for key, tensor in weights.items():
        name = key.replace(".base_layer.", ".").replace(".default.", ".").replace(".block.", ".")
        (low_rank if ".lora_" in name else plain)[name] = tensor
    ranks = {t.shape[0] for key, t in low_rank.items() if key.endswith(".lora_A.weight")}
    if len(ranks) > 1:
        raise CheckpointError(f"{where} mixes adapters of rank {sorted(ranks)}, expected one rank")
    scale = min(rank, 16) / rank if (rank := max(ranks, default=0)) else 0.0
    return merged(plain, low_rank, scale=scale, where=where)


def merged(
    weights: Mapping[str, Stored], low_rank: Mapping[str, Stored], *, scale: float, where: Path
) -> dict[str, Stored]:
    """Return ``weights`` with ``scale * B @ A`` added where there are ``lora_A`` and ``lora_B``.

    Args:
        weights: By name, ``<layer>.weight`` among them.
        low_rank: By name, ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``.
        scale: Factor on the product.
        where: The files, for messages.

    Raises:
        CheckpointError: A half is missing, or the base has no such layer.
    """
    result = dict(weights)
    problems: list[str] = []
    layers = {name.rsplit(".lora_", 1)[0] for name in low_rank}
    known = {f"{layer}.lora_{half}.weight" for layer in layers for half in "AB"}
    problems += [f"{name} is no LoRA weight" for name in sorted(set(low_rank) - known)]
    problems += [f"{name} is missing" for name in sorted(known - set(low_rank))]
    for layer in sorted(layers):
        base = weights.get(f"{layer}.weight")
        a, b = (low_rank.get(f"{layer}.lora_{half}.weight") for half in "AB")
        if base is None:
            problems.append(f"the base has no {layer}.weight")
        elif a is not None and b is not None:
            shape = (b.shape[0], *a.shape[1:])
            if shape != base.shape or a.shape[0] != b.shape[1]:
                problems.append(f"{layer}: A and B give {shape}, the base has {base.shape}")
            result[f"{layer}.weight"] = _sum(base, a, b, scale)
    if problems:
        raise CheckpointError(
            f"the adapter in {where} does not fit: {'; '.join(problems)}; use the base it was "
            "trained on"
        )
    return result


def _sum(base: Stored, a: Stored, b: Stored, scale: float) -> Stored:
    def read() -> Tensor:
        # Flattened, a convolution's A is a matrix like any other; its B is 1 x 1.
        change = b.read().flatten(1).float() @ a.read().flatten(1).float()
        return base.read().float() + scale * change.view(base.shape)

    return Stored(base.shape, read)
